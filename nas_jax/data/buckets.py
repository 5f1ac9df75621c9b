"""Batches of captions of like length, so that little of a batch is padding.

Within a window of some batches the samples are sorted by the length of their caption, cut into
batches and those put in random order. Each sample is still seen once an epoch; what changes is
which captions meet in a batch.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import grain
import numpy as np

from nas_jax.data.records import Draw

KEPT_WINDOWS = 4  # workers read ahead, over the border of a window


@dataclass(frozen=True)
class Grouping:
    """How a stream is grouped."""

    lengths: tuple[int, ...]  # rising; the last holds every caption, cut off if need be
    batch_size: int  # of the global batch
    window: int  # batches
    seed: int
    count_tokens: Callable[[list[Draw]], list[int]]


class ByLength(grain.MapDataset):
    """Draws of the parent in another order: those of a batch share their `length`.

    Place p is in batch p // batch_size.
    """

    def __init__(self, parent: grain.MapDataset, grouping: Grouping):
        super().__init__(parent)
        self._grouping = grouping
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._windows: OrderedDict[int, list[Draw]] = OrderedDict()

    def __getstate__(self):
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_lock", "_windows")
        }

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        number, place = divmod(index, self._grouping.batch_size * self._grouping.window)
        with self._lock:
            if number not in self._windows:
                self._windows[number] = self._grouped(number)
            self._windows.move_to_end(number)
            while len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)
            return self._windows[number][place]

    def _grouped(self, number: int) -> list[Draw]:
        grouping = self._grouping
        size = grouping.batch_size * grouping.window
        draws = [self._parent[number * size + place] for place in range(size)]
        counts_P = np.minimum(grouping.count_tokens(draws), grouping.lengths[-1])
        rng = np.random.default_rng((grouping.seed, number))
        order_P = np.lexsort((rng.random(size), counts_P))  # by length, and by chance among equals
        grouped: list[Draw] = []
        for batch in rng.permutation(grouping.window):
            places = rng.permutation(
                order_P[batch * grouping.batch_size : (batch + 1) * grouping.batch_size]
            )
            length = grouping.lengths[bisect_left(grouping.lengths, int(counts_P[places].max()))]
            grouped += [replace(draws[place], length=length) for place in places]
        return grouped
