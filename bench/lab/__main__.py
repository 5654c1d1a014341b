"""
How well it learns, against what a user would pick instead: `python -m bench.lab`.

Every trial is a stream that the very learner of the worker reads once, with frozen baselines fed
the same pictures. Results lie as one file a trial and seed in the folder of `--out`; a run that was
stopped goes on where it was, and a change of the learner makes all of them anew. Tables and plots
lie beside them. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lab import suite
from bench.lab.report import write_report
from bench.lab.sources import SourceError
from bench.lab.workers import figures_of, run_all
from bench.packs import REPOSITORY, data_folder

QUICK_SEEDS, SEEDS = 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write the report, print one JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab", description="How well it learns, against frozen baselines."
    )
    parser.add_argument("--quick", action="store_true", help="a few streams, one seed: two minutes")
    parser.add_argument("--data", help="folder of packs")
    parser.add_argument("--source", help="a folder with a sub-folder a class, or a torchvision set")
    parser.add_argument("--seeds", type=int, help=f"{SEEDS}, or {QUICK_SEEDS} with --quick")
    parser.add_argument("--only", default="", help="only trials whose name contains this")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "data" / "lab")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    folder = data_folder(options.data)
    trials = [
        trial
        for trial in suite.all_trials(quick=options.quick, source=options.source)
        if options.only in trial.name
    ]
    if not trials:
        print(f"no trial's name contains {options.only!r}", file=sys.stderr)
        return 2
    missing = {t.source for t in trials if not options.source and not (folder / t.source).is_dir()}
    if missing:
        print(
            f"no pack {', '.join(sorted(missing))} at {folder}; give the folder of packs with "
            "--data, or pictures of your own with --source",
            file=sys.stderr,
        )
        return 2
    seeds = range(options.seeds or (QUICK_SEEDS if options.quick else SEEDS))
    jobs = [(trial, seed) for seed in seeds for trial in trials]
    begun = time.monotonic()
    try:
        run_all(jobs, folder, options.out, options.processes)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 2
    results = {(trial.name, seed): figures_of(options.out, trial, seed) for trial, seed in jobs}
    summary = write_report(trials, list(seeds), results, options.out)
    summary["seconds"] = round(time.monotonic() - begun)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
