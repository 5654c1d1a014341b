"""
The picture that every version answers before it serves. ⑧

In the thread that builds versions, so that no query waits for it. Only what a version brought is
computed: the trunk's output and the frozen view of the picture are kept, and so is the tuned view
while the adapter stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everlens.errors import PartError
from everlens.model.backbone import Backbone
from everlens.model.classes import CHUNK, Classes, Table
from everlens.model.snapshot import Snapshot, Views
from everlens.model.tower import Hidden, Top
from everlens.pixels import Pixels
from service.batch_sizes import SMALL
from service.passes import Passes

# Classes that are asked for where there are more than one chunk of them. Their numbers were all looked
# at when they were read; what may still fail is to put them together.
_FEW = 16


class Probe:
    """Lets versions over one base model answer once; used by one thread."""

    def __init__(self, backbone: Backbone) -> None:
        self.picture = probe_picture(backbone)
        self._hidden: dict[int, Hidden] = {}  # by the number of blocks above the trunk
        self._views: dict[int, tuple[Top | None, Views]] = {}  # likewise, by the last tuned top

    def ask(self, snapshot: Snapshot) -> None:
        """
        Return when a version answers with numbers.

        Raises:
            PartError: it cannot, or its probabilities are not finite.
        """
        try:
            sums_B = self._answer(snapshot)
        except Exception as error:  # whatever a hostile part makes the libraries raise
            raise PartError(f"version {snapshot.version} cannot answer: {error}") from error
        if not bool(torch.isfinite(sums_B).all()):
            raise PartError(f"version {snapshot.version} answers with numbers that are not finite")

    def _answer(self, snapshot: Snapshot) -> Tensor:
        views = self._seen(snapshot)
        sums_B = torch.stack([view.sum(dim=-1) for view in views if view is not None]).sum(dim=0)
        classes = snapshot.classes
        if classes.names:
            asked: tuple[Sequence[str] | None, Tensor | Table] = (None, classes.text_CE)
            if len(classes.names) > CHUNK:  # a hundred times as many would take as long as a pass
                few = _first_learnt(classes, _FEW)
                asked = [classes.names[index] for index in few], classes.text_CE.at(few)
            sums_B = sums_B + snapshot.answer(views, *asked).probability_BK.sum(dim=-1)
        return sums_B

    def _seen(self, snapshot: Snapshot) -> Views:
        cut = len(snapshot.frozen_top.blocks)
        if cut not in self._hidden:
            self._hidden[cut] = snapshot.see_trunk([self.picture])
        top, views = self._views.get(cut, (None, None))
        if views is None or top is not snapshot.tuned_top:
            views = snapshot.look(self._hidden[cut], known=views)
            self._views = {cut: (snapshot.tuned_top, views)}  # not the tops of versions before
        return views


def _first_learnt(classes: Classes, most: int) -> Sequence[int]:
    """Return the indices of the first few classes that have a label."""
    if classes.labelled is None:
        return range(min(most, len(classes.names)))
    first: list[int] = classes.labelled[:most].tolist()
    return first


def warm_up(passes: Passes, snapshot: Snapshot, batch_max: int) -> None:
    """
    Record passes where a device plays them, and pass batches of each small size once.

    The first of each size, on each number of threads, takes several times as long. Larger ones pass
    where many wait, who then wait for one such pass: a start would wait for all of them.
    """
    picture = probe_picture(snapshot.backbone)
    passes.record(snapshot, batch_max, picture)
    for pictures in range(1, min(SMALL, batch_max) + 1):
        passes.see(snapshot, [picture] * pictures)


def probe_picture(backbone: Backbone) -> Pixels:
    """Return a picture with all levels in it."""
    size = backbone.pixels.size
    ramp = np.linspace(0, 255, size * size * 3).astype(np.uint8)
    return ramp.reshape(size, size, 3)
