"""
Hostile versions, put straight into the log's server under their right digests: all refused.

Whoever can write there can store any manifest and any part, and move the head to it. Each case is a
whole version with one thing wrong. The version before it goes on answering to the last digit, the
reason is shown, memory stays where it was, and the next good version is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pickle
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Generator, Tensor

from everlens.artifact import PART_BYTES_MAX, Manifest, digest_of
from everlens.bus.server import EmbeddedServer
from everlens.client import Learning
from everlens.client.results import read
from everlens.model.adapter import AdapterSpec, insert, tensors_of
from everlens.model.backbone import Backbone
from everlens.model.classes import CHUNK
from everlens.model.fusion import Fusion
from everlens.model.parts import encode_adapter, encode_fusion, encode_record
from everlens.model.snapshot import CURVE_BINS, RECORD, Snapshot
from tests.unit.service.api import Api, learnt_parts
from tests.unit.service.conftest import lasting, settings_for
from tests.unit.service.waiting import until

pytestmark = pytest.mark.anyio

# What refusing may add to the peak of this process: the largest part that is fetched at all here
# is 20 MB, and the service, the test and the server's client each hold it for a moment.
PEAK_BYTES_MAX = 160 << 20

SPEC = AdapterSpec(tune="image", top_blocks=2, rank=2, alpha=2.0)


@pytest.fixture(scope="module")
def log_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this file's own, with room for a part of 300 MB."""
    server = EmbeddedServer(tmp_path_factory.mktemp("log"), maxmemory_bytes=1 << 30)
    server.start()
    yield server.url
    server.stop()


Stored = Callable[[Any, str], object]  # of a client and the key: how something is stored


@dataclass
class Version:
    """A version that is good until a case spoils it."""

    manifest: Manifest
    contents: dict[str, bytes]  # part name → bytes
    stored: dict[str, Stored] = field(default_factory=dict)  # how, if not SET
    digests: dict[str, str] = field(default_factory=dict)  # part name → another digest than its own
    content: bytes | None = None  # of the manifest, where it is not `encode`d
    head: Stored | None = None  # how the head is stored, if not as a head

    def put(self, api: Api) -> None:
        """Store everything and move the head to it, as no script of ours would."""
        client, keys, version = api.stream.client, api.stream.keys, self.manifest.version
        digests = {name: digest_of(content) for name, content in self.contents.items()}
        for name, content in self.contents.items():
            client.set(keys.part(digests[name]), content)
        digests |= self.digests
        manifest = dataclasses.replace(self.manifest, parts=digests)
        content = manifest.encode() if self.content is None else self.content
        for name, how in self.stored.items():
            key = keys.manifest(version) if name == "manifest" else keys.part(digests[name])
            client.delete(key)
            how(client, key)
        if "manifest" not in self.stored:
            client.set(keys.manifest(version), content)
        client.delete(keys.head)
        if self.head is None:
            client.set(keys.head, f"{version} {digest_of(content)}")
        else:
            self.head(client, keys.head)
        client.publish(keys.head, str(version))

    def fields(self, **changes: object) -> None:
        """Exchange fields of the manifest, whatever they are then."""
        digests = {n: digest_of(c) for n, c in self.contents.items()} | self.digests
        whole = dataclasses.asdict(dataclasses.replace(self.manifest, parts=digests)) | changes
        self.content = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()

    def written(self, change: Callable[[bytes], bytes]) -> None:
        """Exchange the bytes of the manifest."""
        self.fields()
        assert self.content is not None
        self.content = change(self.content)

    def tensors(self, part: str, **changes: Tensor | None) -> None:
        """Exchange tensors of a part; None takes one out."""
        found: dict[str, Tensor | None] = {**load(self.contents[part]), **changes}
        whole = {name: t.contiguous() for name, t in found.items() if t is not None}
        self.contents[part] = save(whole)

    def names(self, names: object) -> None:
        """Exchange the names of the class table."""
        text = names if isinstance(names, bytes) else json.dumps(names).encode()
        self.tensors("classes/0", names=torch.frombuffer(bytearray(text), dtype=torch.uint8))

    def spec(self, **changes: object) -> None:
        """Exchange fields of the adapter's spec."""
        text = json.dumps(dataclasses.asdict(SPEC) | changes).encode()
        self.tensors("adapter", spec=torch.frombuffer(bytearray(text), dtype=torch.uint8))


