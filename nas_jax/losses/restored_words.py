"""Which words of a rewritten caption are to be restored, as masked language modelling sees them
(RVLM, AAAI 2023).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.losses.mlm import MaskedText, word_places
from nas_jax.parallel.mesh import gather_positions
from nas_jax.typing import Array, Vocabulary


def words_to_restore(
    key: Array,
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    rewritten_BxL: Array,
    vocabulary: Vocabulary,
    count: int,
) -> MaskedText:
    """`count` positions of each caption: those that were rewritten first, others drawn at random.

    The targets are the true words, so at the others the word that stands there. A caption that was
    not rewritten has weight 0 everywhere.
    """
    ids_BxL = token_ids_BxL
    changed_BxL = token_mask_BxL & (rewritten_BxL != ids_BxL)
    real_BxL = word_places(ids_BxL, token_mask_BxL, vocabulary)
    real_BxL &= changed_BxL.any(-1, keepdims=True)
    score_BxL = jax.random.uniform(key, ids_BxL.shape) + changed_BxL
    score_BxL = jnp.where(real_BxL, score_BxL, -1.0)
    score_BxM, positions_BxM = jax.lax.top_k(score_BxL, min(count, ids_BxL.shape[1]))
    targets_BxM = gather_positions(ids_BxL, positions_BxM)
    return MaskedText(
        rewritten_BxL, positions_BxM, targets_BxM, (score_BxM >= 0).astype(jnp.float32)
    )
