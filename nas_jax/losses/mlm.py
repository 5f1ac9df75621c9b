"""Masked language modelling on gathered positions, with soft labels of the teacher (ALBEF, eq.

4 and 7).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.parallel.mesh import gather_positions
from nas_jax.typing import Array, Vocabulary


class MaskedText(NamedTuple):
    """A corrupted batch of texts, and where the loss is taken: only M positions of a row reach the
    vocabulary.
    """

    token_ids_BxL: Array
    positions_BxM: Array
    targets_BxM: Array  # original ids at the positions
    weights_BxM: Array  # float32, 1 on real entries, 0 on filler


def scatter_positions(
    x_BxL: Array, positions_BxM: Array, values_BxM: Array, where_BxM: Array
) -> Array:
    """`x` with `values` written at distinct positions, where `where` is True."""
    kept_BxM = jnp.where(where_BxM, values_BxM, gather_positions(x_BxL, positions_BxM))
    return x_BxL.at[jnp.arange(x_BxL.shape[0])[:, None], positions_BxM].set(kept_BxM)


def word_places(token_ids_BxL: Array, token_mask_BxL: Array, vocabulary: Vocabulary) -> Array:
    """True (B, L) on real tokens but [CLS] and [SEP]."""
    special_BxL = (token_ids_BxL == vocabulary.cls) | (token_ids_BxL == vocabulary.sep)
    return token_mask_BxL & ~special_BxL


def mask_tokens(
    key: Array,
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    vocabulary: Vocabulary,
    probability: float,
    max_masked: int = 0,
) -> MaskedText:
    """BERT's corruption: each real token is picked with `probability`; of those 80 % [MASK], 10 %
    random, 10 % kept.

    At most `max_masked` tokens a row are picked (0 = no limit); a row over the limit loses picks at
    random, so the loss sees exactly the corrupted positions.
    """
    length = token_ids_BxL.shape[1]
    pick_key, rank_key, kind_key, random_key = jax.random.split(key, 4)
    picked_BxL = jax.random.bernoulli(pick_key, probability, token_ids_BxL.shape)
    picked_BxL &= word_places(token_ids_BxL, token_mask_BxL, vocabulary)
    picked_BxL &= token_ids_BxL != vocabulary.pad
    score_BxL = jnp.where(picked_BxL, jax.random.uniform(rank_key, token_ids_BxL.shape), -1.0)
    score_BxM, positions_BxM = jax.lax.top_k(score_BxL, min(max_masked or length, length))
    real_BxM = score_BxM >= 0
    targets_BxM = gather_positions(token_ids_BxL, positions_BxM)
    kind_BxM = jax.random.uniform(kind_key, positions_BxM.shape)
    random_BxM = jax.random.randint(
        random_key, positions_BxM.shape, 0, vocabulary.size, token_ids_BxL.dtype
    )
    corrupted_BxM = jnp.where(
        kind_BxM < 0.8, vocabulary.mask, jnp.where(kind_BxM < 0.9, random_BxM, targets_BxM)
    )
    return MaskedText(
        scatter_positions(token_ids_BxL, positions_BxM, corrupted_BxM, real_BxM),
        positions_BxM,
        targets_BxM,
        real_BxM.astype(jnp.float32),
    )


def mlm_rows(
    logits_BxMxV: Array,
    teacher_logits_BxMxV: Array | None,
    masked: MaskedText,
    alpha: Array | float,
) -> Array:
    """(1 - alpha) * CE(targets) + alpha * CE(softmax of the teacher), summed over the masked
    positions of each row.
    """
    batch, picks, vocabulary = logits_BxMxV.shape

    def rows(x_BxMxV: Array) -> tuple[Array]:
        return (x_BxMxV.reshape(batch * picks, vocabulary),)

    teacher = (
        None if teacher_logits_BxMxV is None else rows(jax.lax.stop_gradient(teacher_logits_BxMxV))
    )
    loss_R = soft_cross_entropy(
        rows(logits_BxMxV), teacher, (masked.targets_BxM.reshape(-1),), alpha
    )
    return jnp.sum(loss_R.reshape(batch, picks) * masked.weights_BxM, axis=-1)


def mlm_mean(loss_B: Array, masked: MaskedText) -> Array:
    """Mean over the masked positions of the whole batch of what `mlm_rows` summed; 0 without
    any.
    """
    return jnp.sum(loss_B) / jnp.maximum(masked.weights_BxM.sum(), 1.0)
