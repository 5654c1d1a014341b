"""
A process that has imported everything and forks workers and services on request.

Importing torch and open_clip takes seconds, a fork takes 50 ms, so that hundreds of deaths fit
into minutes. A forked worker computes the bits of a fresh `python -m worker`; a case of its own
holds it to that.

Talks JSON lines: a request {"role", "environment", "log", "patches"} is answered by {"pid"}, and
every end of a child by {"pid", "code"}. Leaves, with all its children, when its input ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

# Everything that a child would import, so that it shares the pages.
import service.__main__
import service.app
import worker.__main__
from everlens.model import backbone as backbones
from tests.system.chaos.conditions import CONDITIONS
from tests.system.chaos.mutations import MUTATIONS, replace
from tests.system.chaos.victim import arm

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG

ROLES = {"worker": worker.__main__.main, "service": service.__main__.main}


def main(model_folder: str) -> None:
    """Serve requests until the input ends."""
    share_backbone(model_folder)
    # A second thread's locks would be copied in whatever state they are.
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a library started a thread"
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    say({"ready": True})
    buffer = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            reap()
        if 0 not in ready:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            os._exit(0)  # the children have us as their reason to die
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            say({"pid": fork(json.loads(line), woken, wake)})


def share_backbone(model_folder: str) -> None:
    """Load the base model once; its weights are never written to."""
    load = backbones.load_backbone
    shared = load(model_folder, "random", device=torch.device("cpu"))

    def load_shared(model: str, pretrained: str = "", **rest: Any) -> backbones.Backbone:
        if (model, pretrained) == (model_folder, "random"):
            return shared
        return load(model, pretrained, **rest)

    replace(backbones, "load_backbone", load_shared)
    replace(worker.__main__, "load_backbone", load_shared)


def say(message: dict[str, object]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def fork(request: dict[str, Any], *descriptors: int) -> int:
    """Return the id of a new child that does what the request says."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(71)
        become(request, descriptors)
    except BaseException:
        traceback.print_exc()
    os._exit(70)


def become(request: dict[str, Any], descriptors: tuple[int, ...]) -> NoReturn:
    """Be a worker or a service, as its own process would be."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in descriptors:
        os.close(descriptor)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    os.environ.update(request["environment"])
    sys.argv = [request["role"]]
    if request.get("file_bytes_max"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes_max"],) * 2)
    for name in request.get("conditions", ()):
        CONDITIONS[name]()
    for name in request.get("mutations", ()):
        MUTATIONS[name].patch()
    arm(request.get("dies"), signal.SIGKILL)
    arm(request.get("stops"), signal.SIGSTOP)
    code = ROLES[request["role"]]()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
