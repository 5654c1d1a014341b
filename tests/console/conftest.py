"""A running everlens with the starter, a browser, and pages whose complaints are collected."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.system.processes import (
    PATIENCE_S,
    clean_environment,
    everlens_up,
    free_port,
    started,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_START_S = 240  # of a machine that does other things beside
PATIENCE_MS = 120_000
expect.set_options(timeout=PATIENCE_MS)  # else five seconds

WIDE = (1280, 900)
PHONE = (390, 844)


@dataclass(frozen=True, slots=True)
class Running:
    """An everlens with real processes."""

    url: str
    data_dir: Path

    def teach(self, label: str, picture: bytes) -> None:
        """Send a labelled picture, as some other client does."""
        self._send("samples", picture, label=label)

    def ask(self, picture: bytes) -> None:
        """Send a picture to be classified, as some other client does."""
        self._send("classify", picture)

    def newest_picture(self) -> bytes:
        """Return the picture that was asked about last, as it came."""
        newest = self.get("predictions?order=newest&limit=1").json()["predictions"]
        (prediction,) = newest
        return self.get(f"predictions/{prediction['prediction_id']}/image").content

    def get(self, path: str) -> httpx.Response:
        """Return what a route answers."""
        return httpx.get(f"{self.url}/{path}", timeout=PATIENCE_S).raise_for_status()

    def _send(self, route: str, picture: bytes, **fields: str) -> None:
        files = {"image": ("picture", picture)}
        answer = httpx.post(f"{self.url}/{route}", data=fields, files=files, timeout=PATIENCE_S)
        answer.raise_for_status()


@dataclass
class Console:
    """The page, and whatever a browser has to complain of it."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def watch(self) -> None:
        """Collect errors, refused contents, and requests to other hosts from now on."""
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on("request", self._asked)
        # File choosers are caught only while somebody listens, and that begins a moment later.
        self.page.on("filechooser", lambda _: None)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def _asked(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((f"{self.url}/", "blob:", "data:")):
            self.complaints.append(f"a request to {request.url}")

    @property
    def status(self) -> str:
        """What the page says of the picture."""
        return self.page.locator("#status").inner_text()

    @property
    def version(self) -> int:
        """The version that the page says is answering."""
        return int(self.page.locator("#version").inner_text())

    @property
    def lines(self) -> list[str]:
        """The names of the answer, the most probable first."""
        return self.page.locator("#lines .name").all_inner_texts()

    def until_status(self, words: str) -> None:
        """Return when the page says this of the picture."""
        expect(self.page.locator("#status")).to_contain_text(words)

    def drop(self, picture: bytes, kind: str = "image/jpeg") -> None:
        """Drop a file on the page."""
        held = self._held(picture, kind)
        self.page.dispatch_event("#frame", "dragover", {"dataTransfer": held})
        self.page.dispatch_event("#frame", "drop", {"dataTransfer": held})

    def paste(self, picture: bytes, kind: str = "image/jpeg") -> None:
        """Paste a picture."""
        paste = (
            "(held) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: held}))"
        )
        self.page.evaluate(paste, self._held(picture, kind))

    def _held(self, picture: bytes, kind: str) -> object:
        script = """([text, type]) => {
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            const held = new DataTransfer();
            held.items.add(new File([bytes], "a picture", {type}));
            return held;
        }"""
        return self.page.evaluate_handle(script, [base64.b64encode(picture).decode(), kind])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Server, worker and service with the starter and nothing learnt."""
    data_dir, port = tmp_path_factory.mktemp("console"), free_port()
    environment = clean_environment(data_dir=str(data_dir), port=str(port))
    with started(everlens_up(), environment, data_dir / "up.log") as launcher:
        launcher.until_said("Ctrl-C here stops everything", _START_S)
        yield Running(f"http://127.0.0.1:{port}", data_dir)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        # One module long: while it lives, no test of asyncio can run.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield chromium
        chromium.close()


class Opener:
    """Opens the page, in as many ways as a test wants."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        self.opened: list[Console] = []

    def __call__(
        self,
        *,
        size: tuple[int, int] = WIDE,
        dark: bool = False,
        touch: bool = False,
        stream: bool = True,
    ) -> Console:
        """Return the page in a browser profile of its own; it may find no stream of events."""
        context = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
            is_mobile=touch,
            device_scale_factor=1,
        )
        context.set_default_timeout(PATIENCE_MS)
        console = Console(context.new_page(), self.url)
        console.watch()
        if not stream:
            console.page.route("**/events", lambda route: route.fulfill(status=503))
        console.page.goto(f"{self.url}/console")
        # It has heard from the service, or asks for a key.
        begun = console.page.locator("#connection", has_text="live")
        expect(begun.or_(console.page.get_by_role("dialog"))).to_be_visible()
        self.opened.append(console)
        return console


@pytest.fixture
def open_console(browser: Browser, running: Running) -> Iterator[Opener]:
    """Opens pages, which must have given a browser nothing to complain of."""
    opener = Opener(browser, running.url)
    yield opener
    for console in opener.opened:
        console.page.context.close()
    assert [] == [complaint for console in opener.opened for complaint in console.complaints]
