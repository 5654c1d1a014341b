"""Label Studio's labelling configuration → which choices are made about which picture. ①"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from service.problems import field_problem

_BYTES_MAX = 256 * 1024
_NOT_OURS = (
    "has no <Choices> over an <Image>; take Label Studio's template for image classification"
)


@dataclass(frozen=True, slots=True)
class LabellingConfig:
    """
    One question of a project: the first `<Choices>` over an `<Image>`.

    Args:
        choices: what that tag is called, `from_name` of a result.
        image: what the picture's tag is called, `to_name` of a result.
        field: of a task's data that has the picture.
        names: of the choices; empty where each task brings its own.
    """

    choices: str
    image: str
    field: str
    names: tuple[str, ...]


@dataclass(slots=True)
class _Tags:
    """What is found while the text is read."""

    images: dict[str, str] = field(default_factory=dict)  # name → field of the data
    questions: list[tuple[str, list[str], list[str]]] = field(default_factory=list)

    def begin(self, tag: str, attributes: dict[str, str]) -> None:
        match tag.lower():
            case "image":
                self.images[attributes.get("name", "")] = attributes.get("value", "")
            case "choices":
                asked = attributes.get("toName", attributes.get("toname", "")).split(",")
                self.questions.append((attributes.get("name", ""), asked, []))
            case "choice" if self.questions:
                # What stands in results: the alias, where there is one.
                name = attributes.get("alias") or attributes.get("value", "")
                self.questions[-1][2].append(name)


def read_config(text: str, where: str) -> LabellingConfig:
    """
    Return the question of a labelling configuration.

    Args:
        text: XML.
        where: the field it stands in, for the message.

    Raises:
        Problem: 422, it cannot be read or asks nothing about a picture.
    """
    tags = _Tags()
    parser = expat.ParserCreate()
    parser.StartElementHandler = tags.begin
    # No configuration has one, and what it may define grows without bound.
    parser.StartDoctypeDeclHandler = _refuse_doctype
    if len(text) > _BYTES_MAX:
        raise field_problem(where, f"has {len(text)} characters; at most {_BYTES_MAX} are read")
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError) as error:
        raise field_problem(where, f"is not the XML of Label Studio: {error}") from error
    for name, asked, names in tags.questions:
        for image in asked:
            value = tags.images.get(image.strip(), "")
            if value.startswith("$"):
                return LabellingConfig(name, image.strip(), value[1:], tuple(names))
    raise field_problem(where, _NOT_OURS)


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it has a document type")
