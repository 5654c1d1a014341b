"""
The notebook's view of results: bars and small pictures, as HTML without a script.

Every text is escaped, whoever wrote it: a class may be called `<img src=x onerror=...>`. Colours
come from the page, so that light and dark both fit.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from html import escape

from everlens.client.pictures import Picture
from everlens.client.results import Answer, Explanation, Labelling, by_version, counted, percent

_SIDE = 160  # pixels of the small picture
_DATA_URI = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")
_PAGE = "font:13px system-ui,sans-serif"
_TABLE = "border-collapse:collapse;font:inherit;color:inherit"
_CELL = "padding:2px 8px;text-align:left;border:0;max-width:20em;overflow-wrap:anywhere"
_NUMBER = "padding:2px 8px;text-align:right;border:0;font-variant-numeric:tabular-nums"
_TRACK = "width:160px;height:10px;background:rgba(128,128,128,.2);border-radius:2px"
_BAR = "height:10px;background:#3a7bd5;border-radius:2px"


def answer(answer: Answer) -> str:
    """Return an answer: the picture, a bar a name, and the version."""
    lines = _table(
        [
            _text(line.label),
            _bar(line.score),
            _number(percent(line.score)),
            _number(counted(line.samples, "label")),
        ]
        for line in answer.predictions
    )
    about = _small(f"{by_version(answer.known, answer.version)} · {answer.prediction_id}")
    more = "" if answer.explanation is None else explanation(answer.explanation)
    picture = "" if answer.picture is None else _thumbnail(answer.picture)
    inside = f"{picture}<div>{lines}{about}{more}</div>"
    return f'<div style="{_PAGE};display:flex;gap:12px;flex-wrap:wrap">{inside}</div>'


def explanation(explanation: Explanation) -> str:
    """Return an explanation: each expert's share, and the nearest labelled pictures."""
    heading = [_head(word) for word in ("", "zero-shot", "evidence", "adapter")]
    shares = [
        [_text(line.label)] + [_number("–" if share is None else percent(share)) for share in each]
        for line in explanation.experts
        for each in [(line.zero_shot, line.evidence, line.adapter)]
    ]
    if explanation.exemplars is None:
        return _page(_table([heading, *shares]) + _small(explanation.note or ""))
    near = "".join(
        _figure(exemplar.image, f"{exemplar.label} {exemplar.similarity:.2f}")
        for exemplar in explanation.exemplars
    )
    return _page(_table([heading, *shares]) + f"<div>{near}</div>")


def labelling(labelling: Labelling) -> str:
    """Return what is labelled: recall by class, whether that is enough, and what comes next."""
    words = {True: "enough", False: "more", None: ""}
    lines = [
        [
            _text(each.label),
            _bar(each.recall or 0.0),
            _number("–" if each.recall is None else percent(each.recall)),
            _number(counted(each.samples, "label")),
            _text(words[each.enough]),
        ]
        for each in labelling.classes
    ]
    next_ = "".join(
        f"<li><b><bdi>{escape(each.label)}</bdi></b>: {escape(each.why)}</li>"
        for each in labelling.suggestions
    )
    return _page(_table(lines) + (f"<p>Label next:</p><ol>{next_}</ol>" if next_ else ""))


def _page(inside: str) -> str:
    return f'<div style="{_PAGE}">{inside}</div>'


def _table(rows: Iterable[list[str]]) -> str:
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<table style="{_TABLE}">{body}</table>'


def _text(text: str) -> str:
    return f'<td style="{_CELL}"><bdi>{escape(text)}</bdi></td>'


def _head(text: str) -> str:
    return f'<th style="{_CELL}">{escape(text)}</th>'


def _number(text: str) -> str:
    return f'<td style="{_NUMBER}">{escape(text)}</td>'


def _bar(share: float) -> str:
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    track = f'<div style="{_TRACK}"><div style="{_BAR};width:{width}"></div></div>'
    return f'<td style="{_CELL}">{track}</td>'


def _small(text: str) -> str:
    return f'<div style="font-size:11px;opacity:.7;padding:2px 8px">{escape(text)}</div>'


def _figure(image: str, caption: str) -> str:
    if not _DATA_URI.fullmatch(image):
        return ""
    return (
        '<figure style="display:inline-block;vertical-align:top;margin:4px 8px;font-size:11px">'
        f'<img alt="" src="{image}" style="height:72px"><figcaption style="max-width:12em">'
        f"<bdi>{escape(caption)}</bdi></figcaption></figure>"
    )


def _thumbnail(picture: Picture) -> str:
    """Return the picture that was sent, small; nothing where it is no more or does not open."""
    from PIL import Image, ImageOps

    content = picture.read()
    if content is None:
        return ""
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (_SIDE, _SIDE))
            small = ImageOps.exif_transpose(image)
            small.thumbnail((_SIDE, _SIDE))
            small.convert("RGB").save(file, "JPEG")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return f'<img alt="" src="{uri}" style="align-self:flex-start">'