def version(base: Snapshot, pictures: Mapping[str, bytes], number: int) -> Version:
    """Return a good version with every kind of part."""
    contents = learnt_parts(base, pictures)
    _, top = base.backbone.image_tower.cut(SPEC.top_blocks)
    bent = insert(top, SPEC, Generator().manual_seed(1))
    tensors = {f"image.{name}": tensor.detach() for name, tensor in tensors_of(bent).items()}
    contents["adapter"] = encode_adapter(tensors, SPEC)
    contents["adapter/factor"] = contents["evidence/factor"]
    contents["adapter/0"] = contents["evidence/0"]
    contents["record/0"] = encode_record(
        torch.rand(len(pictures), len(RECORD)),
        torch.zeros(len(pictures), CURVE_BINS, 2, dtype=torch.uint8),
    )
    manifest = Manifest(
        version=number,
        parent="",
        fingerprint=base.backbone.fingerprint,
        learned_through=number,
        samples=len(pictures),
        classes=len(pictures),
        top_blocks=SPEC.top_blocks,
        parts={},
    )
    made = Version(manifest, contents)
    # So that each has to be fetched: what the service has already it does not look at again.
    made.tensors("evidence/0", count_C=torch.full((len(pictures),), number))
    return made


def blob(header: object, data: bytes = b"") -> bytes:
    """Return a safetensors blob with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def row(dtype: str, shape: list[int], *offsets: int) -> dict[str, object]:
    """Return a header's line about one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def wrong_fusion(name: str, value: float) -> Callable[[Version], None]:
    """Return a case: one constant of the fusion is this."""

    def spoil(v: Version) -> None:
        v.contents["fusion"] = encode_fusion(dataclasses.replace(Fusion(), **{name: value}))

    return spoil


def wrong_head(head: Stored) -> Callable[[Version], None]:
    """Return a case: the head is stored like this."""
    return lambda v: setattr(v, "head", head)


def without(part: str) -> Callable[[Version], None]:
    """Return a case: the version does not name this part."""
    return lambda v: v.contents.__delitem__(part)


def wrong_bytes(part: str, content: Callable[[], bytes]) -> Callable[[Version], None]:
    """Return a case: a part is these bytes, under their right digest."""
    return lambda v: v.contents.update({part: content()})


def wrong_name(name: str) -> Callable[[Version], None]:
    """Return a case: the first class has this name."""
    return lambda v: v.names([name, "coffee", "rocket"])


def zeros_of(size: int) -> str:
    """Return the digest of so many zeros, without holding them."""
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(bytes(1 << 20))
    return digest.hexdigest()


def of_300_mb(v: Version) -> None:
    v.digests["evidence/0"] = zeros_of(300 << 20)
    v.stored["evidence/0"] = lambda client, key: client.setrange(key, (300 << 20) - 1, b"\0")


def swapped(one: str, other: str) -> Callable[[Version], None]:
    """Return a case: two good parts, each under the other's name."""

    def spoil(v: Version) -> None:
        v.contents[one], v.contents[other] = v.contents[other], v.contents[one]

    return spoil


def spoilt_number(part: str, tensor: str, value: float) -> Callable[[Version], None]:
    """Return a case: the last number of a tensor is this."""

    def spoil(v: Version) -> None:
        numbers = load(v.contents[part])[tensor].clone()
        numbers.view(-1)[-1] = value
        v.tensors(part, **{tensor: numbers})

    return spoil


