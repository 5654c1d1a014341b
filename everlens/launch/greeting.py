"""What `everlens up` says when it is ready: lines that work when they are pasted."""

from __future__ import annotations

import importlib.util
import shlex
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

_PICTURE = "chelsea.png"  # a photograph of a cat, inside scikit-image's wheel


def base_url(host: str, port: int) -> str:
    """Return where this machine reaches a service that listens on `host`."""
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def bundled_picture() -> Path | None:
    """Return a photograph that every installation has, without importing the package it is in."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return None
    picture = Path(spec.origin).parent / "data" / _PICTURE
    return picture if picture.is_file() else None


def curl_line(
    url: str, picture: Path, fields: dict[str, list[str]], *, guarded: bool = False
) -> str:
    """Return a shell command that posts a picture with form fields; `guarded` shows a key."""
    # curl itself reads `;` and `,` in a file name unless it stands in double quotes.
    path = str(picture)
    if set(path) & set(';,"\\ '):
        path = '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
    words = ["curl", "-s", "-F", f"image=@{path}"]
    for name, values in fields.items():
        for value in values:
            words += ["-F", f"{name}={value}"]
    # Quoted by hand: the shell has to put the key in.
    shown = ' -H "Authorization: Bearer $EVERLENS_API_KEY"' if guarded else ""
    return shlex.join([*words, url]) + shown


def greeting(url: str, *, guarded: bool = False) -> list[str]:
    """Return the lines: ask, teach, ask again. `guarded` when the service wants a key."""
    picture = bundled_picture() or Path("picture.jpg")
    post = partial(curl_line, guarded=guarded)
    names = {"labels": ["cat", "dog", "coffee"]}
    key = "With `export EVERLENS_API_KEY=evl_...` (`everlens keys add NAME` makes one):"
    return [
        "",
        *([key, ""] if guarded else []),
        "Ask what a picture shows:",
        post(f"{url}/classify", picture, names),
        "Teach it a name of your own:",
        post(f"{url}/samples", picture, {"label": ["Chelsea"], "id": ["chelsea-1"]}),
        "Ask again, among all that it has learnt by then:",
        post(f"{url}/classify", picture, {"wait_for": ["chelsea-1"]}),
        "",
        f"Or drop pictures of your own on the page at {url}/console",
        "`everlens demo` in a second terminal shows it learn; Ctrl-C here stops everything.",
    ]


def without_password(url: str) -> str:
    """Return the address without user and password, fit to be printed."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
