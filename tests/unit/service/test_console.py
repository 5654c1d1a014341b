"""The page at /console as files: sent whole, asked about again, and closed to what is not its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.routes import console
from tests.unit.service.api import Api

pytestmark = pytest.mark.anyio

FOLDER = Path(console.__file__).parents[1] / "console"
FILES = sorted(path.name for path in FOLDER.iterdir())

# What makes markup, styles or programs out of a text.
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|document\.write|DOMParser|srcdoc"
    r"|\beval\b|new Function|javascript:|setAttribute\(\"(style|on)"
)


async def test_page_and_its_files_are_sent_and_asked_about_again(api: Api):
    """Each file comes with its type, the policy and a tag; who shows the tag gets none of it twice."""
    for path in ("/console", *(f"/console/{name}" for name in FILES)):
        sent = await api.client.get(path)
        assert sent.status_code == 200, path
        assert sent.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self';" in sent.headers["content-security-policy"]
        assert "unsafe" not in sent.headers["content-security-policy"]

        tag = sent.headers["etag"]
        for shown in (tag, f"W/{tag}", f'"other", {tag}'):
            again = await api.client.get(path, headers={"If-None-Match": shown})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = await api.client.get(path, headers={"If-None-Match": '"other"'})
        assert other.content == sent.content
    assert (await api.client.get("/console")).headers["content-type"].startswith("text/html")


async def test_folder_leads_to_the_page_wherever_it_is_served(api: Api):
    """`/console/` leads one up and not to the root, which may be somebody else's."""
    answer = await api.client.get("/console/")
    assert (answer.status_code, answer.headers["location"]) == (308, "../console")


@pytest.mark.parametrize("name", ["app.py", "..%2fapp.py", "%2e%2e%2fapp.py", "main.js%00"])
async def test_nothing_else_is_sent(api: Api, name):
    """A path is looked up among the page's files, and never on the disk."""
    answer = await api.client.get(f"/console/{name}")
    assert b"create_app" not in answer.content
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", FILES)
def test_file_names_no_other_host_and_makes_no_markup(name: str):
    """No address but relative ones; no text becomes markup, a style or a program."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert set(re.findall(r"\w+://[^\"'\s)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not SINKS.findall(text)
    if name == "index.html":
        assert not re.findall(r"<style|<script(?![^>]* src=)|\s(?:on\w+|style)=", text)


def test_what_the_files_name_is_there():
    """Every import, link and element that a file asks for by name exists."""
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="console/([^"]+)"', page)) <= set(FILES)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for path in FOLDER.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for names, module in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', text):
            exported = (FOLDER / module).read_text(encoding="utf-8")
            for name in re.findall(r"\w+", names):
                assert re.search(rf"export (async )?(function|const|class) {name}\b", exported), (
                    name
                )
        assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= set(ids), path.name
