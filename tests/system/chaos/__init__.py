"""
The chaos campaign: real servers and processes, killed and cut on purpose, and a strict checker.

`python -m tests.system.chaos` runs it; `make chaos` runs all of it. What the clients noted
(`ledger`), what the server wrote to disk and what the learner committed (`truth`) must agree; the
checker shares no code with the system. The system itself knows nothing of this: its functions are
wrapped in a forked child (`points`, `mutations`), never in its own files.
"""
