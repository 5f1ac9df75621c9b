"""Replaced token detection: which words of a caption has a generator replaced?

(ELECTRA, Clark et al., ICLR 2020; beside pictures: VL-Match, ICCV 2023).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.losses.mlm import MaskedText, scatter_positions
from nas_jax.typing import Array, Vocabulary


def sample_words(seeds_B: Array, logits_BxMxV: Array, vocabulary: Vocabulary) -> Array:
    """A word for each masked position, (B, M), drawn from softmax(logits); no special token.

    seeds: uint32, one a row, so that a row gets the same words in whatever piece it is. No gradient
    goes through the draw.
    """
    special = jnp.asarray([vocabulary.pad, vocabulary.cls, vocabulary.sep, vocabulary.mask])
    logits_BxMxV = jax.lax.stop_gradient(logits_BxMxV).at[..., special].set(-jnp.inf)

    def row(seed: Array, logits_MxV: Array) -> Array:
        return jax.random.categorical(jax.random.key(seed), logits_MxV)

    return jax.vmap(row)(seeds_B, logits_BxMxV)


def replaced_text(token_ids_BxL: Array, masked: MaskedText, words_BxM: Array) -> Array:
    """The true caption (B, L) with the words in place of those that were masked."""
    words_BxM = words_BxM.astype(token_ids_BxL.dtype)
    return scatter_positions(token_ids_BxL, masked.positions_BxM, words_BxM, masked.weights_BxM > 0)


def detection_loss(
    logits_BxL: Array, replaced_BxL: Array, real_BxL: Array
) -> tuple[Array, dict[str, Array]]:
    """Mean binary cross-entropy of "replaced" over real tokens, float32; 0 without any.

    replaced: True where the token is another than that of the true caption; a word that the
    generator has restored is not replaced. Also shares: of tokens that are replaced, of tokens that
    are judged rightly, and of replaced ones that are found.
    """
    logits_BxL = logits_BxL.astype(jnp.float32)
    signed_BxL = jnp.where(replaced_BxL, logits_BxL, -logits_BxL)
    losses_BxL = jnp.where(real_BxL, jax.nn.softplus(-signed_BxL), 0.0)
    right_BxL, count = (signed_BxL > 0) & real_BxL, jnp.maximum(real_BxL.sum(), 1)
    found_BxL = replaced_BxL & real_BxL
    shares = {
        "replaced_share": found_BxL.sum() / count,
        "accuracy": right_BxL.sum() / count,
        "found_share": (right_BxL & found_BxL).sum() / jnp.maximum(found_BxL.sum(), 1),
    }
    return losses_BxL.sum() / count, shares
