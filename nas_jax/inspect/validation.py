"""The pictures that a run is looked at with: those it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.image_ops import decode
from nas_jax.data.scene_pictures import SceneSpec
from nas_jax.data.scenes import SceneSource
from nas_jax.data.worlds import WORLDS
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class Pairs:
    """Pictures, each with a caption of it."""

    name: str
    images: Sequence[np.ndarray]  # uint8 (H, W, 3)
    captions: Sequence[str]
    image_ids: Sequence[int]
    scenes: Sequence[SceneSpec] = ()  # of drawn pictures


def validation_pairs(data: DataConfig, seed: int, count: int, cased: bool = False) -> Pairs:
    """Up to `count` pictures that were not trained on, each with its first caption.

    cased: of the tokenizer that will read the captions.

    Raises ConfigError where there are none.
    """
    # here: they import grain, which pictures and reports do not need
    from nas_jax.data.corpus import SCENES
    from nas_jax.data.pipeline import open_eval_sets

    if SCENES in data.train and not (data.holdout or data.val):
        source = SceneSource("val", count, seed, data.image_size, WORLDS[data.scene_world])
        records = [source[index] for index in range(count)]
        captions = [record.captions[0] for record in records]
        images = [decode(record.image) for record in records]
        ids = [record.image_id for record in records]
        return Pairs("scenes", images, captions, ids, [source.spec(k)[0] for k in range(count)])
    for found in open_eval_sets(data, seed, cased):
        kept = [index for index, captions in enumerate(found.captions) if captions][:count]
        if len(kept) > 1:
            # the place of an id among those that occur: ids have more bits than a batch's
            places = {one: place for place, one in enumerate(dict.fromkeys(found.image_ids))}
            ids = [places[found.image_ids[k]] if found.image_ids else k for k in kept]
            images = [found.images[k] for k in kept]
            return Pairs(found.name, images, [found.captions[k][0] for k in kept], ids)
    raise ConfigError(
        "no validation pictures with captions",
        "a run with two or more",
        "set data.holdout or data.val when training",
    )
