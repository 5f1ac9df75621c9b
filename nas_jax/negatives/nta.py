"""Negative text augmentation: content words masked and refilled by a language model that never sees
the picture.

What VL-Match (ICCV 2023), ViLTA (ICCV 2023) and NAS (AAAI 2025) have in common; NAS's own generator
is not public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.losses.mlm import gather_positions, scatter_positions
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array, Vocabulary
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class NtaConfig:
    """How many words are replaced, and by whom."""

    enabled: bool = True
    start_epoch: float = 0.0  # first epoch with NTA rows; the generator learns from the start
    share: float = 0.15  # of the words of a caption, at least one
    top_words: int = 10  # the new word is drawn among the generator's best
    generator_weight: float = 1.0  # weight of the generator's own masked-word loss
    generator_gradient: bool = False  # let that loss train the text encoder too
    stop_gradient: bool = True  # NTA rows train only the fusion encoder and the ITM head

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if not 0 < self.share <= 1 or self.top_words < 1:
            raise ConfigError(
                f"share={self.share}, top_words={self.top_words}",
                "0 < share <= 1 and at least one word",
                "0.15 and 10 are the defaults",
            )


class MaskedWords(NamedTuple):
    """A caption with some content words masked."""

    token_ids_BxL: Array  # with [MASK] in place of the words
    positions_BxM: Array
    chosen_BxM: Array  # bool, False on filler


def choose_words(
    key: Array,
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    vocabulary: Vocabulary,
    share: float,
) -> MaskedWords:
    """Masks max(1, round(share * words)) content words of each caption, drawn uniformly.

    Words of several pieces are left alone: their replacement would have another length, which gives
    it away.
    """
    length = token_ids_BxL.shape[1]
    content_V, continuation_V = (
        jnp.asarray(vocabulary.content_V),
        jnp.asarray(vocabulary.continuation_V),
    )
    continued_BxL = jnp.pad(
        continuation_V[token_ids_BxL[:, 1:]] & token_mask_BxL[:, 1:], ((0, 0), (0, 1))
    )
    candidate_BxL = content_V[token_ids_BxL] & token_mask_BxL & ~continued_BxL
    # without [CLS]
    words_B = jnp.sum(token_mask_BxL[:, 1:] & ~continuation_V[token_ids_BxL[:, 1:]], axis=-1)
    wanted_B = jnp.maximum(1, jnp.round(share * words_B)).astype(jnp.int32)
    slots = max(1, round(share * (length - 1)))
    score_BxL = jnp.where(candidate_BxL, jax.random.uniform(key, token_ids_BxL.shape), -1.0)
    score_BxM, positions_BxM = jax.lax.top_k(score_BxL, min(slots, length))
    chosen_BxM = (score_BxM >= 0) & (jnp.arange(positions_BxM.shape[1])[None] < wanted_B[:, None])
    masks_BxM = jnp.full(positions_BxM.shape, vocabulary.mask, token_ids_BxL.dtype)
    return MaskedWords(
        scatter_positions(token_ids_BxL, positions_BxM, masks_BxM, chosen_BxM),
        positions_BxM,
        chosen_BxM,
    )


def candidates(
    token_ids_BxL: Array,
    masked: MaskedWords,
    logits_BxMxV: Array,
    vocabulary: Vocabulary,
    top_words: int,
) -> tuple[Array, Array]:
    """The generator's best new words for each masked one, never the original: logits and token ids,
    (B, M, C).
    """
    original_BxM = gather_positions(token_ids_BxL, masked.positions_BxM)
    vocab = jnp.arange(logits_BxMxV.shape[-1])
    allowed_BxMxV = jnp.asarray(vocabulary.fillable_V) & (vocab != original_BxM[..., None])
    logits_BxMxV = jnp.where(allowed_BxMxV, jax.lax.stop_gradient(logits_BxMxV), -jnp.inf)
    # In two dimensions: with three, TPUs sort the whole vocabulary, and compile that for minutes.
    batch, picks, vocabulary = logits_BxMxV.shape
    best = jax.lax.top_k(
        logits_BxMxV.reshape(batch * picks, vocabulary), min(top_words, vocabulary)
    )
    return tuple(pin_rows(x.reshape(batch, picks, -1)) for x in best)


def refill(
    key: Array, token_ids_BxL: Array, masked: MaskedWords, scores_BxMxC: Array, words_BxMxC: Array
) -> tuple[Array, Array]:
    """Draws a new word for each masked one from its candidates.

    Returns the new token ids (B, L) and which rows changed (B,).
    """
    choice_BxM = jax.random.categorical(key, scores_BxMxC)
    new_BxM = jnp.take_along_axis(words_BxMxC, choice_BxM[..., None], axis=-1)[..., 0].astype(
        token_ids_BxL.dtype
    )
    usable_BxM = masked.chosen_BxM & jnp.isfinite(scores_BxMxC[..., 0])
    return scatter_positions(
        token_ids_BxL, masked.positions_BxM, new_BxM, usable_BxM
    ), usable_BxM.any(-1)
