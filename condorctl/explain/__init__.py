"""Why something does not work, and what mends it: jobs, stages, the machine itself."""
