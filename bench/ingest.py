"""
How fast labelled pictures are accepted, over a bare loop: `python -m bench.ingest`.

The bare loop does in one process what must be done whoever does it: decode, bring to size, encode,
on all cores, and add to the same server with the same fsync. The second part fills the backlog to its limit and goes
on sending: what is refused must cost no memory. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.load import Outcome, Stream, form_of, http_request, run_load
from bench.measure import DEFAULT_OUT, finish, interleaved, ratio_of, spread_of, table
from bench.pictures import photographs
from bench.running import Process, log_server, memory_bytes, scratch, service
from bench.serve.bare import decoded
from bench.serve.findings import HEADER, Findings
from bench.versions import Head
from everlens.bus.connect import connect
from everlens.bus.server import EmbeddedServer
from everlens.model.backbone import STARTER, load_backbone
from everlens.model.runtime import choose_device
from everlens.pixels import PixelSpec, encode_pixels
from everlens.records import Sample
from everlens.wire import encode_sample

MUST = 0.8
BATCH = 64
GROWTH_BYTES = 8 * 2**20
_BACKLOG_BYTES = 4 * 2**20
_NDJSON = {"Content-Type": "application/x-ndjson"}
_JSON = {"Content-Type": "application/json"}
_LABELS = tuple(f"class {k}" for k in range(10))
_ID_WINDOW = 1000


@dataclass(frozen=True, slots=True)
class Form:
    """
    One way to send samples.

    Args:
        name: in the table.
        samples: in one request.
        stream: of the load.
    """

    name: str
    samples: int
    stream: Stream


def forms(bodies: Sequence[bytes]) -> list[Form]:
    """Return the ways that `POST /samples` takes, each with enough connections to fill it."""
    lines = list(itertools.islice(_lines(bodies), BATCH))
    multipart = []
    for body, label in zip(bodies, itertools.cycle(_LABELS), strict=False):
        form, headers = form_of(body, label=label)
        multipart.append(http_request("POST", "/samples", form, headers))
    single = [http_request("POST", "/samples", line, _JSON) for line in lines]
    listed = http_request("POST", "/samples", b"[" + b",".join(lines) + b"]", _JSON)
    ndjson = http_request("POST", "/samples", b"\n".join(lines), _NDJSON)
    return [
        Form("multipart", 1, Stream(multipart, 16)),
        Form("JSON", 1, Stream(single, 16)),
        Form(f"JSON list of {BATCH}", BATCH, Stream([listed], 4)),
        Form(f"NDJSON of {BATCH}", BATCH, Stream([ndjson], 4)),
    ]


def _lines(bodies: Sequence[bytes]) -> Iterator[bytes]:
    for body, label in zip(itertools.cycle(bodies), itertools.cycle(_LABELS), strict=False):
        yield json.dumps({"image": base64.b64encode(body).decode(), "label": label}).encode()


def bare_rate(url: str, bodies: Sequence[bytes], spec: PixelSpec, seconds: float) -> float:
    """Return samples a second that one process adds, a batch in one call while the next is made."""
    offers = zip(itertools.count(), itertools.cycle(bodies), itertools.cycle(_LABELS), strict=False)

    def payload_of(offer: tuple[int, bytes, str]) -> bytes:
        number, body, label = offer
        image = encode_pixels(decoded(body, spec))
        return encode_sample(Sample(str(number), label, image, None))

    cores = len(os.sched_getaffinity(0))
    with contextlib.closing(connect(url)) as client, ThreadPoolExecutor(cores) as pool:

        def started() -> Iterator[bytes]:
            return pool.map(payload_of, list(itertools.islice(offers, BATCH)))

        upcoming = started()
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            payloads, upcoming = list(upcoming), started()
            pipe = client.pipeline(transaction=False)
            for payload in payloads:
                pipe.xadd("bare", {"kind": "sample", "payload": payload})
            pipe.execute()
            done += len(payloads)
        elapsed = time.perf_counter() - begun
        client.delete("bare")
    return done / elapsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both parts and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ingest", description="How fast labelled pictures are accepted."
    )
    parser.add_argument("--model", default="ViT-B-32", help="`starter`, or an open_clip name")
    parser.add_argument("--pretrained", help="as EVERLENS_PRETRAINED; random by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    asked = parser.parse_args(arguments)
    pretrained = asked.pretrained or ("" if asked.model == STARTER else "random")
    settings = {"model": asked.model, "pretrained": pretrained, "device": "cpu"}
    backbone = load_backbone(asked.model, pretrained, device=choose_device("cpu"))
    torch.set_num_threads(1)  # the bare loop has a thread a core already
    bodies, spec = photographs(), backbone.pixels
    del backbone
    found, begun = Findings(), time.monotonic()
    with scratch() as folder, log_server(folder) as server:
        with (
            _log(server.url, "rate") as head,
            service(
                server.url,
                folder / "rate",
                namespace="rate",
                max_backlog_samples=10**7,
                max_backlog_bytes=2**32,
                **settings,
            ) as process,
        ):
            rates = _rates(process, head, server.url, bodies, spec, asked.rounds, asked.seconds)
        _compare(found, rates)
        with (
            _log(server.url, "limit"),
            service(
                server.url,
                folder / "limit",
                namespace="limit",
                max_backlog_bytes=_BACKLOG_BYTES,
                **settings,
            ) as process,
        ):
            _refuse(found, process, server, bodies, asked.seconds)
    print("\n" + table(HEADER, [line.cells() for line in found.lines]))
    print(f"{asked.model}, {asked.rounds} rounds, {time.monotonic() - begun:.0f} s")
    finish("ingest", asked.out, found.raw, found.figures)
    return 0


@contextlib.contextmanager
def _log(url: str, namespace: str) -> Iterator[Head]:
    """Give a log that exists and has no learner."""
    with contextlib.closing(Head(url, namespace)) as head:
        yield head


def _rates(
    process: Process,
    head: Head,
    url: str,
    bodies: Sequence[bytes],
    spec: PixelSpec,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Return samples a second by way, the bare loop's among them."""

    def turn(form: Form) -> Callable[[], float]:
        def one() -> float:
            rate = form.samples * run_load(process.port, form.stream, seconds).succeeded().rate
            head.forget_samples(_ID_WINDOW)  # else the server's memory would grow by the round
            return rate

        return one

    contenders: dict[str, Callable[[], float]] = {
        "bare": lambda: bare_rate(url, bodies, spec, seconds)
    }
    contenders |= {form.name: turn(form) for form in forms(bodies)}
    return interleaved(contenders, rounds)


