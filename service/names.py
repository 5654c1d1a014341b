"""Text vectors of names that were asked for, the most recent of them kept. ⑨"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from torch import Tensor

from everlens.model.backbone import Backbone

KEPT = 10_000


class NameVectors:
    """Computes each name's vector once; used on the model thread alone, but for `all_fit`."""

    def __init__(self, backbone: Backbone, kept: int = KEPT) -> None:
        self.backbone = backbone
        self.kept = kept
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
        self._fitting: OrderedDict[str, bool] = OrderedDict()

    def known(self, name: str) -> Tensor | None:
        """Return the vector text_E of a name that was computed before."""
        vector = self._vectors.get(name)
        if vector is not None:
            self._vectors.move_to_end(name)
        return vector

    def compute(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the vectors text_E of new names, from one pass of the text tower."""
        vectors_NE = self.backbone.name_embeddings(names)
        # Rows of their own: a view would keep all of them for one that is still asked for.
        found = {name: vectors_NE[row].clone() for row, name in enumerate(names)}
        self._vectors |= found
        while len(self._vectors) > self.kept:
            self._vectors.popitem(last=False)
        return found

    def all_fit(self, names: Iterable[str]) -> bool:
        """Return whether all are known to fit the text tower; may be asked from any thread."""
        return all(map(self._fitting.get, names))

    def first_unfit(self, names: list[str]) -> int | None:
        """Return the index of the first name that the text tower would cut, or None."""
        for index, name in enumerate(names):
            if name not in self._fitting:
                self._fitting[name] = self.backbone.name_fits(name)
                if len(self._fitting) > self.kept:
                    self._fitting.popitem(last=False)
            if not self._fitting[name]:
                return index
        return None
