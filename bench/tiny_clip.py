"""A small CLIP with random weights, as a folder that open_clip reads: no hub, loads in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}


def write_tiny_clip(folder: Path, blocks: int = 3) -> Path:
    """
    Write the model's configuration; `pretrained="random"` gives it weights by a fixed seed.

    Args:
        folder: where to; it is made.
        blocks: of its image tower.
    """
    model = CONFIG["model_cfg"]
    config = CONFIG | {
        "model_cfg": model | {"vision_cfg": model["vision_cfg"] | {"layers": blocks}}
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
