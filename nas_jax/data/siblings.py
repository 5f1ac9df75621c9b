"""Records that share a source, next to each other in a batch: variations of one picture, or pairs
that differ in little (Generative Negative Mining, WACV 2024, makes its batches so).

Two records share a source where the data say so (`Record.group`), or where their keys are equal up
to the last mark: `dog#0` and `dog#1`.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from nas_jax.data.corpus import Corpus


class Siblings(grain.MapDataset):
    """Endless record indices in blocks of `count`: variations of one source, drawn without
    replacement, filled up with records drawn from all where it has fewer.

    The sources are shuffled anew each epoch. A block is a function of seed and place.
    """

    def __init__(self, groups: Sequence[Sequence[int]], count: int, seed: int):
        self._groups = [tuple(group) for group in groups]
        self._records = sum(map(len, self._groups))
        order = grain.MapDataset.range(len(self._groups)).shuffle(seed=seed).repeat(None)
        super().__init__(order)
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return len(self._parent)  # endless

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        number, place = divmod(index, self._count)
        group = self._groups[self._parent[number]]
        rng = np.random.default_rng((self._seed, number))
        drawn = [group[k] for k in rng.permutation(len(group))[: self._count]]
        filled = rng.integers(self._records, size=self._count)
        return drawn[place] if place < len(drawn) else int(filled[place])


def groups_of(source: Corpus) -> list[list[int]]:
    """The records of each source, in the order of its first one. Reads all keys and groups."""
    groups: dict[tuple[int, str], list[int]] = {}
    for index in range(len(source)):
        part = 0 if source.shared_keys else source.part(index)
        groups.setdefault((part, source.group(index)), []).append(index)
    return list(groups.values())
