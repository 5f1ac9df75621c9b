"""Given negatives: captions and pictures that a data set has against its pictures, as fields of a
batch. `data/given_report.py` counts them.

A method or term that reads them names the fields in its `wants`; the numbers are
`method.negatives.given` and `method.negatives.given_images`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.readers import Encode, Example, Field, Spec
from nas_jax.data.records import NegativeCaption


@dataclass(frozen=True)
class GivenCaptions(Field):
    """Negative captions of the data: those of the drawn caption, and those of no caption in
    particular.

    Where there are more than places, they are drawn anew each epoch; where there are fewer, the
    mask of a place that stays empty is True on [CLS] alone. A text that cleaning makes equal to one
    of the record's captions is no negative.
    """

    count: int = 1  # of each of the kinds
    kinds: tuple[str, ...] = ()  # (): `count` of whatever kind

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        shape = self.count * max(1, len(self.kinds)), config.text_length
        return {"negative_ids_BxCxL": (shape, np.int32), "negative_mask_BxCxL": (shape, np.bool_)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        record, rng = example.record, example.rng("given captions")
        usable = usable_negatives(record.captions, record.negative_captions, example.prepared)
        caption = example.draw.caption(record.captions)
        near = [one for one in usable if one.of in ("", caption)]
        texts: list[str] = []
        for kind in self.kinds or (None,):
            among = [one.text for one in near if kind in (None, one.kind)]
            drawn = [among[k] for k in rng.permutation(len(among))[: self.count]]
            texts += drawn + [""] * (self.count - len(drawn))
        return {"texts": texts}

    def stack(self, values: Sequence[Mapping[str, Any]], encode: Encode) -> Mapping[str, Any]:
        """See Field."""
        texts = [value["texts"] for value in values]
        ids_BxCxL, mask_BxCxL = encode(texts)
        there_BxC = np.array([[bool(text) for text in row] for row in texts])
        mask_BxCxL[..., 1:] &= there_BxC[..., None]  # an empty place may have [SEP]
        return {"negative_ids_BxCxL": ids_BxCxL, "negative_mask_BxCxL": mask_BxCxL}


@dataclass(frozen=True)
class GivenImages(Field):
    """Negative pictures of the data, cropped and augmented as the record's own picture is.

    Where there are more than places, they are drawn anew each epoch.
    """

    count: int = 1

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        shape = self.count, config.image_size, config.image_size, 3
        return {
            "negative_image_BxCxHxWx3": (shape, np.uint8),
            "negative_image_valid_BxC": ((self.count,), np.bool_),
        }

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        given = example.record.negative_images
        drawn = example.rng("given images").permutation(len(given))[: self.count]
        size = example.config.image_size
        image_CxHxWx3 = np.zeros((self.count, size, size, 3), np.uint8)
        for place, number in enumerate(drawn):
            rng = np.random.default_rng(example.draw.seed)  # as of the picture's first view
            image_CxHxWx3[place] = example.view(rng, given[int(number)])
        valid_C = np.arange(self.count) < len(drawn)
        return {"negative_image_BxCxHxWx3": image_CxHxWx3, "negative_image_valid_BxC": valid_C}


def usable_negatives(
    captions: Sequence[str], negatives: Sequence[NegativeCaption], clean: Callable[[str], str]
) -> list[NegativeCaption]:
    """The negatives, cleaned, each once, without those that clean to a caption or to nothing."""
    if not negatives:
        return []
    true = {"", *map(clean, captions)}
    cleaned = dict.fromkeys(one._replace(text=clean(one.text)) for one in negatives)
    return [one for one in cleaned if one.text not in true]