def _compare(found: Findings, rates: dict[str, list[float]]) -> None:
    bare = rates["bare"]
    found.add(
        "samples/s of the bare loop", spread_of(bare), bare_samples_per_s=spread_of(bare).median
    )
    ratios = {name: ratio_of(values, bare) for name, values in rates.items() if name != "bare"}
    best = max(ratios, key=lambda name: ratios[name].median)
    for name, ratio in ratios.items():
        found.add(f"{name}: samples/s", spread_of(rates[name]))
        must = name == best
        found.add(
            f"{name}, over the bare loop",
            ratio,
            f">= {MUST}" if must else "",
            ok=ratio.median >= MUST if must else None,
        )
    found.figures["over_bare_loop"] = round(ratios[best].median, 4)
    found.keep(rates=rates)


def _refuse(
    found: Findings,
    process: Process,
    server: EmbeddedServer,
    bodies: Sequence[bytes],
    seconds: float,
) -> None:
    """Fill the backlog, then compare memory before and after more of what is refused."""
    stream = forms(bodies)[0].stream
    assert server.process is not None
    pids = {"service": process.process.pid, "server": server.process.pid}
    # Twice: the first fills the backlog, and the buffers that refusing needs.
    outcomes = [run_load(process.port, stream, seconds) for _ in range(2)]
    before = {name: memory_bytes(pid) for name, pid in pids.items()}
    outcomes += [run_load(process.port, stream, seconds) for _ in range(2)]
    after = {name: memory_bytes(pid) for name, pid in pids.items()}
    refused = [outcome.statuses.get(429, 0) for outcome in outcomes]
    other = sum(_other(outcome) for outcome in outcomes)
    full = refused[-1] > 0 and not outcomes[-1].statuses.get(202, 0)
    found.add(
        f"backlog at its limit ({_BACKLOG_BYTES >> 20} MB): refused with 429, other failures",
        f"{sum(refused)}, {other}",
        "none accepted, no other",
        ok=full and not other,
    )
    for name in pids:
        growth = after[name] - before[name]
        found.add(
            f"memory of the {name} meanwhile",
            f"{growth / 2**20:+.3g} MB of {before[name] / 2**20:.0f}",
            f"<= {GROWTH_BYTES >> 20} MB",
            ok=growth <= GROWTH_BYTES,
            **{f"{name}_growth_mb": growth / 2**20},
        )
    found.keep(refused=refused, memory_before=before, memory_after=after)


def _other(outcome: Outcome) -> int:
    """Return how many answers were neither accepted nor refused for the limit."""
    known = {202, 429}
    return outcome.lost + sum(n for status, n in outcome.statuses.items() if status not in known)


if __name__ == "__main__":
    sys.exit(main())
