"""From a checked pipeline to a DAG in the queue: files, hashes, what need not run again."""
