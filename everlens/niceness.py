"""Who waits when all cores are taken: a thread that stands back lets whoever answers go first."""

from __future__ import annotations

import os
import sys


def stand_back(niceness: int) -> None:
    """
    Make the calling thread so much nicer, and the threads that it starts; there is no way back.

    Does nothing where niceness belongs to a whole process (all but Linux): see
    `stand_back_together`.
    """
    if sys.platform == "linux":
        os.nice(niceness)


def stand_back_together(niceness: int) -> None:
    """Make the whole process nicer where single threads cannot be; does nothing on Linux."""
    if sys.platform != "linux":
        os.nice(niceness)
