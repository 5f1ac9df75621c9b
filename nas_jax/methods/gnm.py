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

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp

from nas_jax.data.readers import SourceId
from nas_jax.losses.infonce import infonce
from nas_jax.methods.config import NegativeTextConfig
from nas_jax.methods.negclip import NegClip, NegClipConfig
from nas_jax.methods.same import same_pairs
from nas_jax.methods.terms import Seen, Term, Terms
from nas_jax.typing import Array, Metrics
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class GnmConfig(NegClipConfig):
    """The temperature, and which pairs are no negatives; no negative captions are made."""

    name: str = "gnm"

    def validate(self) -> None:
        """Raises ConfigError where negative captions are asked for."""
        if self.negatives != NegativeTextConfig():
            raise ConfigError(
                f"negatives={self.negatives} with gnm, which makes none",
                "method.negatives as it is by default",
                "use method.name=negclip",
            )


@dataclass(frozen=True)
class Gnm(NegClip):
    """No state."""

    Config = GnmConfig
    wants = (SourceId(),)

    def terms(self) -> Terms:
        """CLIP's loss."""
        return {"itc": (1.0, BatchItc(self))}


class BatchItc(Term):
    """Symmetric cross-entropy of the pairs of a batch (CLIP), with gradients on both sides."""

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean of both directions; also how often a sibling is told from the own pair."""
        image_BxE, text_BxE = seen.student.image_BxE, seen.student.text_BxE
        ignored_BxB = same_pairs(self.method, seen.batch)
        loss = infonce(image_BxE, text_BxE, seen.params["temp"], ignored_BxB)
        source_id_B, image_id_B = seen.batch["source_id_B"], seen.batch["image_id_B"]
        sibling_BxB = source_id_B[:, None] == source_id_B[None]
        sibling_BxB &= image_id_B[:, None] != image_id_B[None]
        i2t_BxB = image_BxE @ text_BxE.T
        told_BxB = (jnp.diag(i2t_BxB)[:, None] > i2t_BxB) & sibling_BxB
        told = told_BxB.sum() / jnp.maximum(sibling_BxB.sum(), 1)
        return loss, {"siblings/told": told, "siblings/count": sibling_BxB.sum(-1).mean()}
