"""The documents say what is there: settings, the tree, the links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from everlens.settings import settings_page
from service.reference import api_page
from tests.docs.rooms import rooms_page

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_settings_page_is_made_from_the_settings() -> None:
    """docs/settings.md names every setting with its default and meaning."""
    assert settings_page() == (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_api_page_is_made_from_what_serves() -> None:
    """docs/api.md names every route, field, error and metric."""
    assert api_page() == (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation_and_on_the_first_page() -> None:
    """No page is only found by who knows its name."""
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    navigation = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert pages == navigation
    assert pages - {"index.md"} == set(re.findall(r"\(([\w-]+\.md)\)", first))


def test_rooms_page_is_made_from_the_sources() -> None:
    """docs/rooms.md shows every source file with what it says of itself."""
    page = rooms_page()
    assert page == (ROOT / "docs" / "rooms.md").read_text(encoding="utf-8")
    assert not re.findall(r"^\| `.*` \|  \|$", page, re.MULTILINE), "a file says nothing of itself"


def test_tree_in_the_readme_is_the_tree_on_disk() -> None:
    """Every folder of the README's tree exists."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Rooms\n\n```text\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    path: list[str] = []
    for indent, name in re.findall(r"^( *)([\w/]+)/ ", block[1], re.MULTILINE):
        path[len(indent) // 2 :] = [name]
        assert (ROOT / "/".join(path)).is_dir(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link and every file named in backticks with a path exists."""
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (document.parent / target).exists(), target
    for target in re.findall(r"`((?:everlens|worker|service|bench|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target