def scaled(part: str, tensor: str, factor: float) -> Callable[[Version], None]:
    """Return a case: a tensor is so many times what it was."""
    return lambda v: v.tensors(part, **{tensor: load(v.contents[part])[tensor] * factor})


def retyped(part: str, tensor: str, dtype: torch.dtype) -> Callable[[Version], None]:
    """Return a case: the same numbers in another dtype."""
    return lambda v: v.tensors(part, **{tensor: load(v.contents[part])[tensor].to(dtype)})


def of_shape(part: str, tensor: str, *shape: int) -> Callable[[Version], None]:
    """Return a case: a tensor of zeros of another shape."""
    return lambda v: v.tensors(part, **{tensor: torch.zeros(shape)})


def overflowing(v: Version) -> None:
    """An adapter of finite numbers, whose product is none."""
    tensors = load(v.contents["adapter"])
    v.tensors("adapter", **{k: torch.full_like(t, 3e38) for k, t in tensors.items() if k != "spec"})


FIRST = "image.blocks.0.mlp.c_fc.A"

# Name of the case → what it spoils, and what the reason must say.
CASES: dict[str, tuple[Callable[[Version], None], str]] = {
    # The manifest
    "manifest is no JSON": (lambda v: v.written(lambda _: b"\x80\x04K\x01."), "not one of ours"),
    "manifest nests": (lambda v: v.written(lambda _: b"[" * 500_000), "not one of ours"),
    "manifest of two megabytes": (lambda v: v.fields(gate={"x": "x" * (2 << 20)}), "at most"),
    "manifest has a field twice": (
        lambda v: v.written(lambda content: b'{"version":1,' + content[1:]),
        "form in which it is written",
    ),
    "manifest with blanks": (
        lambda v: v.written(lambda content: content + b" "),
        "form in which it is written",
    ),
    "manifest of another format": (lambda v: v.fields(format=2), "format 2"),
    "manifest of another version": (lambda v: v.fields(version=7000), "says it is version 7000"),
    "manifest with a version beyond 2^53": (lambda v: v.fields(version=2**60), "wrong kind"),
    "manifest with a cursor beyond 2^64": (lambda v: v.fields(learned_through=2**70), "wrong kind"),
    "manifest with negative samples": (lambda v: v.fields(samples=-1), "wrong kind"),
    "manifest with 2^53 classes": (lambda v: v.fields(classes=2**53), "classes in"),
    "manifest with fewer classes": (lambda v: v.fields(classes=2), "row for each"),
    "manifest with an unknown field": (lambda v: v.fields(**{"\ud800\u202e": 1}), "\\ud800"),
    "manifest of another base model": (lambda v: v.fields(fingerprint="f" * 64), "base model"),
    "manifest of no base model": (lambda v: v.fields(fingerprint="\x1b[2J\ud800"), "wrong kind"),
    "manifest with a cut beyond the tower": (lambda v: v.fields(top_blocks=10**6), "cannot be cut"),
    "manifest with another cut, all parts known": (lambda v: v.fields(top_blocks=1), "another cut"),
    "manifest names a part by surrogates": (
        lambda v: v.digests.update({"fusion": "\ud800" * 64}),
        "wrong kind",
    ),
    "manifest is not stored": (lambda v: v.stored.update(manifest=lambda *_: None), "no longer"),
    "manifest is a list": (
        lambda v: v.stored.update(manifest=lambda client, key: client.rpush(key, "x")),
        "WRONGTYPE",
    ),
    "manifest is another one's": (
        lambda v: v.stored.update(manifest=lambda client, key: client.set(key, b"{}")),
        "digest that the head names",
    ),
    # The head
    "head is no head": (wrong_head(lambda c, k: c.set(k, "2 ../x")), "the head"),
    "head is binary": (
        wrong_head(lambda c, k: c.set(k, b"\xff\n\0")),
        "the head",
    ),
    "head counts backwards": (
        wrong_head(lambda c, k: c.set(k, "-2 " + "a" * 64)),
        "the head",
    ),
    "head of ten megabytes": (
        wrong_head(lambda c, k: c.setrange(k, 10 << 20, b"x")),
        "at most 81",
    ),
    "head is a hash": (
        wrong_head(lambda c, k: c.hset(k, "version", 2)),
        "WRONGTYPE",
    ),
    # Which parts there are
    "a part is not named": (without("evidence/0"), "has not the parts"),
    "no fusion": (without("fusion"), "has not the parts"),
    "an adapter without its factor": (
        without("adapter/factor"),
        "has not the parts",
    ),
    "a part too many": (lambda v: v.contents.update(more=b"more"), "has not the parts"),
    "a chunk too many": (
        lambda v: v.contents.update({"classes/1": v.contents["classes/0"]}),
        "has not the parts",
    ),
    "a part is not stored": (
        lambda v: v.stored.update({"evidence/0": lambda *_: None}),
        "no longer stored",
    ),
    "a part is a list": (
        lambda v: v.stored.update({"evidence/0": lambda client, key: client.rpush(key, "x")}),
        "WRONGTYPE",
    ),
    "a part is other bytes": (
        lambda v: v.stored.update({"evidence/0": lambda client, key: client.set(key, "x")}),
        "damaged",
    ),
    "a part of 300 MB": (of_300_mb, f"at most {PART_BYTES_MAX}"),
    # Its bytes
    "header of 2^63 bytes": (
        wrong_bytes("evidence/0", lambda: struct.pack("<Q", 2**63) + b"{}"),
        "header of 9223372036854775808",
    ),
    "header longer than the part": (
        wrong_bytes("evidence/0", lambda: struct.pack("<Q", 4000) + b"{}"),
        "header of 4000",
    ),
    "header of 200,000 tensors": (
        wrong_bytes(
            "evidence/0", lambda: blob({f"t{i}": row("F32", [0], 0, 0) for i in range(200_000)})
        ),
        "a header of",
    ),
    "header with nested metadata": (
        wrong_bytes(
            "evidence/0",
            lambda: blob(b'{"__metadata__":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
        ),
        "unusable part",
    ),
    "overlapping tensors": (
        wrong_bytes(
            "evidence/0",
            lambda: blob(
                {"mean_CD": row("F32", [3, 1], 0, 12), "count_C": row("I64", [3], 0, 24)}, bytes(24)
            ),
        ),
        "offset",
    ),
    "offsets beyond the end": (
        wrong_bytes(
            "evidence/0",
            lambda: blob(
                {"mean_CD": row("F32", [3, 1], 24, 4000), "count_C": row("I64", [3], 0, 24)},
                bytes(36),
            ),
        ),
        "unusable part",
    ),
    "a shape of 2^64 numbers": (
        wrong_bytes("evidence/0", lambda: blob({"mean_CD": row("F32", [2**62, 4], 0, 0)})),
        "unusable part",
    ),
    "a shape of none times 2^60": (
        wrong_bytes(
            "evidence/0",
            lambda: blob(
                {"mean_CD": row("F32", [0, 2**60], 0, 0), "count_C": row("I64", [0], 0, 0)}
            ),
        ),
        "row for each",
    ),
    "a dtype that does not exist": (
        wrong_bytes("evidence/0", lambda: blob({"mean_CD": row("F33", [3, 1], 0, 12)}, bytes(12))),
        "unusable part",
    ),
    "a pickle": (wrong_bytes("evidence/0", lambda: pickle.dumps(Path("x"))), "a header of"),
    "one byte": (wrong_bytes("evidence/0", lambda: b"\0"), "a header of"),
    "a tensor too many": (lambda v: v.tensors("evidence/0", x=torch.zeros(3)), "other tensors"),
    "a tensor too few": (lambda v: v.tensors("evidence/0", count_C=None), "other tensors"),
    "evidence for names": (swapped("classes/0", "evidence/0"), "other tensors"),
    "an adapter for the fusion": (swapped("adapter", "fusion"), "other tensors"),
    "one part for two kinds": (
        lambda v: v.contents.update({"record/0": v.contents["evidence/0"]}),
        "other tensors",
    ),
    # Class names
    "a name twice": (lambda v: v.names(["cat", "coffee", "cat"]), "twice"),
    "a name that moves the cursor": (wrong_name("\x1b[2Jcat"), "U+001B"),
    "a name that reads backwards": (wrong_name("\u202ecat"), "U+202E"),
    "a name that is half a character": (wrong_name("cat\ud800"), "U+D800"),
    "a name that shows nothing": (wrong_name("\u3164"), "shows nothing"),
    "a name in another form": (wrong_name("cafe\u0301"), "form in which names are kept"),
    "a name of 201 letters": (wrong_name("c" * 201), "at most 200"),
    "a name that is a number": (lambda v: v.names(["cat", 7, "rocket"]), "list of names"),
    "names in an object": (lambda v: v.names({"cat": 1}), "list of names"),
    "names too many": (lambda v: v.names([f"c{k}" for k in range(CHUNK)]), "other vectors"),
    "names that nest": (lambda v: v.names(b"[" * 500_000), "recursion"),
    "five million names": (lambda v: v.names(b"[" + b"[]," * 5_000_000 + b"[]]"), "of JSON"),
    # Numbers
    "text vectors in half precision": (retyped("classes/0", "text_CE", torch.float16), "float16"),
    "text vectors of 10^30": (scaled("classes/0", "text_CE", 1e30), "length is not one"),
    "text vectors of nothing": (scaled("classes/0", "text_CE", 0.0), "length is not one"),
    "text vectors of another model": (
        lambda v: v.tensors("classes/0", text_CE=torch.eye(3, 512)),
        "cannot answer",
    ),
    "a mean that is no number": (spoilt_number("evidence/0", "mean_CD", torch.nan), "not finite"),
    "a mean of 10^38": (scaled("evidence/0", "mean_CD", 1e38), "points nowhere"),
    "a factor that overflows": (
        lambda v: v.tensors("evidence/factor", factor_DD=torch.full((64, 64), 3e38)),
        "a class ",  # overflows, or its length does: which of them rests on the last bits of a mean
    ),
    "means in double precision": (retyped("evidence/0", "mean_CD", torch.float64), "float64"),
    "means of other classes": (of_shape("evidence/0", "mean_CD", 2, 64), "row for each"),
    "means of another width": (of_shape("evidence/0", "mean_CD", 3, 5), "unusable part"),
    "a negative count": (spoilt_number("evidence/0", "count_C", -1), "no number of samples"),
    "a count of 2^62": (spoilt_number("evidence/0", "count_C", 2**62), "no number of samples"),
    "counts of 32 bits": (retyped("evidence/0", "count_C", torch.int32), "int32"),
    "an infinite factor": (spoilt_number("evidence/factor", "factor_DD", torch.inf), "not finite"),
    "a factor that is not square": (of_shape("evidence/factor", "factor_DD", 64, 5), "not square"),
    "a factor of 65,536 rows": (of_shape("evidence/factor", "factor_DD", 65536, 1), "not square"),
    "a record of other columns": (of_shape("record/0", "record_CR", 3, 5), "5 columns"),
    "a curve of floats": (of_shape("record/0", "curve_CN2", 3, CURVE_BINS, 2), "float32"),
    "a record of complex numbers": (
        retyped("record/0", "record_CR", torch.complex64),
        "complex64",
    ),
    # The fusion
    "a fusion that is no number": (wrong_fusion("scale", torch.nan), "not finite"),
    "a fusion of ten constants": (of_shape("fusion", "fusion", 10), "float32"),
    "a weight above one": (wrong_fusion("adapter", 1.5), "adapter 1.5"),
    "a sharpness that turns the order": (wrong_fusion("sharpness", -1.0), "sharpness -1"),
    "a negative kappa": (wrong_fusion("kappa", -0.5), "kappa -0.5"),
    "an endless scale": (wrong_fusion("scale", 1e300), "scale 1e+300"),
    "a threshold that no cosine has": (wrong_fusion("threshold", 7.0), "threshold 7"),
    # The adapter
    "an adapter of another shape": (of_shape("adapter", FIRST, 2, 7), "has shapes"),
    "an adapter of another rank": (lambda v: v.spec(rank=3), "has shapes"),
    "an adapter of rank zero": (lambda v: v.spec(rank=0), "cannot be"),
    "an adapter of endless scale": (lambda v: v.spec(alpha=float("inf")), "cannot be"),
    "an adapter of scale 10^400": (lambda v: v.spec(alpha=10**400), "unusable part"),
    "an adapter of no tower": (lambda v: v.spec(tune="eval"), "cannot be"),
    "an adapter of True blocks": (lambda v: v.spec(top_blocks=True), "cannot be"),
    "an adapter of a spec that is long": (lambda v: v.spec(tune="x" * 2000), "of JSON"),
    "an adapter without one tensor": (lambda v: v.tensors("adapter", **{FIRST: None}), "not fit"),
    "an adapter with a tensor more": (
        lambda v: v.tensors("adapter", **{"image.blocks.9.A": torch.zeros(2, 2)}),
        "does not fit",
    ),
    "an adapter that overflows": (overflowing, "not finite"),
}


@pytest.fixture(scope="module")
async def besieged(
    log_url: str, tiny_clip: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    """One service that takes a good version after each hostile one."""
    folder = tmp_path_factory.mktemp("besieged")
    async with lasting(settings_for(log_url, "test-besieged", folder), tiny_clip) as api:
        yield api


@pytest.fixture
def api(besieged: Api) -> Api:
    """It, with a log that holds nothing, and as if it had refused nothing yet."""
    client, keys = besieged.stream.client, besieged.stream.keys
    for kind in ("part", "manifest"):
        for key in client.scan_iter(f"{{{keys.namespace}}}:{kind}:*", count=1000):
            client.delete(key)
    client.delete(keys.head)
    besieged.model.swaps.refused.clear()
    return besieged


@contextlib.contextmanager
def peak_bytes() -> Iterator[Callable[[], int]]:
    """Give a function that says how far memory rose above where it stands now."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before = status("VmRSS")
    yield lambda: status("VmHWM") - before


@pytest.mark.parametrize("case", CASES)
async def test_a_hostile_version_is_refused(api: Api, photos, case: str):
    """The old version answers as before, the reason is shown, the next good version is taken."""
    spoil, said = CASES[case]
    base, refused = api.model.serving.base, api.model.swaps.refused
    pictures = {name: photos[name] for name in ("cat", "coffee", "rocket")}
    first = api.model.serving.current.version + 1
    version(base, pictures, first).put(api)
    await until(lambda: api.model.serving.current.version == first)
    before = (await api.ask(photos["cat"])).json()

    hostile = version(base, pictures, first + 1)
    spoil(hostile)
    with peak_bytes() as risen:
        hostile.put(api)
        hostile.contents.clear()
        await until(lambda: refused)
    assert risen() < PEAK_BYTES_MAX
    after = (await api.ask(photos["cat"])).json()
    assert after | {"prediction_id": ""} == before | {"prediction_id": ""}
    answer = await api.client.get("/learning")
    (entry,) = answer.json()["refused_versions"]
    assert said in entry["reason"]
    assert entry["reason"].isprintable()
    assert entry["version"] == (None if hostile.head else first + 1)
    assert read(Learning, answer.json()).refused_versions[0].reason == entry["reason"]
    assert (await api.client.get("/classes")).json()["version"] == first

    version(base, pictures, first + 2).put(api)
    await until(lambda: api.model.serving.current.version == first + 2)
    assert (await api.ask(photos["cat"])).status_code == 200
