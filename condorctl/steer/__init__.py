"""Changing what is under way: resume, cancel, hold, clean; work of others; messages."""
