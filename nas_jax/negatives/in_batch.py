"""Hard negatives of the same batch, drawn by contrastive similarity (ALBEF, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.typing import Array


def allowed_negatives(image_id_B: Array, exclude_same_id: bool = True, shards: int = 1) -> Array:
    """(B, B), True where column j may stand as a negative of row i: never itself, nor a pair with
    its image id.

    shards: with more than 1, only rows of the same block of B / shards rows are allowed.
    """
    batch = image_id_B.shape[0]
    forbidden_BxB = jnp.eye(batch, dtype=bool)
    if exclude_same_id:
        forbidden_BxB |= image_id_B[:, None] == image_id_B[None]
    if shards > 1:
        block_B = jnp.arange(batch) // (batch // shards)
        forbidden_BxB |= block_B[:, None] != block_B[None]
    return ~forbidden_BxB


def draw_negative(key: Array, logits_BxB: Array, allowed_BxB: Array) -> Array:
    """One column for each row (B,) with probability softmax(logits) over the allowed ones.

    A row without any (all are forbidden in a batch of 1) gets some column; it is not a negative.
    """
    logits_BxB = jnp.where(allowed_BxB, jax.lax.stop_gradient(logits_BxB), -jnp.inf)
    return jax.random.categorical(key, logits_BxB)
