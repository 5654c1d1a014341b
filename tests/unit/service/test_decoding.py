"""Pictures are decoded by real children, which are killed, stopped and fed with bombs here."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image
from skimage import data

from everlens.errors import ImageError
from everlens.pixels import PixelSpec
from everlens.settings import Settings
from service.decoder import process
from service.decoder.process import Decoder
from service.decoder.protocol import (
    REPLY_BYTES,
    Declined,
    Decoded,
    Large,
    PictureLimits,
    decode_reply,
    encode_reply,
)
from service.decoding import DecodingPool
from service.metrics import Metrics
from service.problems import Problem
from tests.unit.service import bombs
from tests.unit.service.api import LIMITS, encoded, read_picture
from tests.unit.service.conftest import Start
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio

SPEC = PixelSpec(size=64)
PHOTO = encoded(data.coffee())
LARGE = bombs.flat_png(2100, 2100)

needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="Linux shows it in /proc")


class Pool(DecodingPool):
    """A pool with eyes: its metrics, and its only decoder where it has one."""

    def __init__(self, limits: PictureLimits = LIMITS, **options) -> None:
        self.metrics = Metrics()
        super().__init__(limits, self.metrics, **({"decoders": 1, "picture_s": 60.0} | options))
        self.start()

    @property
    def pid(self) -> int:
        (decoder,) = self.decoders
        assert decoder.pid is not None
        return decoder.pid

    def give(self, picture_s: float) -> None:
        """Let the pictures that come from now on take so long."""
        for decoder in self.decoders:
            decoder.picture_s = picture_s

    def figure(self, kind: str) -> float:
        return self.metrics.registry.get_sample_value(f"everlens_decode_seconds_{kind}") or 0.0

    def restarts(self, reason: str) -> float:
        name = "everlens_decoder_restarts_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


@pytest.fixture
def pools() -> Iterator[type[Pool]]:
    """Makes pools that are closed after the test."""
    made = []

    class Kept(Pool):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            made.append(self)

    yield Kept
    for pool in made:
        pool.close()


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set whenever a child has been handed a picture."""
    event, ask = threading.Event(), Decoder._ask

    def asking(decoder: Decoder, *args, **options):
        child = ask(decoder, *args, **options)
        event.set()
        return child

    monkeypatch.setattr(Decoder, "_ask", asking)
    return event


