"""`docs/rooms.md`, made from the first lines of the sources: which file holds which idea."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

_ROOMS = {
    "everlens": "what both halves must agree on, and the client",
    "service": "speaks HTTP; changes no weight",
    "worker": "the only one that changes weights",
    "bench": "measures; changes nothing above",
    "examples": "to be run, read and changed",
}

_HEAD = """\
# Rooms

One idea a file, and each file says its own in its first line, which is the line shown here. `service` and
`worker` never import each other; what both must agree on is in `everlens`. Redis is met in `everlens/bus`
alone and torch never there; `worker/learn` is arithmetic: no Redis, no HTTP, no clock. `make check`
holds these borders. Circled numbers in the sources mark the data's way: ① HTTP, ② admission, ③ the log's bytes, ④ reading,
⑤ learning, ⑥ commit, ⑦ publication, ⑧ swap, ⑨ answer.

Written by `python -m tests.docs.rooms > docs/rooms.md`; a test holds it.
"""


def rooms_page() -> str:
    """Return `docs/rooms.md`."""
    parts = [_HEAD]
    for room, about in _ROOMS.items():
        parts.append(f"## `{room}/`\n\n{about[0].upper()}{about[1:]}.\n")
        folder = None
        rows = []
        for path in _sources(room):
            here = path.parent.relative_to(room).as_posix()
            if here != folder:
                folder = here
                if here != ".":
                    rows.append(f"| **{here}/** | {_of_package(path)} |")
            if path.name != "__init__.py":
                rows.append(f"| `{path.name}` | {first_line(path)} |")
        parts.append("\n".join(["| file | holds |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def first_line(path: Path) -> str:
    """Return the first sentence or clause with which a source says what it is."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        block = re.match(r"\s*/\*+(.*?)\*/", text, re.DOTALL)
        said = (
            block[1]
            if block
            else "\n".join(re.findall(r"^(?:--|//|#(?!!)) ?(.*)", text, re.MULTILINE))
        )
    sentence = re.split(r"\n\s*\n|(?<=[.?])\s", said.strip(), maxsplit=1)[0]
    return " ".join(sentence.split()).rstrip(".").replace("|", "\\|")


def _sources(room: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", room],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    paths = [Path(name) for name in listed if name.endswith((".py", ".lua", ".js", ".sh"))]
    # A folder's own files before its folders, so that each folder is named once.
    return sorted(
        (path for path in paths if (ROOT / path).exists()),
        key=lambda path: (path.parent.parts, path.name),
    )


def _of_package(path: Path) -> str:
    package = path.parent / "__init__.py"
    return first_line(package) if (ROOT / package).exists() else ""


if __name__ == "__main__":
    print(rooms_page(), end="")
