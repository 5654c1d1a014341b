"""The fast subset of the chaos campaign, and that its checker shares nothing with the system."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.system.chaos.cases import CASES
from tests.system.chaos.mutants import SCENARIOS
from tests.system.chaos.page import FAULTS
from tests.system.processes import ROOT, clean_environment

SYSTEM = {"everlens", "service", "worker", "tests"}


def test_checker_shares_no_code_with_the_system() -> None:
    """What judges the system would not see a mistake that it makes itself."""
    source = (ROOT / "tests/system/chaos/truth.py").read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])

    assert imported
    assert not imported & SYSTEM


def test_every_mutation_has_a_scenario() -> None:
    """A broken rule that nobody runs proves nothing."""
    from tests.system.chaos.mutations import MUTATIONS  # loads torch

    assert set(SCENARIOS) == set(MUTATIONS)


def test_every_fault_has_a_case_and_every_case_a_verdict() -> None:
    """The page names all faults and all cases of a whole campaign, and none that failed."""
    cases = [case for case in CASES.values() if case.when != "fast"]
    said = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")

    assert {case.fault for case in CASES.values() if case.fault} == set(FAULTS)
    assert not [case.name for case in cases if f"| `{case.name}` |" not in said]
    assert "FAILED" not in said


@pytest.mark.alone
@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and asks prctl")
def test_fast_campaign() -> None:
    """No case fails, nothing acknowledged is lost or doubled, and every mutation is caught."""
    campaign = subprocess.run(
        [sys.executable, "-m", "tests.system.chaos", "--fast", "--seeds", "3", "--jobs", "3"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert campaign.returncode == 0, campaign.stderr
    summary = json.loads(campaign.stdout.splitlines()[-1])
    assert (0, 0, True) == (summary["lost"], summary["double"], summary["identical"])
    assert summary["not_begun"] == 0
    assert summary["mutations_caught"] == summary["mutations"] == len(SCENARIOS)
    assert summary["classify_success"] >= 0.999
