"""Two towers that give all their tokens, and networks that predict what two tokens are worth to
each other (UNSIL of LOUPE, Li et al., NeurIPS 2022).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.models.towers import TwoTowers, normalise_image, unit
from nas_jax.typing import Array

LEVELS = ("tokens", "phrases")  # patches and words; regions and phrases
MOST_LOG_VARIANCE = 6.0  # of a predicted interaction; and minus that the least


class InteractionNetwork(nn.Module):
    """UNSIL: from two tokens and what is around them to their interaction and its uncertainty."""

    hidden: int

    @nn.compact
    def __call__(self, x_BxNxE: Array, y_BxLxE: Array, plays_BxNxL: Array) -> tuple[Array, Array]:
        """Unit features -> predicted interaction and its log variance, (B, N, L), float32."""
        cosine_BxNxL = jnp.einsum("bne,ble->bnl", x_BxNxE, y_BxLxE)
        kept_BxNxL = jnp.where(plays_BxNxL, cosine_BxNxL, -1.0)
        counts = (plays_BxNxL.any(axis).sum(-1)[:, None, None] for axis in (2, 1))
        features = (
            cosine_BxNxL,
            kept_BxNxL.max(2, keepdims=True),  # of the first with its best second
            kept_BxNxL.max(1, keepdims=True),
            *(1 / jnp.maximum(count_Bx1x1, 1) for count_Bx1x1 in counts),
        )
        features_BxNxLx5 = jnp.stack(
            [jnp.broadcast_to(x, cosine_BxNxL.shape) for x in features], -1
        )
        first_BxNx1xH = nn.Dense(self.hidden, name="first")(x_BxNxE)[:, :, None]
        second_Bx1xLxH = nn.Dense(self.hidden, name="second")(y_BxLxE)[:, None]
        pair_BxNxLxH = nn.Dense(self.hidden, name="pair")(features_BxNxLx5)
        mixed_BxNxLxH = nn.gelu(first_BxNx1xH + second_Bx1xLxH + pair_BxNxLxH)
        mean_BxNxL, spread_BxNxL = jnp.moveaxis(nn.Dense(2, name="out")(mixed_BxNxLxH), -1, 0)
        return mean_BxNxL, MOST_LOG_VARIANCE * jnp.tanh(spread_BxNxL / MOST_LOG_VARIANCE)


class LoupeNetwork(TwoTowers):
    """Two towers whose features are means of projected tokens, and a network for each level."""

    hidden: int = 64

    def setup(self):
        super().setup()
        self.token_interactions = InteractionNetwork(self.hidden)
        self.phrase_interactions = InteractionNetwork(self.hidden)

    def encode_image(self, image_BxHxWx3: Array) -> tuple[Array, Array]:
        """Projected tokens (B, T, E), [CLS] first, and unit features (B, E): their mean."""
        tokens_BxTxE = self.image_proj(self.image_encoder(normalise_image(image_BxHxWx3)))
        tokens_BxTxE = tokens_BxTxE.astype(jnp.float32)
        return tokens_BxTxE, unit(tokens_BxTxE.mean(1))

    def encode_text(
        self, token_ids_RxL: Array, token_mask_RxL: Array, seeds_R: Array | None = None
    ) -> tuple[Array, Array]:
        """Projected tokens (R, L, E), and unit features (R, E): the mean of the real ones."""
        tokens_RxLxE = self.text_proj(self.text_encoder(token_ids_RxL, token_mask_RxL, seeds_R))
        tokens_RxLxE = tokens_RxLxE.astype(jnp.float32)
        return tokens_RxLxE, unit((tokens_RxLxE * token_mask_RxL[..., None]).sum(1))

    def interactions(self, level: str, *inputs: Array) -> tuple[Array, Array]:
        """What the network of that level predicts (see `InteractionNetwork`)."""
        return (self.token_interactions if level == "tokens" else self.phrase_interactions)(*inputs)

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        x_BxTxE, _ = self.encode_image(image_BxHxWx3)
        y_BxLxE, _ = self.encode_text(token_ids_BxL, token_mask_BxL)
        for level in LEVELS:
            self.interactions(level, x_BxTxE, y_BxLxE, jnp.ones((1, len(x_BxTxE[0]), 4), bool))
