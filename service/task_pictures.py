"""
The pictures of Label Studio's tasks. ①

They come as data URIs; or by address, and then they are fetched from the one Label Studio that the
settings name, and from nowhere else: a client must not choose where we go.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import unquote

import httpx
import orjson

from service.schemas import image_bytes

_FETCHES_MAX = 8
_FETCH_S = 5.0
# Where it keeps pictures, and passes on those of its storages.
_PATHS = ("data/", "storage-data/", "tasks/")
_ACCESS_S = 120.0  # its access tokens live for five minutes


class NoPicture(Exception):
    """A picture that is not taken; the message says why, and what to do."""


class TaskPictures:
    """
    Reads the pictures that tasks name.

    Args:
        url: of Label Studio; empty takes data URIs alone.
        token: of one of its users; an access token, or the personal one that makes them.
        bytes_max: of one picture.
    """

    def __init__(self, url: str, token: str, bytes_max: int) -> None:
        self.base = httpx.URL(url.rstrip("/") + "/") if url else None
        self.token = token
        self.bytes_max = bytes_max
        self._places = asyncio.Semaphore(_FETCHES_MAX)
        self._access = ("", float("-inf"))  # a token, and until when it is good
        # No proxy of the environment, and no redirect: it would lead elsewhere.
        self._client = httpx.AsyncClient(timeout=_FETCH_S, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def read(self, reference: object) -> bytes:
        """
        Return a picture that a task names.

        Raises:
            NoPicture: it is not a data URI, and not a picture of our Label Studio.
        """
        if not isinstance(reference, str) or not reference:
            raise NoPicture("the task has no picture in the field that its <Image> names")
        if reference[:5].lower() == "data:":
            try:
                return image_bytes(reference)
            except ValueError as error:
                raise NoPicture(str(error)) from error
        url = self._address(reference)
        async with self._places:
            try:
                async with asyncio.timeout(_FETCH_S):
                    return await self._fetched(url)
            except (httpx.HTTPError, TimeoutError) as error:
                raise NoPicture(f"Label Studio does not give {url.path}: {error!r}") from error

    def _address(self, reference: str) -> httpx.URL:
        if self.base is None:
            raise NoPicture(
                "the picture is an address; set EVERLENS_LABEL_STUDIO_URL to have those of one "
                "Label Studio fetched, or import pictures as data URIs"
            )
        try:
            url = self.base.join(reference)
        except (httpx.InvalidURL, ValueError) as error:
            raise NoPicture("the picture's address cannot be read") from error
        path = unquote(url.path)
        there = (url.scheme, url.host, url.port) == (
            self.base.scheme,
            self.base.host,
            self.base.port,
        )
        below = path.startswith(tuple(self.base.path + kind for kind in _PATHS))
        if url.userinfo or not (there and below) or "\\" in path or "/../" in path:
            raise NoPicture(
                f"the picture is not at {self.base}, the Label Studio of EVERLENS_LABEL_STUDIO_URL; "
                "import it there as a file"
            )
        return url

    async def _fetched(self, url: httpx.URL) -> bytes:
        headers = await self._authorization()
        async with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != httpx.codes.OK:
                raise NoPicture(
                    f"Label Studio answers {answer.status_code} for {url.path}; check "
                    "EVERLENS_LABEL_STUDIO_TOKEN"
                    if answer.status_code in {401, 403, 404}
                    else f"Label Studio answers {answer.status_code} for {url.path}"
                )
            return await self._body(answer)

    async def _body(self, answer: httpx.Response) -> bytes:
        content = bytearray()
        async for piece in answer.aiter_bytes():
            content += piece
            if len(content) > self.bytes_max:
                raise NoPicture(f"the picture has more than {self.bytes_max} bytes")
        return bytes(content)

    async def _authorization(self) -> dict[str, str]:
        """Return who we are: an access token as it is, one of a personal token, or nobody."""
        if not self.token:
            return {}
        if self.token.count(".") != 2:  # no JSON web token: the older kind
            return {"Authorization": f"Token {self.token}"}
        if self._access[1] < time.monotonic():
            self._access = await self._new_access(), time.monotonic() + _ACCESS_S
        return {"Authorization": f"Bearer {self._access[0]}"}

    async def _new_access(self) -> str:
        assert self.base is not None
        url = self.base.join("api/token/refresh")
        answer = await self._client.post(url, json={"refresh": self.token})
        try:
            access = orjson.loads(answer.content)["access"]
        except (ValueError, KeyError, TypeError) as error:
            raise NoPicture(
                f"Label Studio answers {answer.status_code} to EVERLENS_LABEL_STUDIO_TOKEN; "
                "make a new personal access token there"
            ) from error
        return str(access)
