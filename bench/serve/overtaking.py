"""
Images a second over what a user would run instead, all zero-shot with the frozen model.

Whoever is not asked is stopped meanwhile: LitServe looks for work without a pause, and would take a
part of the machine from whoever is measured beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

from bench.load import run_load
from bench.measure import Spread, interleaved, ratio_of, spread_of
from bench.running import Process
from bench.serve.findings import Findings
from bench.serve.peers.start import Peer, peers, running, stream
from bench.serve.stage import LABELS, ZERO_SHOT, Stage
from everlens.errors import EverlensError
from everlens.model.backbone import STARTER

MUST = 1.3
# Without batches more connections only queue: a plain handler is asked by the first number, and so
# is everybody where there is nobody else.
CONCURRENCIES = (8, 32, 64)
_OURS = "everlens"
_PLAIN = "plain"

Asked = Callable[[int, float], float]  # connections and seconds → images a second


def measure(stage: Stage) -> Findings:
    """Measure everybody at the concurrency that is best for him, in rounds that take turns."""
    found, options = Findings(), stage.options
    reason = "no peer can load the starter" if options.model == STARTER else ""
    if stage.backbone.device.type != "cpu":
        reason = "the peers here answer on a CPU"
    if reason:
        found.add("over the better peer", f"not measured: {reason}")
        return found
    bfloat16 = stage.backbone.precision == torch.bfloat16
    service = stage.service
    running_all = {_OURS: service.process}
    asked: dict[str, Asked] = {
        _OURS: lambda c, s: service.under_load(c, s, ZERO_SHOT).rate,
    }
    kinds: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        processes: dict[Peer, Process] = {}
        folders = stage.folder / "peers", options.out / "peers"
        wanted = peers(installed=options.peers, bfloat16=bfloat16)
        for peer in wanted:
            with _or_said(found, peer):
                running_peer = running(peer, options.model, LABELS, *folders)
                processes[peer] = stack.enter_context(running_peer)
        for peer, process in processes.items():  # which started beside each other
            with _or_said(found, peer):
                process.until_ready()
                ask = _asking(peer, process, stage)
                ask(1, 0.2)
                asked[peer.name], kinds[peer.name] = ask, peer.kind
            running_all[peer.name] = process
        asked = {name: partial(_alone, name, ask, running_all) for name, ask in asked.items()}
        alone = set(kinds.values()) <= {_PLAIN}
        tried = {
            name: CONCURRENCIES[: 1 if alone or kinds.get(name) == _PLAIN else None]
            for name in asked
        }
        best = {name: _best(ask, tried[name], options.seconds / 2) for name, ask in asked.items()}
        rates = interleaved(
            {name: partial(ask, best[name], options.seconds) for name, ask in asked.items()},
            options.rounds,
        )
    for name, values in rates.items():
        found.add(f"images/s zero-shot: {name}, concurrency {best[name]}", spread_of(values))
    _compare(found, rates, kinds, peers_asked=options.peers, whole=len(kinds) == len(wanted))
    found.keep(zero_shot=rates, concurrency=best)
    return found


@contextlib.contextmanager
def _or_said(found: Findings, peer: Peer) -> Iterator[None]:
    """Say in the table why a peer is not measured."""
    try:
        yield
    except EverlensError as error:
        found.add(peer.name, f"not measured: {' '.join(str(error).split())[-300:]}")


def _alone(
    name: str, ask: Asked, processes: Mapping[str, Process], connections: int, seconds: float
) -> float:
    """Return the rate of one while the others are stopped."""
    others = [process for other, process in processes.items() if other != name]
    for process in others:
        process.pause()
    try:
        return ask(connections, seconds)
    finally:
        for process in others:
            process.resume()


def _best(ask: Asked, tried: Sequence[int], seconds: float) -> int:
    """Return the number of connections of which the most is answered, by one load each."""
    return tried[0] if len(tried) == 1 else max(tried, key=lambda c: ask(c, seconds))


def _asking(peer: Peer, process: Process, stage: Stage) -> Asked:
    def ask(connections: int, seconds: float) -> float:
        asked = stream(peer, stage.bodies, connections)
        return run_load(process.port, asked, seconds).succeeded().rate

    return ask


def _compare(
    found: Findings,
    rates: dict[str, list[float]],
    kinds: dict[str, str],
    *,
    peers_asked: bool,
    whole: bool,
) -> None:
    """
    Add our rate over the better plain handler's and over the best of all.

    Args:
        found: where to.
        rates, kinds: of everybody who was measured, by name.
        peers_asked: whether other servers were asked for.
        whole: whether nobody is missing; else it may have been the best, and being faster than the
            others proves nothing.
    """
    plain = [name for name, kind in kinds.items() if kind == _PLAIN]
    if plain:
        strongest, ratio = _over_best(rates, plain)
        found.add(f"over the plain handler ({strongest})", ratio, over_plain_handler=ratio.median)
    if len(plain) == len(kinds):
        why = "no peer could be started" if peers_asked else "ask with --peers"
        found.add("over the better peer", f"not measured: {why}", f">= {MUST}")
        return
    # Also over a plain handler, where that is the better one.
    strongest, ratio = _over_best(rates, list(kinds))
    found.add(
        f"over the better peer ({strongest})",
        ratio,
        f">= {MUST}",
        ok=(True if whole else None) if ratio.median >= MUST else False,
        over_best_peer=ratio.median,
    )


def _over_best(rates: dict[str, list[float]], names: list[str]) -> tuple[str, Spread]:
    """Return the fastest of some, and our rate over his."""
    strongest = max(names, key=lambda name: spread_of(rates[name]).median)
    return strongest, ratio_of(rates[_OURS], rates[strongest])
