"""Where learning stands, in the words of `everlens status`, once and as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everlens.client import Learning
from everlens.client.results import counted, percent

_EXPERTS = ("zero_shot", "evidence", "adapter")
_NONE = "–"


def standing(about: Learning) -> dict[str, str]:
    """Return how far learning is, by name."""
    lag = about.accepted_through - about.learned_through
    return {
        "version": str(about.version),
        "learnt": f"{about.learned_through} of {about.accepted_through}",
        "lag": f"{max(lag, 0)} entries",
        "backlog": f"{about.backlog.entries} ({_megabytes(about.backlog.bytes)})",
        "accuracy": share(about.learner.get("prequential_accuracy_recent")),
    }


def notes(about: Learning) -> dict[str, str]:
    """Return what somebody has to know while it holds."""
    said = {"pinned": about.pinned, "paused": about.paused, "held": about.held}
    return {name: str(note) for name, note in said.items() if note is not None}


def of_learner(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what the learner says of itself, by name; what it does not know yet is left out."""
    known = {name: value for name, value in report.items() if value is not None}
    rows: dict[str, str] = {}
    if "classes" in known and "samples" in known:
        rows["classes"] = f"{known['classes']}, of {counted(known['samples'], 'label')}"
    if "prequential_accuracy" in known:
        answers = counted(known["prequential_samples"], "answer")
        rows["accuracy in all"] = f"{share(known['prequential_accuracy'])} of {answers}"
    recall = known.get("expert_recall", {})
    if any(value is not None for value in recall.values()):
        parts = (f"{name.replace('_', '-')} {share(recall.get(name))}" for name in _EXPERTS)
        rows["recall of each expert"] = ", ".join(parts)
    if "forgetting" in known:
        rows["forgetting"] = f"{100 * known['forgetting']:.1f} points below each class's best"
    if "fusion" in known:
        parts = (f"{name.replace('_', ' ')} {x:.3g}" for name, x in known["fusion"].items())
        rows["fusion"] = ", ".join(parts)
    if known.get("class_weight_max", 1.0) != 1.0:
        rows["class weights"] = f"up to {known['class_weight_max']:.2f} of their mean"
    if "exemplars" in known:
        size = _megabytes(known.get("exemplar_bytes", 0))
        rows["replay buffer"] = f"{counted(known['exemplars'], 'picture')} ({size})"
    if "rounds_owed" in known:
        rows["rounds of tuning owed"] = str(known["rounds_owed"])
    if known.get("adapter_batch"):
        rows["adapter"] = f"published after batch {known['adapter_batch']} of {known['batch']}"
    if known.get("samples_per_s"):
        rows["speed"] = f"{known['samples_per_s']:.1f} samples/s"
    if "numerics" in known:
        rows["numerics"] = known["numerics"]
    return rows


def share(value: object) -> str:
    """Return a share in per cent; a dash where it is not known."""
    return percent(value) if isinstance(value, float | int) else _NONE


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
