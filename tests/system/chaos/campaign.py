"""Cases by name, how they are run, and what the campaign says of them at the end."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bench.tiny_clip import write_tiny_clip
from tests.folders import quick
from tests.system.chaos.forked import Zygote
from tests.system.chaos.ground import Broken, Ground, NotPossible, Quiet
from tests.system.chaos.tally import Tally

HELD, FAILED, NOT_POSSIBLE = "held", "FAILED", "not possible here"


@dataclass(frozen=True, slots=True)
class Case:
    """
    One thing that must hold.

    Args:
        name: what `--only` selects by.
        fault: its row in the table of faults, or "".
        holds: one sentence.
        run: raises `Broken` where it does not hold.
        when: "fast" runs, "full" runs, or "both".
        needs: conditions that must have occurred in it.
    """

    name: str
    fault: str
    holds: str
    run: Callable[[Ground], None]
    when: str
    needs: tuple[str, ...]


CASES: dict[str, Case] = {}


def case(
    fault: str = "", *, when: str = "both", needs: Sequence[str] = ()
) -> Callable[[Callable[[Ground], None]], Callable[[Ground], None]]:
    """Register a function as a case; its name and docstring are the case's."""

    def register(run: Callable[[Ground], None]) -> Callable[[Ground], None]:
        add(run.__name__.replace("_", "-"), run, fault=fault, when=when, needs=needs)
        return run

    return register


def add(
    name: str,
    run: Callable[[Ground], None],
    *,
    holds: str = "",
    fault: str = "",
    when: str = "both",
    needs: Sequence[str] = (),
) -> None:
    """Register a case that is made from a table."""
    said = holds or " ".join((run.__doc__ or "").split())
    CASES[name] = Case(name, fault, said, run, when, tuple(needs))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one case with one seed."""

    name: str
    fault: str
    holds: str
    seed: int
    verdict: str
    detail: str
    seconds: float

    def line(self) -> str:
        """Return it as people read it while the campaign runs."""
        fault = f"{self.fault} " if self.fault else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.verdict:9} {fault}{self.name} seed {self.seed} {self.seconds:.1f} s{detail}"


class Campaign:
    """Runs cases over one zygote, some at a time; remembers verdicts and counts."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.directory = Path(tempfile.mkdtemp(prefix="chaos-", dir=quick()))
        self.tally = Tally()
        self.verdicts: list[Verdict] = []
        self.not_begun = 0
        self._numbers = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.zygote = Zygote(write_tiny_clip(self.directory / "tiny"))
        self.quiet = Quiet(self.zygote, self.directory / "quiet")
        self.quiet.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.zygote.close()
        self.quiet.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def run(self, cases: Sequence[tuple[Case, int]], minutes: float) -> None:
        """Run each case with its seed; begin none after so many minutes."""
        until = time.monotonic() + 60 * minutes
        pool = ThreadPoolExecutor(self.jobs)
        try:
            for verdict in pool.map(lambda job: self._one(job[0], job[1], until), cases):
                if verdict is None:
                    self.not_begun += 1
                else:
                    self.verdicts.append(verdict)
        finally:  # told to stop: what runs is let run, as its processes must be ended
            pool.shutdown(cancel_futures=True)

    def _one(self, case: Case, seed: int, until: float) -> Verdict | None:
        if time.monotonic() > until:
            return None
        with self._lock:
            self._numbers += 1
            directory = self.directory / str(self._numbers)
        began = time.monotonic()
        tally = Tally()
        ground = Ground(self.zygote, self.quiet, directory, seed, tally)
        verdict, detail = HELD, ""
        try:
            case.run(ground)
            detail = "; ".join(ground.notes)
            missing = [name for name in case.needs if not tally[name]]
            if missing:
                verdict, detail = FAILED, f"never happened: {', '.join(missing)}"
        except NotPossible as reason:
            verdict, detail = NOT_POSSIBLE, str(reason)
        except Broken as reason:
            verdict, detail = FAILED, str(reason)
        except Exception:
            verdict, detail = FAILED, traceback.format_exc()
        finally:
            ground.close()
        for outcome, count in ground.ledger.asked.items():
            tally.add(f"asked_{outcome}", count)
        self.tally.include(tally)
        seconds = time.monotonic() - began
        said = Verdict(case.name, case.fault, case.holds, seed, verdict, detail, round(seconds, 2))
        print(said.line(), file=sys.stderr, flush=True)
        return said

    # The end

    def failures(self, needs: Sequence[str]) -> list[str]:
        """Return why the campaign fails: cases, and conditions that never occurred."""
        broken = [verdict.name for verdict in self.verdicts if verdict.verdict == FAILED]
        return broken + [f"never happened: {name}" for name in needs if not self.tally[name]]

    def summary(self) -> dict[str, object]:
        """Return the campaign in one record."""
        counts = self.tally
        asked = counts["asked_right"] + counts["asked_failed"]
        return {
            "cases": len(self.verdicts),
            "failed": sum(v.verdict == FAILED for v in self.verdicts),
            "not_possible": sum(v.verdict == NOT_POSSIBLE for v in self.verdicts),
            "not_begun": self.not_begun,
            "worker_kills": counts["worker_kills"],
            "server_kills": counts["server_kills"],
            "acked": counts["acked"],
            "lost": counts["lost"],
            "double": counts["double"],
            "identical": counts["different"] == 0,
            "classify_success": round(counts["asked_right"] / asked, 6) if asked else None,
            "mutations_caught": counts["mutations_caught"],
            "mutations": sum(name.startswith("mutation-") for name in CASES),
        }

    def report(self, path: Path) -> None:
        """Write all verdicts and counts as JSON."""
        record = {
            "summary": self.summary(),
            "counts": self.tally.all(),
            "cases": [asdict(verdict) for verdict in self.verdicts],
        }
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
