"""Which other pairs of a batch are no negatives, because they are as right as the own one."""

from __future__ import annotations

import jax.numpy as jnp

from nas_jax.typing import Array


def same_words(
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    other_ids_PxL: Array,
    other_mask_PxL: Array,
    class_V: Array | None = None,
) -> Array:
    """True (B, P) where two captions have the same tokens in the same order.

    class: a number for each word that is equal for synonyms; None: each word is its own. Captions
    without a token are the same as none.
    """
    if class_V is not None:
        token_ids_BxL, other_ids_PxL = class_V[token_ids_BxL], class_V[other_ids_PxL]
    token_ids_BxL = jnp.where(token_mask_BxL, token_ids_BxL, -1)
    other_ids_PxL = jnp.where(other_mask_PxL, other_ids_PxL, -1)
    same_BxP = (token_ids_BxL[:, None] == other_ids_PxL[None]).all(-1)
    return same_BxP & token_mask_BxL.any(-1)[:, None]


def others(same_BxB: Array) -> Array:
    """The same without the diagonal: what is ignored beside the own pair."""
    return same_BxB & ~jnp.eye(len(same_BxB), dtype=bool)
