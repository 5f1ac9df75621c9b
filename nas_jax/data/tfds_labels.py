"""Pictures with a class, from TensorFlow Datasets: what a classification is tested on."""

from __future__ import annotations

import functools

import numpy as np

from nas_jax.data.tfds_source import open_split, stored_picture
from nas_jax.utils.errors import DataError


class TfdsLabels:
    """The pictures of `tfds:NAME[:SPLIT]` by their position, and the class of each."""

    def __init__(self, entry: str):
        """Reads all labels.

        Raises DataError: as `TfdsSource`, and where no single feature is the class.
        """
        opened = open_split(entry, "the entry")
        self._data, self._image = opened.data, opened.image
        features = opened.builder.info.features
        known = [name for name, feature in features.items() if hasattr(feature, "int2str")]
        if "label" not in known and len(known) != 1:
            got = f"{entry} with the class features {', '.join(known) or 'none'}"
            raise DataError(got, "one, or one named label", "use another data set")
        label = "label" if "label" in known else known[0]
        name_of = functools.cache(features[label].int2str)
        numbers = (int(self._data[k][label]) for k in range(len(self._data)))
        self.labels = tuple(name_of(number) for number in numbers)
        self.names = tuple(map(name_of, range(features[label].num_classes)))

    def read(self, name: str) -> bytes | np.ndarray:
        """The stored picture at a position. name: the position, in digits."""
        return stored_picture(self._data[int(name)][self._image])
