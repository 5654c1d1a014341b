"""
Child processes that do not outlive their parent.

A short program runs in the child before it becomes what was asked for: it asks the kernel for a
signal at the parent's death (Linux), and leaves at once if the parent is gone already. Not done in
`preexec_fn`, which is unsafe in a process with threads.

A child has a process group of its own, but not a session: Linux may schedule each session as one
group (autogroup), among which niceness counts for nothing. In one session the niceness of our threads
decides among us, and all of us together have one share beside other programs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# prctl 1 is PR_SET_PDEATHSIG. The kernel ties it to the thread that forked: start children from
# the main thread.
_BECOME = """
import ctypes, os, signal, sys
parent, death_signal, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(death_signal), 0, 0, 0)
    os.getppid() == int(parent) or os._exit(71)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(command[0], command)
"""


def start_child(
    command: Sequence[str | Path],
    *,
    log: IO[bytes],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    keep_open: Sequence[int] = (),
    death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """
    Start `command` (its first word an absolute path) and return the process.

    Args:
        log: takes what the child prints.
        env: the child's whole environment; None hands on ours.
        keep_open: descriptors that the child inherits, for locks that live as long as it does.
        death_signal: what the kernel sends when we die; only SIGKILL ends a stopped child.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BECOME]
        + [str(os.getpid()), str(int(death_signal))]
        + [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        cwd=cwd,
        pass_fds=keep_open,
        process_group=0,  # Ctrl-C goes to the parent, which stops its children in order
    )


def stop_child(process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Send SIGTERM, wait, and kill what is still there; return whether it left by itself."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
