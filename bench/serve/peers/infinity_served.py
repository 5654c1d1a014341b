"""
infinity over a CLIP of ViT-B/32's shape: `infinity_served.py FOLDER v2 ...` as its own command.

The model is made here, with random weights and a tokenizer of a few bytes, since no hub is asked;
only pictures are embedded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from everlens.model.runtime import import_torchvision


def write_model(folder: Path) -> None:
    """Write a model folder as `transformers` reads it."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    folder.mkdir(parents=True, exist_ok=True)
    words = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: k for k, word in enumerate(words)}))
    merges.write_text("#version: 0.2\na b</w>\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges))
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
    CLIPModel(CLIPConfig()).save_pretrained(folder)


def main() -> None:
    """Write the model if it is not there, then serve until told to stop."""
    import_torchvision()  # a CUDA build of it beside a CPU torch, in this environment too
    folder = Path(sys.argv.pop(1))
    if not (folder / "model.safetensors").exists():
        write_model(folder)
    from infinity_emb.cli import cli

    cli()


if __name__ == "__main__":
    main()
