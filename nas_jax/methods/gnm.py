"""Generative Negative Mining: Enhancing Multimodal Compositional Reasoning of Visual Language
Models with Generative Negative Mining (Sahin et al., WACV 2024).

Hard negatives in both modalities are made by editing a part of a picture and its caption. The loss
is CLIP's; the method is what a batch holds: variations of one source stand in the same batch, so
each picture has near captions and each caption near pictures among its negatives.

The edited pictures are data: records whose keys are equal up to the mark "#" share a source, and
`data.siblings` says how many of a source are in a batch, filled up with other records
(`data/siblings.py`). The authors draw sources with weights from a matching score, which is left
out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax.numpy as jnp

from nas_jax.data.readers import SourceId
from nas_jax.losses.infonce import infonce
from nas_jax.methods.config import SameConfig
from nas_jax.methods.dual import DualConfig, DualEncoder
from nas_jax.methods.same import same_pairs
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree


@dataclass(frozen=True)
class GnmConfig(DualConfig):
    """The temperature, and which pairs are no negatives."""

    name: str = "gnm"
    itc: SameConfig = field(default_factory=SameConfig)


@dataclass(frozen=True)
class Gnm(DualEncoder):
    """No state."""

    Config = GnmConfig
    wants = (SourceId(),)

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """CLIP's loss, and how often a sibling scores below the own pair."""
        image_BxE, text_BxE = read
        loss = infonce(image_BxE, text_BxE, temp, same_pairs(self, batch))
        source_id_B, image_id_B = batch["source_id_B"], batch["image_id_B"]
        sibling_BxB = source_id_B[:, None] == source_id_B[None]
        sibling_BxB &= image_id_B[:, None] != image_id_B[None]
        i2t_BxB = image_BxE @ text_BxE.T
        right_BxB = (jnp.diag(i2t_BxB)[:, None] > i2t_BxB) & sibling_BxB
        accuracy = right_BxB.sum() / jnp.maximum(sibling_BxB.sum(), 1)
        count = sibling_BxB.sum(-1).mean()
        return loss, {"siblings/accuracy": accuracy, "siblings/count": count}
