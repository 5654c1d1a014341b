"""What Hugging Face's route makes of a question; its client is asked in `tests/clients`."""

from __future__ import annotations

from service.routes.hugging_face import ZeroShotIn, _question
from service.schemas import EXAMPLE_IMAGE, TOP_MAX


def test_all_candidates_are_answered() -> None:
    """However many names EVERLENS_MAX_LABELS_PER_REQUEST allows."""
    names = [f"name {number}" for number in range(TOP_MAX + 1)]
    asked = ZeroShotIn.model_validate(
        {"inputs": EXAMPLE_IMAGE, "parameters": {"candidate_labels": names}}
    )
    fields = _question(asked, labels_max=2 * TOP_MAX).fields
    assert (fields.labels, fields.top) == (names, len(names))
