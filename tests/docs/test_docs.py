"""The documents say what is there: settings, the tree, the links."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from everlens.settings import settings_page
from service.reference import api_page

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


def test_tree_in_the_readme_is_the_tree_on_disk() -> None:
    """Every folder and file of the README's tree exists, and every source file is in it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    named: set[str] = set()
    path: list[str] = []
    for line in block[1].splitlines():
        entry = re.match(r"( *)(\S+)", line)
        if entry is None:
            continue
        depth = len(entry[1]) // 2
        path[depth:] = [entry[2].rstrip("/")]
        if not entry[2].endswith("/"):
            named.add("/".join(path))
        assert (ROOT / "/".join(path)).exists(), "/".join(path)

    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.lua"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    sources = {
        name
        for name in tracked
        if name.split("/")[0] in {"everlens", "service", "worker", "bench"}
        and not name.endswith("__init__.py")
    }
    assert sources == {name for name in named if name.endswith((".py", ".lua"))}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link and every file named in backticks with a path exists."""
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (document.parent / target).exists(), target
    for target in re.findall(r"`((?:everlens|worker|service|bench|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target
