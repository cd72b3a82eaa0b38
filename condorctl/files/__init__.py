"""Reaching into jobs, in whatever state they are: files, logs, a shell."""
