"""Serving, against the machine's limit and against other servers: `python -m bench.serve`."""