async def refusal(pool: DecodingPool, content: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        await pool.read(content, SPEC)
    return caught.value


async def stopped(pool: Pool) -> int:
    """Stop the pool's only child, once it is ready, and return its number."""
    await pool.read(PHOTO, SPEC)
    os.kill(pool.pid, signal.SIGSTOP)
    return pool.pid


def about(pid: int, file: str) -> str:
    """Return a file of /proc about a process; empty when the process has ended."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if "\nState:\tZ" in text else text


def memory_mb(pid: int, field: str = "VmRSS") -> int:
    """Return a field of /proc/pid/status, 0 when the process has ended."""
    lines = [line for line in about(pid, "status").splitlines() if line.startswith(f"{field}:")]
    return int(lines[0].split()[1]) // 1024 if lines else 0


def bounds(pid: int) -> dict[str, str]:
    """Return the limits of a process by their names."""
    lines = about(pid, "limits").splitlines()[1:]
    return {line[4:26].strip(): line[26:47].strip() for line in lines}


def open_files(pid: int) -> list[str]:
    return [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]


async def gone(pid: int) -> None:
    """Return when a process has ended."""
    async with asyncio.timeout(60):
        while about(pid, "status"):  # noqa: ASYNC110  # the kernel has no event for us
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
async def test_a_child_decodes_to_the_same_pixels(pools, form, resize):
    """What comes through a child is what one process makes of the file, at any model's size."""
    pool = pools()
    content = encoded(data.coffee(), form)
    for size in (64, 400):  # 400 is the picture's own height
        spec = PixelSpec(size=size, resize=resize)
        assert np.array_equal(read_picture(content, spec), await pool.read(content, spec))


async def test_the_wait_for_a_decoder_counts(pools):
    """Where pictures wait their time says so, that of a list's and of a large one's too, once each."""
    pool = pools()
    pid = await stopped(pool)
    before = pool.figure("sum"), pool.figure("count")
    reading = [asyncio.create_task(pool.read(content, SPEC)) for content in (PHOTO, PHOTO, LARGE)]
    reading.append(asyncio.create_task(pool.make([PHOTO] * 2, SPEC, lambda _, pixels: pixels)))
    await asyncio.sleep(0.5)
    os.kill(pid, signal.SIGCONT)
    *_, listed = await asyncio.gather(*reading)
    pictures = 3 + len(listed)
    assert pool.figure("count") - before[1] == pictures
    assert pool.figure("sum") - before[0] >= 0.25 * pictures


async def test_pixels_outlive_the_next_picture(pools):
    """A picture that needs no resizing is not changed by the one that is decoded after it."""
    pool, spec = pools(), PixelSpec(size=64)
    grey, white = (encoded(Image.new("RGB", (64, 64), (shade,) * 3), "PNG") for shade in (99, 255))
    first = await pool.read(grey, spec)
    await pool.read(white, spec)
    assert 99 == first.min() == first.max()


async def test_reasons_travel(pools):
    """A refusal has the words and the status that the child gave it; the child goes on."""
    pool = pools()
    assert (await refusal(pool, b"hello")).status == 415
    cut = await refusal(pool, PHOTO[: len(PHOTO) // 2])
    assert cut.status == 422
    assert "damaged" in str(cut)
    with pytest.raises(ImageError) as expected:
        read_picture(PHOTO[: len(PHOTO) // 2], SPEC)
    assert str(expected.value) == str(cut)
    assert 0 == sum(map(pool.restarts, ("died", "timeout", "start")))


async def test_files_over_the_limit_meet_no_child(pools):
    """A file that is larger than the memory for files is refused before it is copied there."""
    error = await refusal(pools(), b"\xff\xd8\xff" + bytes(LIMITS.bytes_max))
    assert error.status == 422
    assert str(LIMITS.bytes_max) in str(error)


@needs_proc
async def test_a_child_is_bounded(pools, monkeypatch):
    """A child has little memory, few descriptors, no way to write or to start anything."""
    monkeypatch.setenv("EVERLENS_REDIS_URL", "redis://:secret@somewhere")
    pool = pools()
    await pool.read(PHOTO, SPEC)
    limits = bounds(pool.pid)
    for kind in ("core file size", "file size", "processes"):
        assert limits[kind] == "0"
    assert limits["open files"] == "16"
    budget = 18 * LIMITS.decoded_max
    assert budget < int(limits["address space"]) < 2 * budget
    files = open_files(pool.pid)
    assert len(files) == 5, files
    assert 1 == sum("memfd:everlens" in name for name in files)
    assert 1 == sum(name.startswith("socket:") for name in files), "only the one to its parent"
    assert "PATH" in about(pool.pid, "environ")
    assert "secret" not in about(pool.pid, "environ")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_a_crash_refuses_only_its_picture(pools, number, handed):
    """A child that dies over a picture costs that picture a 422; the next one is decoded."""
    pool = pools()
    pid = await stopped(pool)
    handed.clear()
    reading = asyncio.create_task(pool.read(PHOTO, SPEC))
    await until(handed.is_set)
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(ImageError, match=number.name) as caught:
        await reading
    assert caught.value.status == 422
    assert (await pool.read(PHOTO, SPEC)).shape == (64, 64, 3)
    assert pool.restarts("died") == 1


async def test_a_child_that_hangs_is_replaced(pools):
    """A stopped child with the largest file before it is killed at the deadline, not waited for."""
    pool = pools()
    pid = await stopped(pool)
    pool.give(picture_s=2.0)
    started = time.monotonic()
    error = await refusal(pool, PHOTO + bytes(LIMITS.bytes_max - len(PHOTO)))
    assert time.monotonic() - started > 1.9
    assert error.status == 422
    assert "longer than 2 s" in str(error)
    await gone(pid)
    pool.give(picture_s=60.0)
    assert (await pool.read(PHOTO, SPEC)).shape == (64, 64, 3)
    assert pool.restarts("timeout") == 1


async def test_a_child_lost_while_idle_is_nobodys_fault(pools):
    """A child that was killed between pictures is replaced, and the next picture is decoded."""
    pool = pools()
    await pool.read(PHOTO, SPEC)
    pid = pool.pid
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    assert (await pool.read(PHOTO, SPEC)).shape == (64, 64, 3)
    assert pool.pid != pid
    assert pool.restarts("died") == 1


async def test_a_pool_without_children_says_so_and_recovers(pools, monkeypatch):
    """While no child starts, pictures get a 503 and starts a back-off; later all is well again."""
    with monkeypatch.context() as broken:
        broken.setattr(process, "_COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
        pool = pools()
        for _ in range(20):
            with pytest.raises(Problem) as caught:
                await pool.read(PHOTO, SPEC)
            assert (caught.value.status, caught.value.retry_after_s) == (503, 5)
            await asyncio.sleep(0.01)
        # The ninth would begin after 16 s of waiting.
        assert 1 <= pool.restarts("start") <= 8
    async with asyncio.timeout(60):
        while True:
            try:
                await pool.read(PHOTO, SPEC)
                break
            except Problem:
                await asyncio.sleep(0.05)
    assert (await pool.read(PHOTO, SPEC)).shape == (64, 64, 3)


async def test_a_broken_decoder_is_not_preferred(pools, monkeypatch):
    """While one of two children does not start, pictures go to the other one."""
    pool = pools(decoders=2)
    await asyncio.gather(*[pool.read(PHOTO, SPEC) for _ in range(8)])
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    victim = pool.decoders[0]
    os.kill(victim.pid, signal.SIGKILL)
    await gone(victim.pid)
    outcomes = [await asyncio.gather(pool.read(PHOTO, SPEC), return_exceptions=True)]
    while not victim.failures:
        outcomes.append(await asyncio.gather(pool.read(PHOTO, SPEC), return_exceptions=True))
    for _ in range(20):
        assert (await pool.read(PHOTO, SPEC)).shape == (64, 64, 3)


async def test_a_long_queue_is_a_503(pools):
    """A picture that no child was free for within the wait is a 503 with Retry-After."""
    pool = pools(wait_s=0.2)
    await stopped(pool)
    pool.give(picture_s=2.0)
    reading = asyncio.create_task(pool.read(PHOTO, SPEC))
    await asyncio.sleep(0)
    with pytest.raises(Problem) as caught:
        await pool.read(PHOTO, SPEC)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2)
    with pytest.raises(ImageError):
        await reading


async def test_who_leaves_keeps_the_place_until_it_is_free(pools, handed):
    """A client that left does not hand its busy child to the next one, nor lose it to the pool."""
    pool = pools()
    await stopped(pool)
    pool.give(picture_s=2.0)
    handed.clear()
    reading = asyncio.create_task(pool.read(PHOTO, SPEC))
    await until(handed.is_set)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    following = asyncio.create_task(pool.read(PHOTO, SPEC))
    await until(lambda: pool.restarts("timeout"))
    pool.give(picture_s=60.0)
    assert (await following).shape == (64, 64, 3)
    assert pool.restarts("timeout") == 1


async def test_who_leaves_before_his_turn_is_not_decoded(pools, handed):
    """A client that left while he waited costs no decoder; his place among the lists is free."""
    pool = pools()
    pid = await stopped(pool)
    handed.clear()
    reading = asyncio.create_task(pool.read(PHOTO, SPEC))
    made = []
    waiting = asyncio.create_task(pool.make([PHOTO] * 2, SPEC, lambda index, _: made.append(index)))
    await until(lambda: handed.is_set() and len(pool._waiting) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.kill(pid, signal.SIGCONT)
    await reading
    assert await pool.make([PHOTO] * 2, SPEC, lambda index, _: index)
    assert not made


async def test_who_waits_is_next_whatever_came_of_the_one_before(pools):
    """Those who wait get their answers in their order, between refusals and errors of the maker."""
    pool, order = pools(), []

    def fails(index: int, _: np.ndarray) -> None:
        raise ZeroDivisionError

    async def asked(name: int, content: bytes, made=lambda *_: None):
        try:
            (outcome,) = await pool.make([content], SPEC, made)
        except ZeroDivisionError as error:
            outcome = error
        order.append(name)
        return type(outcome)

    outcomes = await asyncio.gather(
        asked(0, PHOTO), asked(1, PHOTO, fails), asked(2, b"hello"), asked(3, PHOTO)
    )
    assert [0, 1, 2, 3] == order
    assert [type(None), ZeroDivisionError, ImageError, type(None)] == list(outcomes)


async def test_half_a_reply_is_none(pools, monkeypatch):
    """A child that begins a reply and does not end it is replaced at the deadline."""
    half = (
        "import socket, sys, time\n"
        "port = socket.socket(fileno=int(sys.argv[1]))\n"
        "port.sendall(b'ready')\n"
        "port.recv(100)\n"
        "port.sendall(b'P')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", half))
    pool = pools(picture_s=0.5)
    started = time.monotonic()
    assert (await refusal(pool, PHOTO)).status == 422
    assert 0.4 < time.monotonic() - started < 50  # the child itself goes on for 60 s
    assert 1 == pool.restarts("died") + pool.restarts("timeout")


async def test_large_pictures_leave_a_child_to_the_others(pools):
    """However many large pictures wait, a small one is decoded among the first of them."""
    pool = pools(decoders=2)
    await pool.read(PHOTO, SPEC)
    large = [asyncio.create_task(pool.read(LARGE, SPEC)) for _ in range(16)]
    await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED)
    await pool.read(PHOTO, SPEC)
    assert 4 <= sum(not task.done() for task in large)  # in a queue it would leave one
    assert all(picture.max() == 0 for picture in await asyncio.gather(*large))


async def test_a_list_is_made_turn_by_turn_in_its_order(pools):
    """Pictures of a list come out as each alone would, with a reason for each that is refused."""
    pool = pools()
    grey = encoded(data.camera(), "PNG")
    contents = [PHOTO, b"hello", LARGE, grey, PHOTO[:5000], PHOTO]
    outcomes: list[tuple[int, np.ndarray] | ImageError] = []
    while len(outcomes) < len(contents):
        begun = len(outcomes)
        more = await pool.make(
            contents[begun:], SPEC, lambda index, pixels, begun=begun: (begun + index, pixels)
        )
        assert more
        outcomes += more
    for index, (content, outcome) in enumerate(zip(contents, outcomes, strict=True)):
        if isinstance(outcome, ImageError):
            assert str(outcome) == str(await refusal(pool, content))
        else:
            assert outcome[0] == index
            assert np.array_equal(outcome[1], await pool.read(content, SPEC))
    assert [1, 4] == [k for k, each in enumerate(outcomes) if isinstance(each, ImageError)]


async def test_a_turn_has_its_time(pools):
    """A list takes a decoder for as many pictures as begin within the time of a turn, and one."""
    for turn_s, count in ((0.0, 1), (60.0, 8)):
        pool = pools(turn_s=turn_s)
        assert list(range(count)) == await pool.make([PHOTO] * 8, SPEC, lambda index, _: index)


async def test_lists_do_not_queue_before_a_single_picture(pools):
    """However many lists wait for their turns, a single picture has its own long before the last."""
    pool = pools(decoders=2)
    await pool.read(PHOTO, SPEC)
    turns = [
        asyncio.create_task(pool.make([PHOTO] * 64, SPEC, lambda index, _: index))
        for _ in range(24)
    ]
    await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
    await pool.read(PHOTO, SPEC)
    assert 6 <= sum(not turn.done() for turn in turns)  # behind all of them it would leave one
    await asyncio.gather(*turns)


@needs_proc
async def test_memory_of_a_large_picture_is_given_back(pools):
    """After a picture of 50 MB neither the child nor the service goes on to hold its pixels."""
    pool = pools()
    await pool.read(PHOTO, SPEC)
    before = memory_mb(pool.pid), memory_mb(os.getpid())
    await pool.read(bombs.flat_png(4096, 4096), SPEC)
    after = memory_mb(pool.pid), memory_mb(os.getpid())
    assert after[0] - before[0] < 20
    assert after[1] - before[1] < 20


async def test_too_much_memory_is_refused(pools):
    """A picture inside all other limits that takes too much memory is a 422, its child goes on."""
    pool = pools(PictureLimits(2**20, 64_000_000, decoded_max=2**20))
    greedy = bombs.flat_jpeg(5000, 5000, progressive=True, subsampling=0)
    error = await refusal(pool, greedy)
    assert error.status == 422
    assert "memory" in str(error)
    assert (await pool.read(encoded(data.chelsea()), SPEC)).shape == (64, 64, 3)
    assert pool.restarts("died") == 0


@needs_proc
def test_children_die_with_their_parent():
    """A service that is killed leaves no child behind, not even a stopped one."""
    program = (
        "import asyncio, time\n"
        "from service.decoding import DecodingPool\n"
        "from service.metrics import Metrics\n"
        "from tests.unit.service.test_decoding import LIMITS, PHOTO, SPEC\n"
        "pool = DecodingPool(LIMITS, Metrics(), decoders=2)\n"
        "pool.start()\n"
        "async def both():\n"
        "    await asyncio.gather(*[pool.read(PHOTO, SPEC) for _ in range(4)])\n"
        "asyncio.run(both())\n"
        "print(*[decoder.pid for decoder in pool.decoders], flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root
    )
    with parent:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        os.kill(children[0], signal.SIGSTOP)
        parent.kill()
        parent.wait()
        for child in children:
            asyncio.run(gone(child))


def test_replies_travel():
    """Every reply comes out as it went in, a long reason cut."""
    for reply in (Decoded(3, 4, 8), Declined("cut off – like this", 422), Large()):
        assert reply == decode_reply(encode_reply(reply), LIMITS)
    assert len(encode_reply(Declined("–" * 1000, 415))) == REPLY_BYTES
    decode_reply(encode_reply(Declined("–" * 1000, 415)), LIMITS)


@pytest.mark.parametrize(
    "reply",
    [
        Decoded(0, 5, 1),
        Decoded(4097, 4096, 1),
        Decoded(2**32 - 1, 2**32 - 1, 1),
        Decoded(5, 5, 9),
        Declined("", 200),
    ],
)
def test_a_reply_that_cannot_be_true_is_no_reply(reply):
    """A child that was taken over cannot promise pixels outside its memory, or a status of its."""
    with pytest.raises(ValueError, match="no sense"):
        decode_reply(encode_reply(reply), LIMITS)
    with pytest.raises(ValueError, match="no sense"):
        decode_reply(bytes(REPLY_BYTES), LIMITS)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "png": lambda: bombs.flat_png(4096, 4096),
    "png-alpha": lambda: bombs.flat_png(4096, 4096, colour=6),
    "png-16": lambda: bombs.flat_png(4096, 4096, bits=16, colour=0),
    "png-16-alpha": lambda: bombs.flat_png(4096, 4096, bits=16, colour=6),
    "png-beyond": lambda: bombs.flat_png(4097, 4096),
    "webp": lambda: bombs.flat_webp(4096),
    "webp-lies": bombs.lying_webp,
    "jpeg-64-mpixel": lambda: bombs.flat_jpeg(8000, 8000),
    "jpeg-progressive": lambda: bombs.flat_jpeg(7000, 7000, progressive=True, subsampling=0),
    "jpeg-scans": lambda: bombs.many_scans(2000, 80),
    "jpeg-more-scans": lambda: bombs.many_scans(2000, 1000),
    "text": lambda: bombs.text_bomb(200),
    "texts": lambda: bombs.text_swarm(64),
    "cut-off": lambda: PHOTO[: len(PHOTO) // 2],
    "stripe": lambda: bombs.flat_png(65_500, 20),
    "wide-jpeg": lambda: bombs.flat_jpeg(20_000, 1700),
}


@needs_proc
@pytest.mark.slow
async def test_hostile_pictures_cost_only_so_much(started: Start, settings: Settings):
    """
    64 hostile pictures at once cost bounded memory, and others are answered meanwhile.

    Each child stays under its limit, so all together under the number of children times it; the
    service grows by what it shares with them and no more; nobody hears of an inner error.
    """
    async with started(settings.model_copy(update={"decoders": 2})) as api:
        files = [make() for make in HOSTILE.values()] * 4
        children = {decoder.pid or 0 for decoder in api.service.decoding.decoders}
        assert (await api.ask(PHOTO, labels=["a", "b"])).status_code == 200
        await asyncio.to_thread(Path("/proc/self/clear_refs").write_text, "5")  # VmHWM begins anew
        before_mb = memory_mb(os.getpid())

        begun_at = time.monotonic()
        attack = [asyncio.create_task(api.ask(file, labels=["a"])) for file in files]
        polite_s, peak_mb = [], dict.fromkeys(children, 0)
        while not all(task.done() for task in attack):
            for pid in peak_mb:
                peak_mb[pid] = max(peak_mb[pid], memory_mb(pid, "VmHWM"))
            asked_at = time.monotonic()
            answer = await api.ask(PHOTO, labels=["a", "b"])
            assert answer.status_code == 200, answer.text
            polite_s.append(time.monotonic() - asked_at)
            await asyncio.sleep(0.05)
        attack_s = time.monotonic() - begun_at

        statuses = [(await task).status_code for task in attack]
        assert set(statuses) <= {200, 422, 503}, statuses
        assert children == {decoder.pid for decoder in api.service.decoding.decoders}
        shared_mb = (LIMITS.bytes_max + 3 * LIMITS.decoded_max) / 2**20
        child_mb = 64 + 64 + (18 * LIMITS.decoded_max) / 2**20 + shared_mb
        grown_mb = memory_mb(os.getpid(), "VmHWM") - before_mb
        assert all(peak < child_mb for peak in peak_mb.values()), peak_mb
        assert grown_mb < len(children) * shared_mb + 150
        assert len(polite_s) >= 3
        assert median(polite_s) < attack_s / 4, (polite_s, attack_s)
