"""
Texts → token ids, as all-MiniLM-L6-v2 was trained: WordPiece, lower case, [CLS] … [SEP].

Padded to the longest text of the call only: class names are short, and a padded position costs as
much as a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

# The length the model was trained and is measured with by its authors.
TOKENS_MAX = 128


class WordPiece:
    """
    The tokenizer of the text tower: call it with texts.

    Args:
        definition: the JSON that the `tokenizers` library reads.
    """

    def __init__(self, definition: str) -> None:
        self._tokenizer = Tokenizer.from_str(definition)
        # Names come from clients: one that spells [PAD] must not become padding.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")  # noqa: S106 - no password

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the ids of `texts`, int64, texts × longest, 0 where a text has ended."""
        if not texts:
            return torch.zeros(0, 0, dtype=torch.int64)
        encodings = self._tokenizer.encode_batch(list(texts))
        return torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
