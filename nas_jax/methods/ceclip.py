"""CE-CLIP: Contrasting Intra-Modal and Ranking Cross-Modal Hard Negatives to Enhance
Visio-Linguistic Fine-grained Understanding (Zhang et al., CVPR 2024).

NegCLIP's loss lets a negative caption be nearly as likely as the true one, so here it must also
rank below it by a margin that rises with the model, and captions must be apart from negative
captions. L = ITC + 0.2 rank + 0.3 intra-modal, the weights of the authors' script.

The margin of a kind of negatives is its mean gap in the step before, in [0, 10]. The intra-modal
loss has the picture's similarity as its positive, as in the paper; later code of the authors
differs (`losses/text_negatives.py` has the formulae).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from nas_jax.losses.text_negatives import next_margin, own_similarities
from nas_jax.methods.method import MethodState
from nas_jax.methods.negclip import NegClip, NegClipConfig
from nas_jax.methods.terms import Seen, Terms
from nas_jax.methods.text_negatives import NegativeIntraText, NegativeRank
from nas_jax.typing import Array, Params
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class CeClipConfig(NegClipConfig):
    """NegCLIP's switches, and the weights of the two losses beside it."""

    name: str = "ceclip"
    rank_weight: float = 0.2
    intra_weight: float = 0.3
    # the margin follows the model; False: it is negatives.rank_margin from the start
    adaptive_margin: bool = True

    negative_terms: ClassVar[tuple[str, ...]] = (
        "negative_itc", "negative_rank", "negative_intra_text",
    )  # fmt: skip

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        if self.rank_weight < 0 or self.intra_weight < 0:
            raise ConfigError(
                f"rank_weight={self.rank_weight}, intra_weight={self.intra_weight}",
                "0 or more",
                "0.2 and 0.3 are the authors'",
            )


@dataclass(frozen=True)
class CeClip(NegClip):
    """State: `rank_margin_C`, the margin of each kind of negative captions, where it adapts."""

    Config = CeClipConfig

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32); margins of 0."""
        params, state = super().init(rng)
        if self.config.adaptive_margin:
            state["rank_margin_C"] = jnp.zeros(self.config.negatives.count)
        return params, state

    def terms(self) -> Terms:
        """The terms of the loss, with their weights."""
        config = self.config
        return super().terms() | {
            "negative_rank": (config.rank_weight, NegativeRank(self)),
            "negative_intra_text": (config.intra_weight, NegativeIntraText(self)),
        }

    def next_state(self, state: MethodState, seen: Seen) -> MethodState:
        """The margins of the next step: the mean gaps of this one, at most `rank_margin`."""
        if not self.config.adaptive_margin:
            return state
        features = NegativeRank(self).features(seen)
        gaps = *own_similarities(*features), seen.negatives.texts.valid_BxC
        largest = self.config.negatives.rank_margin
        return state | {"rank_margin_C": next_margin(*gaps, state["rank_margin_C"], largest)}
