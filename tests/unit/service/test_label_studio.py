"""Label Studio's tasks are asked together, and end together where none can be answered."""

from __future__ import annotations

import asyncio

import pytest

from service.problems import Problem
from tests.unit.service.api import Api, as_text

pytestmark = pytest.mark.anyio

CONFIG = """<View><Image name="image" value="$image"/><Choices name="choice" toName="image">
<Choice value="cat"/><Choice value="coffee"/></Choices></View>"""


async def test_what_is_true_of_all_tasks_ends_them(api: Api, photo: bytes, monkeypatch) -> None:
    """Once the answer says that there is too much to do, nobody does the rest of it."""
    asked = 0

    async def busy(*_, **__) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        raise Problem("busy", "too many queries wait", retry_after_s=1)

    monkeypatch.setattr("service.routes.label_studio.classify", busy)
    task = {"data": {"image": f"data:image/jpeg;base64,{as_text(photo)}"}}
    body = {"tasks": [task] * 100, "label_config": CONFIG}
    answer = await api.client.post("/label-studio/predict", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    begun = asked
    await asyncio.sleep(0.1)
    assert asked == begun < 100
