"""
Tables and plots of the lab's results, and the few figures that sum them up.

The best baseline of a stream is chosen in hindsight: of all of them, alone and with zero-shot at
every fixed weight, the one whose mean over the seeds is highest on the test pictures themselves.
That favours the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from bench.lab import metrics
from bench.lab.suite import Trial

mpl.use("Agg")  # files, no windows

from matplotlib import pyplot as plt

Results = Mapping[tuple[str, int], dict[str, Any]]


def write_report(
    trials: Sequence[Trial], seeds: Sequence[int], results: Results, out: Path
) -> dict[str, Any]:
    """Write `report.md` and the plots into `out`; return the summary."""
    out.mkdir(parents=True, exist_ok=True)
    streamed = [t.name for t in trials if t.streamed]
    unlabelled = [
        t.name for t in trials if "harmonic" in results[t.name, seeds[0]].get("served", {})
    ]
    bursts = [t.name for t in trials if "verdicts" in results[t.name, seeds[0]]]
    rest = [t.name for t in trials if t.name not in {*streamed, *unlabelled, *bursts}]
    parts = ["# The lab's report", f"Seeds {', '.join(map(str, seeds))}; mean ± sd over them."]
    gains = {name: _gain(name, seeds, results) for name in streamed}
    if streamed:
        parts += ["## Streams", _stream_table(streamed, seeds, results, gains)]
        parts += ["## Experts at the end", _voice_table(streamed, seeds, results)]
        _plot_streams(streamed, seeds, results, out / "streams.png")
        _plot_forgetting(streamed, seeds, results, out / "forgetting.png")
        _plot_fusion(streamed, seeds, results, out / "fusion.png")
    if unlabelled:
        parts += ["## Names without a label", _unlabelled_table(unlabelled, seeds, results)]
    if bursts:
        parts += ["## The gate after a burst", _burst_table(bursts, seeds, results)]
    if rest:
        parts += ["## Variants", _variant_table(rest, seeds, results)]
    (out / "report.md").write_text("\n\n".join(parts) + "\n")
    return _summary(streamed, unlabelled, seeds, results, gains) | {"report": str(out)}


def _of(results: Results, name: str, seeds: Sequence[int], *path: str) -> list[float]:
    """Return one figure of a trial for each seed."""
    values = []
    for seed in seeds:
        value: Any = results[name, seed]
        for key in path:
            value = value[key]
        values.append(float(value))
    return values


def _best_baseline(
    name: str, seeds: Sequence[int], results: Results, figure: str
) -> tuple[str, list[float]]:
    """Return the baseline that is best in hindsight, and its figure for each seed."""
    names = results[name, seeds[0]]["baselines"]
    found = {b: _of(results, name, seeds, "baselines", b, figure) for b in names}
    best = max(found, key=lambda b: float(np.mean(found[b])))
    return best, found[best]


def _gain(name: str, seeds: Sequence[int], results: Results) -> dict[str, list[float]]:
    """Return the paired lead over the best baseline for each seed, at the end and any time."""
    lead = {}
    for figure in ("last", "auc"):
        served = _of(results, name, seeds, "voices", "served", figure)
        _, baseline = _best_baseline(name, seeds, results, figure)
        lead[figure] = [a - b for a, b in zip(served, baseline, strict=True)]
    return lead


def _stream_table(
    names: Sequence[str],
    seeds: Sequence[int],
    results: Results,
    gains: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    rows = []
    for name in names:
        best, baseline = _best_baseline(name, seeds, results, "last")
        served = ("voices", "served")
        rows.append(
            [
                name,
                _mean(_of(results, name, seeds, *served, "last")),
                _mean(baseline),
                best,
                _interval(gains[name]["last"]),
                _mean(_of(results, name, seeds, *served, "auc")),
                _interval(gains[name]["auc"]),
                _mean(_of(results, name, seeds, *served, "avg")),
                _mean(_of(results, name, seeds, *served, "forgetting")),
                _mean(_of(results, name, seeds, *served, "worst"), 0),
                _mean(_of(results, name, seeds, "log_loss"), 2),
                _mean(_of(results, name, seeds, "calibration_error"), 3),
                _mean(_of(results, name, seeds, "samples_per_s")),
                _mean([b / 2**20 for b in _of(results, name, seeds, "replay_bytes")], 0),
            ]
        )
    head = (
        "stream | A_last | best baseline | which | lead (95 %) | A_auc | lead (95 %) | A_avg | "
        "forgetting | worst class | log-loss | ECE | samples/s | buffer MB"
    )
    return _table(head.split(" | "), rows)


def _voice_table(names: Sequence[str], seeds: Sequence[int], results: Results) -> str:
    voices = ("served", "zero-shot", "evidence", "adapter", "tuned text")
    rows = [
        [
            name,
            *(
                _mean(_of(results, name, seeds, "voices", voice, "last"))
                if voice in results[name, seeds[0]]["voices"]
                else ""
                for voice in voices
            ),
        ]
        for name in names
    ]
    return _table(["A_last", *voices], rows)


def _unlabelled_table(names: Sequence[str], seeds: Sequence[int], results: Results) -> str:
    rows = []
    for name in names:
        baselines = results[name, seeds[0]]["baselines"]
        harmonic = {
            b: float(np.mean(_of(results, name, seeds, "baselines", b, "harmonic")))
            for b in baselines
        }
        best = max(harmonic, key=lambda b: harmonic[b])
        detectors = results[name, seeds[0]]["baseline_auroc"]
        auroc = {
            b: float(np.mean(_of(results, name, seeds, "baseline_auroc", b))) for b in detectors
        }
        detector = max(auroc, key=lambda b: auroc[b])
        rows.append(
            [
                name,
                _mean(_of(results, name, seeds, "served", "learnt")),
                _mean(_of(results, name, seeds, "served", "unlabelled")),
                _mean(_of(results, name, seeds, "zero-shot", "unlabelled")),
                _mean(_of(results, name, seeds, "served", "harmonic")),
                f"{harmonic[best]:.1f} ({best})",
                _mean([100 * a for a in _of(results, name, seeds, "agreement")]),
                _mean(_of(results, name, seeds, "known_auroc"), 3),
                f"{auroc[detector]:.3f} ({detector})",
            ]
        )
    head = (
        "half of the classes | learnt | unlabelled | frozen model there | harmonic mean | "
        "best baseline's | agreement with frozen | known AUROC | best baseline's"
    )
    return _table(head.split(" | "), rows)


def _burst_table(names: Sequence[str], seeds: Sequence[int], results: Results) -> str:
    rows = []
    for name in names:
        for seed in seeds:
            verdict = results[name, seed]["verdicts"][-1]
            shown = ("published", "held_out", "before", "after", "error")
            rows.append([f"{name}, seed {seed}", *(str(verdict.get(key, "")) for key in shown)])
    return _table(["last adapter", "published", "held out", "before", "after", "error"], rows)


def _variant_table(names: Sequence[str], seeds: Sequence[int], results: Results) -> str:
    rows = []
    for name in names:
        there = [s for s in seeds if (name, s) in results]
        first = results[name, there[0]]
        if "voices" not in first:
            figures = {voice: _of(results, name, there, "last", voice) for voice in first["last"]}
            worst = ""
        else:
            voices = first["voices"]
            figures = {v: _of(results, name, there, "voices", v, "last") for v in voices}
            worst = _mean(_of(results, name, there, "voices", "served", "worst"), 0)
        shown = ("served", "evidence", "adapter", "tuned text", "AnytimeCL")
        rows.append([name, *(_mean(figures[v]) if v in figures else "" for v in shown), worst])
    head = ["A_last", "served", "evidence", "adapter", "tuned text", "AnytimeCL", "worst class"]
    return _table(head, rows)


def _summary(
    streamed: Sequence[str],
    unlabelled: Sequence[str],
    seeds: Sequence[int],
    results: Results,
    gains: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, Any]:
    summary: dict[str, Any] = {"seeds": len(seeds), "streams": len(streamed)}
    means = [float(np.mean(v)) for gain in gains.values() for v in gain.values()]
    if means:
        summary |= {"worst_gain": min(means), "mean_gain": float(np.mean(means))}
        errors = [float(np.mean(_of(results, n, seeds, "calibration_error"))) for n in streamed]
        summary |= {"ece": float(np.mean(errors)), "ece_worst": max(errors)}
    for key, name in (
        ("pacs_20_gain", "pacs domains 20"),
        ("pacs_3_gain", "pacs domains 3"),
        ("caltech_1_gain", "caltech 1 label"),
    ):
        if name in gains:
            summary[key] = float(np.mean(gains[name]["last"]))
    served = ("voices", "served")
    if "caltech class-incremental" in streamed:
        summary["forgetting"] = float(
            np.mean(_of(results, "caltech class-incremental", seeds, *served, "forgetting"))
        )
    if {"caltech correlated", "caltech shuffled"} <= set(streamed):
        gap = [
            float(np.mean(_of(results, f"caltech {kind}", seeds, *served, "last")))
            for kind in ("shuffled", "correlated")
        ]
        summary["correlated_gap"] = gap[0] - gap[1]
    if unlabelled:
        ratios = [
            a / b
            for name in unlabelled
            for a, b in zip(
                _of(results, name, seeds, "served", "unlabelled"),
                _of(results, name, seeds, "zero-shot", "unlabelled"),
                strict=True,
            )
            if b > 0
        ]
        summary["unseen_kept"] = float(np.mean(ratios)) if ratios else None
        summary["known_auroc"] = float(
            np.mean([np.mean(_of(results, name, seeds, "known_auroc")) for name in unlabelled])
        )
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in summary.items()}


def _plot_streams(names: Sequence[str], seeds: Sequence[int], results: Results, path: Path) -> None:
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=False):
        exams = results[name, seeds[0]]["exam"]
        for voice, colour in (
            ("served", "tab:red"),
            ("evidence", "tab:blue"),
            ("adapter", "tab:green"),
            ("zero-shot", "tab:grey"),
        ):
            lines = [
                results[name, seed]["voices"][voice]["accuracy"]
                for seed in seeds
                if voice in results[name, seed]["voices"]
            ]
            if lines:
                length = min(map(len, lines))
                mean = np.mean([line[-length:] for line in lines], axis=0)
                axis.plot(exams[-length:], mean, color=colour, label=voice, marker=".")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("labels so far")
        axis.set_ylabel("class-mean accuracy, %")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def _plot_forgetting(
    names: Sequence[str], seeds: Sequence[int], results: Results, path: Path
) -> None:
    """Draw recall by class (rows, in the order of the table) at the end of each task."""
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=False):
        recall = results[name, seeds[0]]["voices"]["served"]["recall"]
        matrix = np.array([[np.nan if v is None else v for v in row] for row in recall], float)
        first = np.argmax(~np.isnan(matrix), axis=0)
        axis.imshow(matrix[:, np.argsort(first, kind="stable")].T, aspect="auto", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("task")
        axis.set_ylabel("class")
    _save(figure, path)


def _plot_fusion(names: Sequence[str], seeds: Sequence[int], results: Results, path: Path) -> None:
    figure, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=False):
        fusion = results[name, seeds[0]]["fusion"]
        exams = results[name, seeds[0]]["exam"]
        for field in ("kappa", "text_power", "sharpness"):
            axis.plot(exams, [f[field] for f in fusion], label=field, marker=".")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("labels so far")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def _grid(count: int) -> tuple[Any, Any]:
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mean(values: Sequence[float], digits: int = 1) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _interval(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return f"{differences[0]:+.1f}"
    mean, half = metrics.paired_interval(differences)
    return f"{mean:+.1f} ± {half:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
