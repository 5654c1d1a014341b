"""How fast the worker learns: against the limit, and against what a user would run instead."""
