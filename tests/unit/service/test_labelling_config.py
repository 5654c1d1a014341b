"""What a project of Label Studio asks, read from its own XML."""

from __future__ import annotations

import pytest

from service.labelling_config import LabellingConfig, read_config
from service.problems import Problem

TEMPLATE = """<View>
  <Header value="Choose"/>
  <Text name="about" value="$text"/>
  <Choices name="mood" toName="about"><Choice value="glad"/></Choices>
  <Image name="img" value="$picture" zoom="true"/>
  <!-- the birds -->
  <Choices name="bird" toName="img" choice="single">
    <Choice value="heron"/>
    <Choice value="a stork" alias="stork"/>
  </Choices>
</View>"""


def test_the_choices_over_the_picture_are_found() -> None:
    """Not those over a text; a choice by its alias, which is what results have."""
    expected = LabellingConfig("bird", "img", "picture", ("heron", "stork"))
    assert expected == read_config(TEMPLATE, "schema")


def test_choices_of_the_task_leave_the_names_open() -> None:
    text = (
        '<View><Image name="i" value="$i"/><Choices name="c" toName="i" value="$options"/></View>'
    )
    assert () == read_config(text, "schema").names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<View>",
        "no XML",
        "<View/>",
        '<View><Image name="i" value="$i"/></View>',
        '<View><Choices name="c" toName="i"><Choice value="a"/></Choices></View>',
        '<View><Image name="i" value="fixed.jpg"/><Choices name="c" toName="i"/></View>',
        '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>',
        "<View>" * 100_000,
        "\x00",
        "<View>\ud800</View>",
    ],
)
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    """And at once: no document type is read, so that nothing can grow."""
    with pytest.raises(Problem) as refused:
        read_config(text, "schema")
    assert (422, "schema") == (refused.value.status, refused.value.errors[0]["field"])
