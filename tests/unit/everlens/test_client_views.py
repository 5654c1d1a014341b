"""How results look: one line in a shell, bars in a notebook, and no word of theirs is obeyed."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import PIL.Image
import pytest

from everlens.client import (
    Answer,
    Exemplar,
    ExpertShares,
    Explanation,
    KeptPrediction,
    LabelledClass,
    Labelling,
    Picture,
    Prediction,
    Suggestion,
)

HOSTILE = "<img src=x onerror=alert(1)>\"'&</td><script>alert(2)</script>"
URI = "data:image/jpeg;base64," + base64.b64encode(b"exemplar").decode()
ALLOWED = {
    *("table", "tr", "td", "th", "div", "bdi", "img", "figure", "figcaption"),
    *("p", "ol", "li", "b"),
}


class Page(HTMLParser):
    """The tags, the sources of pictures and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style", "alt", "src"}, attrs
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def photograph() -> bytes:
    """Return the file of a picture larger than what is shown of it."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (800, 400), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def answer(label: str, picture: Picture | None = None, image: str = URI) -> Answer:
    """Return an answer whose every text is `label`."""
    return Answer(
        (Prediction(label, 0.9, 1), Prediction("dog", 0.1, 2)),
        0.8,
        4,
        17,
        label,
        label,
        Explanation(
            (ExpertShares(label, 0.5, 0.4, None),), (Exemplar(label, label, 0.9, image),), None
        ),
        picture,
    )


def test_shell_shows_an_answer_in_a_line() -> None:
    """The first names, how sure, and by which version; a terminal obeys none of them."""
    shown = Answer((Prediction("cat", 0.921, 3),), 0.98, 4, 17, "starter", "p1", None, None)
    kept = KeptPrediction("p1", 1.0, 4, 17, shown.predictions, None, 0.1, None)

    assert repr(shown) == "<Answer cat 92.1 %; known 98.0 %, version 4>"
    assert repr(kept) == "<KeptPrediction p1 cat 92.1 %; version 4>"
    assert "\x1b" not in repr(answer("\x1b[31mred"))


def test_notebook_escapes_every_text() -> None:
    """A class called like a script is shown, and is no script."""
    page = Page(answer(HOSTILE)._repr_html_())

    assert page.tags <= ALLOWED
    assert page.text.count(HOSTILE) == 4
    assert page.sources == [URI]


def test_notebook_escapes_suggestions() -> None:
    """What to label next is words of people too."""
    page = Page(
        Labelling(
            (LabelledClass(HOSTILE, 3, 0.5, (), enough=False, expected_gain=None),),
            (Suggestion(HOSTILE, HOSTILE),),
            1,
        )._repr_html_()
    )

    assert page.tags <= ALLOWED
    assert page.text.count(HOSTILE) == 3


@pytest.mark.parametrize(
    "image",
    [
        "https://elsewhere/track.gif",
        "javascript:alert(1)",
        'data:image/jpeg;base64,AAAA" onerror="alert(1)',
        "data:image/svg+xml;base64,AAAA",
    ],
)
def test_notebook_shows_no_picture_from_elsewhere(image: str) -> None:
    """Only a picture that the answer itself holds is shown."""
    assert Page(answer("cat", image=image)._repr_html_()).sources == []


def test_notebook_shows_the_picture_small() -> None:
    """The picture that was asked about is there, in a few kilobytes; a broken one is left out."""
    sources = Page(answer("cat", Picture(photograph()))._repr_html_()).sources
    broken = Page(answer("cat", Picture(b"not a picture"))._repr_html_()).sources

    with PIL.Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))) as small:
        assert small.size == (160, 80)
    assert broken == [URI]


def test_explanation_without_exemplars_says_why() -> None:
    """The note stands where the pictures would."""
    shown = Explanation((), None, "the replay buffer <is> empty")

    assert Page(shown._repr_html_()).text.endswith("the replay buffer <is> empty")
