"""
A service asks the learner for pictures of its replay buffer, and hears at once or not at all. ⑨

Questions and answers are messages and no keys: nothing of them is stored, synced to the disk or
left over, and a question that nobody listens to says so itself. What a subscriber may have waiting
is bounded by the server's `client-output-buffer-limit pubsub`, 32 MB unless it was changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import redis
import redis.asyncio

from everlens.bus.connect import reaching_the_log
from everlens.bus.keys import Keys
from everlens.errors import LearnerSilent, LogUnavailable, WireError
from everlens.exhibits import (
    Exhibit,
    Question,
    decode_exhibits,
    decode_question,
    encode_exhibits,
    encode_question,
)

# Questions of one service that are in the air; each holds a connection.
_ASKED_MAX = 8


class Asking:
    """
    The service's half.

    Args:
        client, keys: where the log is.
        wait_s: how long an answer is waited for.
    """

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, wait_s: float = 0.5) -> None:
        self.client = client
        self.keys = keys
        self.wait_s = wait_s
        self._room = asyncio.Semaphore(_ASKED_MAX)

    async def nearest(self, feature: bytes) -> list[Exhibit]:
        """
        Return the exemplars that are nearest to a frozen feature (float32), the nearest first.

        Raises:
            LearnerSilent: no answer in time, or none that can be used.
        """
        return await self._ask(Question("", feature=feature))

    async def of_sample(self, seq: int) -> Exhibit | None:
        """
        Return the exemplar with this number; None where the buffer has none.

        Raises:
            LearnerSilent: as of `nearest`.
        """
        found = await self._ask(Question("", seq=seq))
        return found[0] if found else None

    async def _ask(self, question: Question) -> list[Exhibit]:
        try:
            async with asyncio.timeout(self.wait_s), self._room:
                return decode_exhibits(await self._heard(question))
        except TimeoutError:
            raise LearnerSilent(
                f"the learner does not answer within {self.wait_s:g} s; ask again"
            ) from None
        except LogUnavailable as error:
            raise LearnerSilent(f"the learner cannot be asked: {error}") from error
        except WireError as error:
            raise LearnerSilent(f"the learner's answer cannot be used: {error}") from error

    async def _heard(self, question: Question) -> bytes:
        token = secrets.token_hex(16)
        with reaching_the_log():
            async with self.client.pubsub() as answers:
                await answers.subscribe(self.keys.answer(token))
                # Its confirmation: from here on no answer is missed.
                await answers.get_message(timeout=self.wait_s)
                content = encode_question(replace(question, token=token))
                if not await self.client.publish(self.keys.questions, content):
                    raise LearnerSilent("the learner does not answer: none is at work")
                while True:
                    message = await answers.get_message(
                        ignore_subscribe_messages=True, timeout=self.wait_s
                    )
                    if message is not None:
                        return bytes(message["data"])


class Answering:
    """The learner's half; belongs to the thread that answers."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys

    def questions(self, look_s: float) -> Generator[Question | None, None, None]:
        """
        Yield each question that is heard, and None whenever there was none for `look_s`.

        Raises:
            LogUnavailable: begin again later.
        """
        pubsub: Any = self.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        with contextlib.closing(pubsub) as heard:
            with reaching_the_log():
                heard.subscribe(self.keys.questions)
            while True:
                with reaching_the_log():
                    message = heard.get_message(timeout=look_s)
                if message is None:
                    yield None
                    continue
                with contextlib.suppress(WireError):  # not one of ours: nobody waits
                    yield decode_question(bytes(message["data"]))

    def answer(self, question: Question, exhibits: list[Exhibit]) -> None:
        """Tell whoever asked; where nobody waits any more it is lost."""
        with reaching_the_log():
            self.client.publish(self.keys.answer(question.token), encode_exhibits(exhibits))
