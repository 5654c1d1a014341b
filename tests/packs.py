"""The packs of pictures outside the repo: read where they are, visibly skipped where not."""

from __future__ import annotations

import pytest

from bench.packs import data_folder

PACKS = data_folder()

needs_packs = pytest.mark.skipif(
    not (PACKS / "caltech").is_dir(),
    reason=f"no packs of pictures at {PACKS} (they are not part of the repo)",
)
