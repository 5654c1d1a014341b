"""
Many queries, one forward pass: a queue and the one thread that runs the model. ⑨

The thread takes what waits and never sets a timer while idle. It lingers, for at most a tenth of
a forward pass, only while pictures are being decoded: else a closed circle of clients falls into
two half-filled batches that take turns for ever. Where many wait a batch is as large as is fastest.
The current snapshot is looked up once a batch, so a hot swap takes effect between two batches and
never within one.

Shape suffixes: B pictures, K candidates of one query, T lines of an answer, X experts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from everlens.model.classes import Table
from everlens.model.fusion import Scores, expert_shares, fuse
from everlens.model.runtime import use_threads_here
from everlens.model.snapshot import Ranked, Snapshot, Views, joined
from everlens.pixels import Pixels
from service.ahead import Seen
from service.batch_sizes import BatchSizes
from service.metrics import Metrics
from service.names import NameVectors
from service.passes import Passes
from service.problems import Problem
from service.serving import Serving

_LINGER_S_MAX = 0.020
_LINGER_SHARE = 0.1

# New names are computed in slices of this length before each pass, so that a request with a
# thousand of them, or many with one, do not keep the others waiting; so many at once, since a pass
# over one short name takes as long as reading all weights does.
_NAMES_S = 0.050
_NAMES_TOGETHER = 8

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """
    One picture; `labels` None asks for the learnt classes, `snapshot` None for the current.

    What was `seen` of it before is not seen again by the same towers.
    """

    pixels: Pixels
    labels: tuple[str, ...] | None
    top: int
    snapshot: Snapshot | None = None
    explain: bool = False
    seen: Seen | None = None


class Shares(NamedTuple):
    """What each expert has in one line's score; the adapter's is None in a version without one."""

    zero_shot: float
    evidence: float
    adapter: float | None


class Explanation(NamedTuple):
    """Why a query was answered so: the shares in each line, and its frozen feature (float32)."""

    shares: list[Shares]
    feature: bytes


class Answer(NamedTuple):
    """The most probable candidates, the best first, and the version that ranked them."""

    ranked: list[Ranked]
    known: float | None
    version: int
    learned_through: int
    explanation: Explanation | None  # where the query asked for it


@dataclass(slots=True, eq=False)
class _Ask:
    """Queries of one request, and the vectors of their names as far as they are computed."""

    queries: Sequence[Query]
    future: asyncio.Future[Any]
    vectors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Call:
    """Something else to be done on the model thread."""

    function: Callable[[], Any]
    future: asyncio.Future[Any]


class Batcher:
    """Answers queries in batches of at most `batch_max` pictures, on so many threads of torch."""

    def __init__(
        self,
        serving: Serving,
        names: NameVectors,
        metrics: Metrics,
        *,
        batch_max: int,
        queued_max: int,
        threads: int = 0,
    ) -> None:
        self.serving = serving
        self.names = names
        self.metrics = metrics
        self.sizes = BatchSizes(batch_max)
        self.queued_max = queued_max
        self._queue: queue.SimpleQueue[_Ask | _Call | None] = queue.SimpleQueue()
        self._queued = 0
        self._decoding = 0
        self._forward_s = 0.0
        self._loop = asyncio.get_running_loop()
        self.passes = Passes(threads or torch.get_num_threads())
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nobody asks."""
        return self._queued == 0

    async def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """
        Return the answers in the order of the queries, all by one version unless they name theirs.

        Raises:
            Problem: 503 when too many queries wait.
        """
        with self.places(len(queries)):
            future: asyncio.Future[list[Answer]] = self._loop.create_future()
            self._queue.put(_Ask(queries, future))
            return await future

    @contextlib.contextmanager
    def places(self, count: int) -> Iterator[None]:
        """
        Hold so many places of the queue.

        Raises:
            Problem: 503 when too many queries wait.
        """
        if self._queued + count > self.queued_max:
            raise Problem("busy", "too many queries wait; send this again", retry_after_s=1)
        self._queued += count
        self.metrics.queued.set(self._queued)
        try:
            yield
        finally:
            self._queued -= count
            self.metrics.queued.set(self._queued)

    async def call(self, function: Callable[[], Result]) -> Result:
        """Return what `function` returns, called on the model thread between two batches."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put(_Call(function, future))
        return await future

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Announce a picture that will be asked about soon."""
        self._decoding += 1
        try:
            yield
        finally:
            self._decoding -= 1

    async def stop(self) -> None:
        """Answer what waits, then end the thread; return at once when it hangs."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, 1.0)
        self.passes.close()

    def _run(self) -> None:
        use_threads_here(self.passes.threads)
        while True:
            items = self._take()
            for item in items:
                if isinstance(item, _Call):
                    self._deliver([(item.future, _outcome(item.function))])
            self._answer([item for item in items if isinstance(item, _Ask)])
            if None in items:
                return

    def _take(self) -> list[_Ask | _Call | None]:
        """Return what waits, up to a full batch; block while nothing does."""
        items = [self._queue.get()]
        # Who was answered last asks again while this batch passes, and is the next one.
        full = max(self.sizes.small, self.sizes.choose(1 + self._queue.qsize()))
        pictures = _pictures(items[0])
        deadline = time.monotonic() + min(_LINGER_S_MAX, _LINGER_SHARE * self._forward_s)
        while pictures < full and items[-1] is not None:
            linger_s = deadline - time.monotonic() if pictures and self._decoding else 0.0
            try:
                items.append(self._queue.get(block=linger_s > 0, timeout=max(0.0, linger_s)))
            except queue.Empty:
                break
            pictures += _pictures(items[-1])
        return items

    def _answer(self, asks: list[_Ask]) -> None:
        current = self.serving.current
        deadline = time.monotonic() + _NAMES_S
        ready = []
        for ask in asks:
            if ask.future.cancelled():
                continue
            found = _outcome(partial(self._found_names, ask, deadline))
            if isinstance(found, Exception):
                self._deliver([(ask.future, found)])
            elif found:
                ready.append(ask)
            else:
                self._queue.put(ask)
        if not ready:
            return
        queries = [query for ask in ready for query in ask.queries]
        vectors = {name: vector for ask in ready for name, vector in ask.vectors.items()}
        # Whatever the model raises belongs to these requests; the thread must go on.
        outcome = _outcome(lambda: _answers(queries, current, vectors, self._forward))
        delivered: list[tuple[asyncio.Future[Any], Any]] = []
        start = 0
        for ask in ready:
            share = slice(start, start + len(ask.queries))
            start = share.stop
            delivered.append(
                (ask.future, outcome if isinstance(outcome, Exception) else outcome[share])
            )
        self._deliver(delivered)

    def _found_names(self, ask: _Ask, deadline: float) -> bool:
        """Look up or compute the vectors of all names; False when the slice of time is over."""
        wanted = dict.fromkeys(name for query in ask.queries for name in query.labels or ())
        new = []
        for name in wanted.keys() - ask.vectors.keys():
            vector = self.names.known(name)
            if vector is None:
                new.append(name)
            else:
                ask.vectors[name] = vector
        # By length, since a pass is as long as its longest name.
        new.sort(key=lambda name: (len(name), name))
        for start in range(0, len(new), _NAMES_TOGETHER):
            if time.monotonic() > deadline:
                return False
            ask.vectors |= self.names.compute(new[start : start + _NAMES_TOGETHER])
        return True

    def _forward(self, snapshot: Snapshot, pixels: list[Pixels]) -> Views:
        """Return the views of these pictures; a long list is seen a batch at a time."""
        slices, rest = [], pixels
        while rest:
            size = self.sizes.choose(len(rest))
            part, rest = rest[:size], rest[size:]
            # Of a processor the thread's own time decides: on the clock a pass takes longer the more
            # requests come meanwhile, and smaller batches let more of them come.
            on_cpu = snapshot.backbone.device.type == "cpu"
            clock = time.thread_time if on_cpu else time.monotonic
            started, begun = time.monotonic(), clock()
            slices.append(self.passes.see(snapshot, part))
            self.sizes.timed(size, clock() - begun)
            self._forward_s = time.monotonic() - started
            self.metrics.forward_seconds.observe(self._forward_s)
            self.metrics.batch_pictures.observe(len(part))
        return joined(slices)

    def _deliver(self, outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, outcomes)


def _pictures(item: _Ask | _Call | None) -> int:
    return len(item.queries) if isinstance(item, _Ask) else 0


def _outcome(function: Callable[[], Any]) -> Any:
    """Return what the function returns, or the exception it raises."""
    try:
        return function()
    except Exception as error:
        return error


def _settle(outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _answers(
    queries: list[Query],
    current: Snapshot,
    vectors: dict[str, Tensor],
    forward: Callable[[Snapshot, list[Pixels]], Views],
) -> list[Answer]:
    """Return the answers in order: one forward pass for each snapshot that is asked."""
    answers: dict[int, Answer] = {}
    by_snapshot: dict[int, list[int]] = {}
    for place, query in enumerate(queries):
        by_snapshot.setdefault(id(query.snapshot or current), []).append(place)
    for places in by_snapshot.values():
        snapshot = queries[places[0]].snapshot or current
        views = _views(snapshot, [queries[place] for place in places], forward)
        by_labels: dict[tuple[str, ...] | None, list[int]] = {}
        for row, place in enumerate(places):
            by_labels.setdefault(queries[place].labels, []).append(row)
        for labels, rows in by_labels.items():
            asked, names, text_KE = _candidates(snapshot, current, labels, vectors)
            own = views.rows(rows)
            scores = asked.scores(own, labels, text_KE)
            fused = fuse(scores, asked.fusion)
            # A version that has learnt nothing cannot say what is unlike all it has learnt.
            known_B = (
                fused.known_B.tolist() if snapshot.evidence is not None else [None] * len(rows)
            )
            for b, row in enumerate(rows):
                query, probability_K = queries[places[row]], fused.probability_BK[b].cpu()
                answers[places[row]] = Answer(
                    snapshot.rank(names, probability_K, query.top),
                    known_B[b],
                    snapshot.version,
                    snapshot.learned_through,
                    _explanation(asked, scores.picture(b), own.feature_BD[b], probability_K, query)
                    if query.explain
                    else None,
                )
    return [answers[place] for place in range(len(queries))]


def _views(
    snapshot: Snapshot,
    queries: list[Query],
    forward: Callable[[Snapshot, list[Pixels]], Views],
) -> Views:
    """Return the views of the queries' pictures in order; one pass over those not seen before."""
    before = [q.seen.views if q.seen and q.seen.holds_for(snapshot) else None for q in queries]
    new = [query.pixels for query, views in zip(queries, before, strict=True) if views is None]
    if len(new) == len(queries):
        return forward(snapshot, new)
    found = forward(snapshot, new) if new else None
    rows = (found.rows([row]) for row in range(len(new))) if found is not None else iter(())
    return joined([next(rows) if views is None else views for views in before])


