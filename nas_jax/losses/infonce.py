"""Contrast of the pairs of one batch in both directions (InfoNCE; CLIP, Radford et al. 2021)."""

from __future__ import annotations

import jax.numpy as jnp

from nas_jax.losses.itc import without
from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.parallel.mesh import pin, pin_rows
from nas_jax.typing import Array


def infonce(
    image_BxE: Array, text_BxE: Array, temp: Array, ignored_BxB: Array | None = None
) -> Array:
    """-log softmax(image . text / temp) at the own pair, the mean over pairs and directions.

    Features are unit vectors in float32; all other pairs of the (global) batch are negatives but
    those that are ignored: pair j of row i, in both directions; never on the diagonal.
    """
    own_B = jnp.arange(len(image_BxE))

    def direction(rows_BxE: Array, keys_BxE: Array) -> Array:
        logits_BxB = pin_rows(rows_BxE / temp @ pin(keys_BxE, None, None).T)
        logits_BxB = without(logits_BxB, ignored_BxB)
        return soft_cross_entropy((logits_BxB,), None, (own_B,), jnp.float32(0)).mean()

    return (direction(image_BxE, text_BxE) + direction(text_BxE, image_BxE)) / 2
