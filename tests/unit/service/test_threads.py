"""How many threads the model has, whatever the threads beside it ask for."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own, as a service is one: torch tells a new thread what was said last.
_ASK = """
import asyncio, sys, torch
from everlens.model.runtime import set_threads
from everlens.settings import Settings
from service.batcher import Batcher
from service.context import Service

async def main(folder):
    service = Service(Settings(redis_url="redis://nobody", data_dir=folder), load=lambda: None)
    built = await asyncio.wrap_future(service._builder.submit(torch.get_num_threads))
    batcher = Batcher(None, None, None, batch_max=1, queued_max=1, threads=service.threads)
    print(built, await batcher.call(torch.get_num_threads))

set_threads(2)
asyncio.run(main(sys.argv[1]))
"""


def test_the_model_keeps_its_threads_beside_a_builder_of_one(tmp_path) -> None:
    """What builds versions takes one core, what answers all that it was given."""
    words = [sys.executable, "-c", _ASK, str(tmp_path)]
    said = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert said.stdout.split() == ["1", "2"], said.stderr
