"""
The version that answers, kept on this machine: what a start serves while the log is away. ⑧

Parts lie under their digests, so that a swap writes what changed. Nothing is synced: a cache that a
power cut spoiled does not have its digests, and is not used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from everlens.artifact import Manifest, check_part, decode_manifest
from everlens.errors import PartError

_MANIFEST = "manifest"


class VersionCache:
    """One directory, which only services over the same log write to."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory

    def keep(self, manifest: Manifest, parts: Mapping[str, bytes]) -> list[str]:
        """
        Keep a version in place of the one before; return the digests of parts that it lacks.

        Where it lacks any, since the disk was full or somebody emptied the directory, none is kept.

        Args:
            manifest: of the version.
            parts: digest → bytes, of those parts that the version before did not have.

        Raises:
            OSError: the disk does not take it; what was kept before may be gone.
        """
        named = set(manifest.parts.values())
        there = set(os.listdir(self.directory))  # noqa: PTH208 - thousands of names, and no paths
        if lacking := sorted(named - there - parts.keys()):
            (self.directory / _MANIFEST).unlink(missing_ok=True)
            return lacking
        for digest in sorted(named & parts.keys()):
            # A power cut may have spoilt what is there.
            if digest not in there or (self.directory / digest).read_bytes() != parts[digest]:
                self._write(digest, parts[digest])
        self._write(_MANIFEST, manifest.digest.encode() + b"\n" + manifest.encode())
        for name in there - named - {_MANIFEST}:
            (self.directory / name).unlink(missing_ok=True)
        return []

    def load(self) -> tuple[Manifest, dict[str, bytes]] | None:
        """
        Return the manifest and parts that are kept; None when nothing is.

        Raises:
            PartError: something of it is missing or damaged.
        """
        try:
            digest, _, content = (self.directory / _MANIFEST).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        manifest = decode_manifest(content, digest.decode("ascii", "replace"))
        return manifest, {d: self._read(d) for d in sorted(set(manifest.parts.values()))}

    def _read(self, digest: str) -> bytes:
        try:
            return check_part((self.directory / digest).read_bytes(), digest)
        except FileNotFoundError:
            raise PartError(f"part {digest[:12]} is not kept") from None

    def _write(self, name: str, content: bytes) -> None:
        unfinished = self.directory / f"{name}.{os.getpid()}"
        unfinished.write_bytes(content)
        unfinished.replace(self.directory / name)
