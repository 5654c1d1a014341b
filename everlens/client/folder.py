"""A folder that has a folder a class → its pictures, and the ids that follow from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from everlens.errors import SettingsError
from everlens.records import as_written

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True, slots=True)
class ClassFile:
    """A picture and the class whose folder it lies in."""

    path: Path
    label: str


def class_files(root: Path) -> list[ClassFile]:
    """
    Return the pictures in and below each class's folder, class by class, by name.

    Raises:
        SettingsError: no such folder, or no picture in any folder of it.
    """
    if not root.is_dir():
        raise SettingsError(f"{root} is not a folder; give one with a folder a class")
    found = [
        ClassFile(path, as_written(place.name.replace("_", " ")))
        for place in sorted(root.iterdir())
        if place.is_dir() and not _hidden(place)
        for path in sorted(place.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not _hidden(path) and path.is_file()
    ]
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise SettingsError(f"{root} holds no folder with pictures ({kinds}); make one a class")
    return found


def content_id(label: str, content: bytes) -> str:
    """Return the id of a labelled picture: the same for the same bytes under the same name."""
    digest = hashlib.sha256(label.encode() + b"\0" + content)
    return f"picture-{digest.hexdigest()[:32]}"


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")
