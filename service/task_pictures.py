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
        studio: where those are fetched that are no data URIs; None refuses them.
    """

    def __init__(self, studio: Studio | None) -> None:
        self.studio = studio

    async def close(self) -> None:
        """Close the connections."""
        if self.studio is not None:
            await self.studio.close()

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
        if self.studio is None:
            raise NoPicture(
                "the picture is an address; set EVERLENS_LABEL_STUDIO_URL to have those of one "
                "Label Studio fetched, or import pictures as data URIs"
            )
        return await self.studio.fetch(reference)


class Studio:
    """
    One Label Studio, as far as it gives pictures.

    Args:
        url: its address.
        token: of one of its users: an access token, or the personal one that makes them.
        bytes_max: of one picture.
    """

    def __init__(self, url: str, token: str, bytes_max: int) -> None:
        self.base = httpx.URL(url.rstrip("/") + "/")
        self.token = token
        self.bytes_max = bytes_max
        self._places = asyncio.Semaphore(_FETCHES_MAX)
        self._access = ("", float("-inf"))  # a token, and until when it is good
        # No proxy of the environment, and no redirect: it would lead elsewhere.
        self._client = httpx.AsyncClient(timeout=_FETCH_S, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def fetch(self, reference: str) -> bytes:
        """
        Return the picture at an address of this Label Studio, whole or a path.

        Raises:
            NoPicture: the address is another's, or nothing is given for it.
        """
        url = self._address(reference)
        async with self._places:
            try:
                async with asyncio.timeout(_FETCH_S):
                    return await self._fetched(url)
            except (httpx.HTTPError, TimeoutError) as error:
                raise NoPicture(f"Label Studio does not give {url.path}: {error!r}") from error

    def _address(self, reference: str) -> httpx.URL:
        try:
            url = self.base.join(reference)
        except (httpx.InvalidURL, ValueError) as error:
            raise NoPicture("the picture's address cannot be read") from error
        path = unquote(url.path)
        below = path.startswith(tuple(self.base.path + kind for kind in _PATHS))
        if url.userinfo or _place(url) != _place(self.base) or not below or _climbs(path):
            raise NoPicture(
                f"the picture is not at {self.base}, the Label Studio of EVERLENS_LABEL_STUDIO_URL; "
                "import it there as a file"
            )
        return url

    async def _fetched(self, url: httpx.URL) -> bytes:
        # As it is: packed, a few bytes may be many.
        headers = {"Accept-Encoding": "identity"} | await self._authorization()
        async with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != httpx.codes.OK:
                denied = answer.status_code in {401, 403, 404}
                advice = "; check EVERLENS_LABEL_STUDIO_TOKEN" if denied else ""
                raise NoPicture(f"Label Studio answers {answer.status_code} for {url.path}{advice}")
            content = bytearray()
            async for piece in answer.aiter_raw():
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


def _place(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _climbs(path: str) -> bool:
    """Return whether a path, as any server may read it, leads out of the folder it begins with."""
    return "\\" in path or "/../" in path or path.endswith("/..")
