"""Dockerfile: parsed and held against the repo, since no engine runs in the tests."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass

import pytest

from tests.deploy.compose import ROOT, load

INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER",
    "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction and the stage that it stands in (empty before the first FROM)."""

    stage: str
    name: str
    rest: str


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    """The Dockerfile's instructions, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found, stage = [], ""
    for line in joined.splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stage = rest.rpartition(" AS ")[2]
        found.append(Instruction(stage, name, rest.strip()))
    return found


def _of(instructions: list[Instruction], name: str, stage: str = "") -> list[str]:
    return [i.rest for i in instructions if i.name == name and stage in {"", i.stage}]


def test_only_known_instructions(instructions: list[Instruction]) -> None:
    """Every line begins with an instruction, so that the parser here saw them all."""
    assert {i.name for i in instructions} <= INSTRUCTIONS


def test_two_stages_of_one_base(instructions: list[Instruction]) -> None:
    """What builds and what runs are two stages on the same Python."""
    bases = [rest.split(" AS ") for rest in _of(instructions, "FROM")]

    assert [stage for _, stage in bases] == ["builder", "runtime"]
    assert len({base for base, _ in bases}) == 1


def test_every_source_exists_and_is_sent(instructions: list[Instruction]) -> None:
    """Each COPY names what is in the repo, and .dockerignore lets it through."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    let_through = [line[1:] for line in ignore if line.startswith("!")]
    for rest in _of(instructions, "COPY", "builder"):
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in let_through), source


def test_every_package_is_copied(instructions: list[Instruction]) -> None:
    """The image holds every package that the project consists of."""
    copied = {word for rest in _of(instructions, "COPY", "builder") for word in rest.split()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}

    assert packages - copied == set()


def test_requirements_are_installed_as_the_makefile_does(instructions: list[Instruction]) -> None:
    """Image and `make up` install the same files with the same options, in the same order."""

    def asked(text: str) -> list[tuple[str, bool, bool]]:
        calls = re.findall(r"install ([^\n&]*--requirement \S+)", text)
        return [
            (call.split()[-1], "--no-deps" in call, "--require-hashes" in call) for call in calls
        ]

    image = asked("\n".join(_of(instructions, "RUN", "builder")))
    makefile = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text(encoding="utf-8"))

    assert image == asked(makefile)[: len(image)]
    assert image == [
        ("requirements.lock", True, True),
        ("requirements-torch.txt", False, False),
        ("requirements-nodeps.txt", True, False),
        ("requirements-otel.lock", True, True),
    ]


def test_the_build_of_torch_is_an_argument(instructions: list[Instruction]) -> None:
    """TORCH_INDEX is empty by default and reaches pip only where PyTorch is installed."""
    runs = _of(instructions, "RUN", "builder")

    assert 'TORCH_INDEX=""' in _of(instructions, "ARG", "builder")
    assert [('"${TORCH_INDEX}"' in run) for run in runs if "--requirement" in run] == [
        False,
        True,
        True,
        False,
    ]


def test_no_address_of_an_index(instructions: list[Instruction]) -> None:
    """No file of the packaging names a package index: that is the machine's own affair."""
    for name in (
        "Dockerfile",
        "docker-compose.yml",
        ".env.example",
        "Makefile",
        "pyproject.toml",
        *(path.name for path in ROOT.glob("requirements*")),
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!127\.0\.0\.1|localhost|collector:)", text), name
        assert not re.search(r"(?m)^\s*(--(extra-)?index-url|-i|--find-links)\b", text), name
    assert instructions


def test_runs_as_a_user_of_its_own(instructions: list[Instruction]) -> None:
    """The runtime ends with an unprivileged user, who owns the places that are written to."""
    runs = " ".join(_of(instructions, "RUN", "runtime"))
    worker = load()["services"]["worker"]

    assert _of(instructions, "USER", "runtime") == ["everlens"]
    assert "--uid 10001" in runs
    for place in (volume.split(":")[1] for volume in worker["volumes"]):
        assert place in runs.partition("install -d -o everlens")[2]


def test_health_check_and_command_agree_with_compose(instructions: list[Instruction]) -> None:
    """The image by itself is the service, with the health check that compose gives it."""
    service = load()["services"]["service"]
    check = _of(instructions, "HEALTHCHECK", "runtime")[0].partition(" CMD ")[2]

    assert json.loads(_of(instructions, "CMD", "runtime")[0]) == service["command"]
    assert ["CMD", *json.loads(check)] == service["healthcheck"]["test"]