def _candidates(
    snapshot: Snapshot,
    current: Snapshot,
    labels: tuple[str, ...] | None,
    vectors: dict[str, Tensor],
) -> tuple[Snapshot, Sequence[str], Tensor | Table]:
    """Return which version scores the candidates, their names, and the vectors of these."""
    if labels is not None:
        return snapshot, labels, torch.stack([vectors[name] for name in labels])
    if snapshot.version == 0:  # the base has learnt no names: it ranks those learnt since
        snapshot = replace(current, evidence=None, adapter=None, adapter_text_CE=None)
    return snapshot, snapshot.learnt, snapshot.classes.text_CE


def _explanation(
    snapshot: Snapshot, scores: Scores, feature_D: Tensor, probability_K: Tensor, query: Query
) -> Explanation:
    """Return why one picture was answered so; as much work as scoring it, for those who ask."""
    score_T, place_T = probability_K.topk(min(query.top, len(probability_K)))
    share_TX = expert_shares(scores, snapshot.fusion)[0].cpu()[place_T] * score_T[:, None]
    tuned = snapshot.adapter is not None
    return Explanation(
        [
            Shares(text, evidence, adapter if tuned else None)
            for text, evidence, adapter in share_TX.tolist()
        ],
        feature_D.cpu().numpy().astype("<f4").tobytes(),
    )
