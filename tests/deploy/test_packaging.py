"""The requirement files, the import rules' blind spots, and what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.compose import ROOT

ROOMS = ("everlens", "service", "worker", "bench")

# Asked for by the metadata of what is installed without its dependencies; see the comments there.
LEFT_OUT = {"valkey", "pandas", "matplotlib", "sentence-transformers"}


def pinned(name: str) -> dict[str, Requirement]:
    """Return the requirements of one file by name."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def runtime() -> dict[str, Requirement]:
    """Return what `make up` installs."""
    return (
        pinned("requirements.txt")
        | pinned("requirements-torch.txt")
        | pinned("requirements-nodeps.txt")
    )


def test_every_requirement_is_exact() -> None:
    """Each file names one version of each package."""
    tools = pinned("requirements-dev.txt") | pinned("requirements-tools.txt")
    for requirement in (runtime() | pinned("requirements-otel.txt") | tools).values():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement


def version_of(requirement: Requirement) -> str:
    """Return all but the name, which each tool writes in its own way."""
    return f"{requirement.specifier} {requirement.marker or ''}"


def locked(name: str) -> dict[str, tuple[str, set[str]]]:
    """Return what a lock file says of each package: its version, and the hashes of its files."""
    joined = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, tuple[str, set[str]]] = {}
    for line in joined.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            parsed = Requirement(requirement)
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h.strip()) for h in hashes), line
            found[canonicalize_name(parsed.name)] = (
                version_of(parsed),
                {h.strip() for h in hashes},
            )
    return found


def test_the_locks_are_those_of_the_pins() -> None:
    """`make lock` was run after the last change of a pin; PyTorch's builds alone have no hash."""
    pins = pinned("requirements.txt") | pinned("requirements-nodeps.txt")
    del pins["torchvision"]

    for name, expected in (
        ("requirements.lock", pins),
        ("requirements-otel.lock", pinned("requirements-otel.txt")),
        ("requirements-dev.lock", pinned("requirements-dev.txt")),
    ):
        found = locked(name)
        assert {n: version for n, (version, _) in found.items()} == {
            n: version_of(requirement) for n, requirement in expected.items()
        }
        assert all(hashes for _, hashes in found.values())
    # Every platform's files: a compiled package has a wheel for each.
    assert all(len(locked("requirements.lock")[name][1]) > 10 for name in ("numpy", "pillow"))


def test_what_has_a_hash_is_installed_by_it() -> None:
    """Each pip of the Makefile that could take a file by its hash does; PyTorch's two cannot."""
    makefile = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text(encoding="utf-8"))
    without = [
        call.split()[-1]
        for call in re.findall(r"\$\(PIP\) install ([^\n&]*--requirement \S+)", makefile)
        if "--require-hashes" not in call
    ]

    assert without == ["requirements-torch.txt", "requirements-nodeps.txt"]
    # Of the second, torchvision alone is not in place already.
    assert set(pinned("requirements-nodeps.txt")) - set(locked("requirements.lock")) == {
        "torchvision"
    }


@pytest.mark.parametrize("more", [[], ["otel"], ["otel", "dev"]])
def test_requirements_are_their_own_closure(more: list[str]) -> None:
    """What the pinned packages ask for is pinned too, so that an old lock installs the same."""
    known = runtime()
    for name in more:
        known |= pinned(f"requirements-{name}.txt")
    missing = set()
    for name in known:
        try:
            asked = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # another platform's
        for line in asked:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing.add(canonicalize_name(requirement.name))

    # The parts of a CUDA build of torch follow torch's own pins.
    left = {n for n in missing - set(known) if not n.startswith(("nvidia", "triton", "cuda"))}
    assert left <= LEFT_OUT


def test_the_code_imports_only_what_the_project_asks_for() -> None:
    """Each third-party package that a room imports is a dependency, and is pinned."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    asked = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    # What the extra `otel` brings is imported where a collector is named.
    extra = {
        canonicalize_name(Requirement(line).name)
        for line in project["optional-dependencies"]["otel"]
    }
    assert extra <= set(pinned("requirements-otel.txt"))
    # open_clip itself asks for torchvision; what we do with it is make it importable. Statistics and
    # plots are the benches', which whoever only serves needs not.
    asked |= {canonicalize_name("torchvision"), canonicalize_name("scipy")}
    plots = {canonicalize_name("matplotlib")}
    # What the benches measure against they install into environments of their own.
    rivals = {"infinity-emb", "litserve", "peft", "transformers"}
    owners = packages_distributions()
    imported = {name for room in ROOMS for name in _imports(ROOT / room)}
    # `_typeshed` exists for type checkers alone.
    known = set(ROOMS) | sys.stdlib_module_names | {"_typeshed"}
    distributions = {
        canonicalize_name(owner)
        for name in imported - known
        for owner in set(owners.get(name, [name]))
    }

    # `opentelemetry` is a name that many share.
    distributions -= rivals | set(pinned("requirements-otel.txt"))
    assert distributions - asked == plots
    assert distributions - set(runtime()) == plots
    assert plots <= set(pinned("requirements-dev.txt"))


def _imports(room: Path) -> set[str]:
    found = set()
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    "module",
    ["everlens", "everlens.client", "everlens.cli", "everlens.records", "service.schemas"],
)
def test_light_modules_load_no_torch(module: str) -> None:
    """What a user's program or the command line imports starts without torch."""
    source = f"import sys, {module}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=False).returncode == 0


def test_the_service_never_trains() -> None:
    """No module of the service imports an optimiser, which the import rules cannot see."""
    for path in (ROOT / "service").rglob("*.py"):
        assert "torch.optim" not in path.read_text(encoding="utf-8"), path


def test_rooms_are_installed_with_their_data() -> None:
    """The package list covers every room, and the data patterns every file that is not Python."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    data = setuptools["package-data"]
    for room in ROOMS:
        assert f"{room}*" in setuptools["packages"]["find"]["include"]
        for path in (ROOT / room).rglob("*"):
            if path.is_dir() or path.suffix in {".py", ".pyc"} or "__pycache__" in path.parts:
                continue
            package = max((p for p in data if path.is_relative_to(_folder(p))), key=len, default="")
            assert package, f"{path} belongs to no package-data"
            inside = path.relative_to(_folder(package))
            assert any(inside.match(pattern) for pattern in data[package]), path


def _folder(package: str) -> Path:
    return ROOT.joinpath(*package.split("."))


def test_make_test_runs_checks_before_tests() -> None:
    """`make test` runs every check and then pytest, and .ci/run is `make test`."""
    said = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.dev", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    order = ["ruff check", "ruff format --check", "mypy", "lint-imports", "-m pytest"]
    places = [said.index(f"bin/{word}" if word[0] != "-" else word) for word in order]

    assert places == sorted(places)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_fresh_stamps_call_no_pip() -> None:
    """Once .venv holds what the files ask for, nothing is installed and no network is needed."""
    said = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.runtime", "--assume-old=.venv/.dev", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "pip" not in said
