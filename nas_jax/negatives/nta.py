"""Negative text augmentation: content words are replaced, or change places, where a language model
that never sees the picture finds the result plausible.

Refilling is what VL-Match (ICCV 2023), ViLTA (ICCV 2023) and NAS (AAAI 2025) have in common; NAS's
own generator is not public. The exchange of two words is ours: it asks which word belongs where,
which no single word of the caption tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.losses.mlm import scatter_positions
from nas_jax.parallel.mesh import gather_positions, pin_rows
from nas_jax.typing import Array, Vocabulary
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class GeneratorConfig:
    """The language model that writes negative captions, and how."""

    start_epoch: float = 0.0  # first epoch with such captions; the model learns from the start
    share: float = 0.15  # of the words of a caption that are refilled, at least one
    top_words: int = 10  # the new word is drawn among the generator's best
    generator_weight: float = 1.0  # weight of the generator's own masked-word loss
    generator_gradient: bool = False  # let that loss train the text encoder too
    # pairs of words of a caption that are tried; each costs a pass of the text encoder, without
    # gradient
    exchange_pairs: int = 8
    # each of the two must be at least so likely in the other's place, as a share of the best word's
    # probability there
    plausible: float = 0.1

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if not 0 < self.share <= 1 or self.top_words < 1:
            raise ConfigError(
                f"share={self.share}, top_words={self.top_words}",
                "0 < share <= 1 and at least one word",
                "0.15 and 10 are the defaults",
            )
        if self.exchange_pairs < 1 or not 0 < self.plausible <= 1:
            raise ConfigError(
                f"exchange_pairs={self.exchange_pairs}, plausible={self.plausible}",
                "at least one pair, 0 < plausible <= 1",
                "8 and 0.1 are the defaults",
            )


@dataclass(frozen=True)
class NtaConfig(GeneratorConfig):
    """NTA of NAS: its rows, of which some are refilled and some have two words exchanged."""

    enabled: bool = True
    exchange: float = 0.0  # share of rows in which two words change places instead
    # that share rises from 0 in so many epochs after start_epoch; 0: it holds from there on
    exchange_ramp_epochs: float = 0.0
    stop_gradient: bool = True  # NTA rows train only the fusion encoder and the ITM head

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
        if not 0 <= self.exchange <= 1 or self.exchange_ramp_epochs < 0:
            raise ConfigError(
                f"exchange={self.exchange}, exchange_ramp_epochs={self.exchange_ramp_epochs}",
                "0 <= exchange <= 1, and 0 or more epochs",
                "0 and 0 (no ramp) are the defaults",
            )


class MaskedWords(NamedTuple):
    """A caption with some content words masked."""

    token_ids_BxL: Array  # with [MASK] in place of the words
    positions_BxM: Array
    chosen_BxM: Array  # bool, False on filler


class WordPairs(NamedTuple):
    """Pairs of content words of a caption. Letter P: the pairs."""

    token_ids_BxPxL: Array  # with [MASK] in place of both
    positions_BxPx2: Array
    chosen_BxP: Array  # bool, False on filler


def one_piece_words(token_ids_BxL: Array, token_mask_BxL: Array, vocabulary: Vocabulary) -> Array:
    """True (B, L) on content words of one piece.

    Words of several pieces are left alone: their replacement would have another length, which gives
    it away.
    """
    content_V = jnp.asarray(vocabulary.content_V)
    continuation_V = jnp.asarray(vocabulary.continuation_V)
    continued_BxL = jnp.pad(
        continuation_V[token_ids_BxL[:, 1:]] & token_mask_BxL[:, 1:], ((0, 0), (0, 1))
    )
    return content_V[token_ids_BxL] & token_mask_BxL & ~continued_BxL


def choose_words(
    key: Array,
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    vocabulary: Vocabulary,
    share: float,
) -> MaskedWords:
    """Masks max(1, round(share * words)) content words of each caption, drawn uniformly."""
    length = token_ids_BxL.shape[1]
    continuation_V = jnp.asarray(vocabulary.continuation_V)
    candidate_BxL = one_piece_words(token_ids_BxL, token_mask_BxL, vocabulary)
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
    batch, picks, size = logits_BxMxV.shape
    scores, words = jax.lax.top_k(logits_BxMxV.reshape(batch * picks, size), min(top_words, size))
    scores_BxMxC = pin_rows(scores.reshape(batch, picks, -1))
    return scores_BxMxC, pin_rows(words.reshape(batch, picks, -1))


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


# ---------------------------------------------------------------------------------- exchange


def choose_pairs(
    key: Array,
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    vocabulary: Vocabulary,
    pairs: int,
    allowed_BxLxL: Array | None = None,
) -> WordPairs:
    """Masks two content words that differ, in each of some pairs drawn without replacement.

    allowed: the pairs of positions that may be drawn, first one first; None: all.
    """
    batch, length = token_ids_BxL.shape
    word_BxL = one_piece_words(token_ids_BxL, token_mask_BxL, vocabulary)
    before_LxL = jnp.arange(length)[:, None] < jnp.arange(length)[None]
    pair_BxLxL = word_BxL[:, :, None] & word_BxL[:, None] & before_LxL
    pair_BxLxL &= token_ids_BxL[:, :, None] != token_ids_BxL[:, None]
    if allowed_BxLxL is not None:
        pair_BxLxL &= allowed_BxLxL
    score_BxLxL = jnp.where(pair_BxLxL, jax.random.uniform(key, pair_BxLxL.shape), -1.0)
    score_BxP, index_BxP = jax.lax.top_k(
        score_BxLxL.reshape(batch, length * length), min(pairs, length * length)
    )
    chosen_BxP = score_BxP >= 0
    positions_BxPx2 = jnp.stack([index_BxP // length, index_BxP % length], axis=-1)
    masked_BxPxL = (jnp.arange(length) == positions_BxPx2[..., None]).any(-2)
    ids_BxPxL = jnp.where(
        masked_BxPxL & chosen_BxP[..., None], vocabulary.mask, token_ids_BxL[:, None]
    )
    return WordPairs(ids_BxPxL, positions_BxPx2, chosen_BxP)


def plausible_pairs(
    token_ids_BxL: Array,
    pairs: WordPairs,
    logits_BxPx2xV: Array,
    vocabulary: Vocabulary,
    share: float,
) -> Array:
    """Which pairs (B, P) the generator, who sees neither word, would as soon have the other way.

    Each word must be at least `share` times as likely in the other's place as the best word there.
    """
    logits_BxPx2xV = jax.lax.stop_gradient(logits_BxPx2xV)
    fillable_V = jnp.asarray(vocabulary.fillable_V)
    best_BxPx2 = jnp.where(fillable_V, logits_BxPx2xV, -jnp.inf).max(-1)
    other_BxPx2 = _words_at(token_ids_BxL, pairs.positions_BxPx2)[..., ::-1]
    other_BxPx2 = jnp.take_along_axis(logits_BxPx2xV, other_BxPx2[..., None], axis=-1)[..., 0]
    likely_BxPx2 = other_BxPx2 >= best_BxPx2 + jnp.log(share)
    return likely_BxPx2.all(-1) & pairs.chosen_BxP


def exchange(
    key: Array, token_ids_BxL: Array, pairs: WordPairs, plausible_BxP: Array
) -> tuple[Array, Array]:
    """Lets the two words of a plausible pair, drawn uniformly, change places.

    Returns the new token ids (B, L) and which rows changed (B,).
    """
    choice_B = jax.random.categorical(key, jnp.where(plausible_BxP, 0.0, -jnp.inf))
    positions_Bx2 = jnp.take_along_axis(pairs.positions_BxPx2, choice_B[:, None, None], 1)[:, 0]
    new_Bx2 = gather_positions(token_ids_BxL, positions_Bx2)[:, ::-1]
    changed_B = plausible_BxP.any(-1)
    where_Bx2 = jnp.broadcast_to(changed_B[:, None], new_Bx2.shape)
    return scatter_positions(token_ids_BxL, positions_Bx2, new_Bx2, where_Bx2), changed_B


def _words_at(token_ids_BxL: Array, positions_BxPx2: Array) -> Array:
    batch, pairs, _ = positions_BxPx2.shape
    flat_BxM = positions_BxPx2.reshape(batch, 2 * pairs)
    return gather_positions(token_ids_BxL, flat_BxM).reshape(batch, pairs, 2)
