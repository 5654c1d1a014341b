"""
How fast labelled pictures are accepted, over a bare loop: `python -m bench.ingest`.

The bare loop does in one process what must be done whoever does it: decode, bring to size, encode,
on all cores, and add to the same server with the same fsync. Beside the rates stand the processor's
seconds: the client's are on the served side, since it shares the cores. The second part fills the
backlog to its limit and goes on sending: what is refused must cost no memory. Ends with one JSON
line.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.load import Load, Outcome, Stream, form_of, http_request, run_load
from bench.measure import DEFAULT_OUT, finish, interleaved, ratio_of, spread_of, table
from bench.pictures import photographs
from bench.running import Process, cpu_s, log_server, memory_bytes, scratch, service
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
_SETTLE_S = 0.3  # what was under way when the load ended is admitted meanwhile


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


@dataclass(frozen=True, slots=True)
class Rate:
    """
    What one contender did in one round.

    Args:
        samples_per_s: by the clock.
        cpu_s: the processor's seconds a sample, of all processes: ours or the service's, the log's
            server's, the client's.
        client_s: of these the client's.
    """

    samples_per_s: float
    cpu_s: float
    client_s: float = 0.0


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


def bare_rate(
    url: str, bodies: Sequence[bytes], spec: PixelSpec, seconds: float
) -> tuple[float, int]:
    """
    Return samples a second that one process adds, a batch in one call while the next is made, and
    how many it has added in all.
    """
    offers = zip(itertools.count(), itertools.cycle(bodies), itertools.cycle(_LABELS), strict=False)

    def payload_of(offer: tuple[int, bytes, str]) -> bytes:
        number, body, label = offer
        image = encode_pixels(decoded(body, spec))
        return encode_sample(Sample(str(number), label, image, None))

    cores = len(os.sched_getaffinity(0))
    with contextlib.closing(connect(url)) as client, ThreadPoolExecutor(cores) as pool:

        def started() -> Iterator[bytes]:
            return pool.map(payload_of, list(itertools.islice(offers, BATCH)))

        def add(payloads: Sequence[bytes]) -> int:
            pipe = client.pipeline(transaction=False)
            for payload in payloads:
                pipe.xadd("bare", {"kind": "sample", "payload": payload})
            pipe.execute()
            return len(payloads)

        upcoming = started()
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            payloads, upcoming = list(upcoming), started()
            done += add(payloads)
        elapsed = time.perf_counter() - begun
        whole = done + add(list(upcoming))  # which has cost the processor its time already
        client.delete("bare")
    return done / elapsed, whole


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
            rates = _rates(process, head, server, bodies, spec, asked.rounds, asked.seconds)
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
    server: EmbeddedServer,
    bodies: Sequence[bytes],
    spec: PixelSpec,
    rounds: int,
    seconds: float,
) -> dict[str, list[Rate]]:
    """Return what each way did in each round, the bare loop among them."""
    assert server.process is not None
    service_pid, server_pid = process.process.pid, server.process.pid
    found: dict[str, list[Rate]] = {"bare": []}

    def bare() -> float:
        before = time.process_time() + cpu_s(server_pid)
        rate, added = bare_rate(server.url, bodies, spec, seconds)
        spent_s = time.process_time() + cpu_s(server_pid) - before
        found["bare"].append(Rate(rate, spent_s / added))
        return rate

    def turn(form: Form) -> Callable[[], float]:
        found[form.name] = []

        def one() -> float:
            seq, before = head.seq, cpu_s(service_pid) + cpu_s(server_pid)
            load = Load(process.port, [form.stream], seconds)
            rate = form.samples * load.outcomes()[0].succeeded().rate
            time.sleep(_SETTLE_S)
            spent_s = cpu_s(service_pid) + cpu_s(server_pid) - before + load.cpu_s
            added = head.seq - seq
            found[form.name].append(Rate(rate, spent_s / added, load.cpu_s / added))
            head.forget_samples(_ID_WINDOW)  # else the server's memory would grow by the round
            return rate

        return one

    interleaved({"bare": bare} | {form.name: turn(form) for form in forms(bodies)}, rounds)
    return found


def _compare(found: Findings, rates: dict[str, list[Rate]]) -> None:
    per_s = {name: [each.samples_per_s for each in those] for name, those in rates.items()}
    cpu = {name: [each.cpu_s for each in those] for name, those in rates.items()}
    bare = spread_of(per_s["bare"])
    found.add(
        "samples/s of the bare loop (CPU ms a sample)",
        f"{bare} ({1e3 * spread_of(cpu['bare']).median:.3g})",
        bare_samples_per_s=bare.median,
    )
    names = [name for name in rates if name != "bare"]
    ratios = {name: ratio_of(per_s[name], per_s["bare"]) for name in names}
    for name in names:
        clients = spread_of([each.client_s for each in rates[name]]).median
        found.add(
            f"{name}: samples/s (CPU ms a sample, of these the client's)",
            f"{spread_of(per_s[name])} ({1e3 * spread_of(cpu[name]).median:.3g}, "
            f"{1e3 * clients:.2g})",
        )
        by_cpu = ratio_of(cpu["bare"], cpu[name]).median
        found.add(
            f"{name}, over the bare loop ({by_cpu:.2g} CPU)",
            ratios[name],
            f">= {MUST}",
            ok=ratios[name].median >= MUST,
        )
    medians = {name: round(ratio.median, 4) for name, ratio in ratios.items()}
    found.figures["over_bare_loop"] = min(medians.values())
    found.figures |= {
        f"over_bare_loop_{name.lower().replace(' ', '_')}": ratio for name, ratio in medians.items()
    }
    found.keep(rates={name: [asdict(each) for each in those] for name, those in rates.items()})


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
