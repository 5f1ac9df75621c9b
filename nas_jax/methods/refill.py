"""Negative captions by a language model: content words are refilled, or change places
(`negatives/nta.py`).

The language model is text layers with a head, of the teacher unless the method says otherwise
(`generator_params`); it never sees a picture. What NAS's NTA, VL-Match and ViLTA have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from nas_jax.losses.mlm import mlm_mean, mlm_rows
from nas_jax.methods.terms import Mlm, Seen, Term
from nas_jax.models.rows import Rows
from nas_jax.negatives.nta import (
    GeneratorConfig,
    MaskedWords,
    NtaConfig,
    WordPairs,
    candidates,
    choose_pairs,
    choose_words,
    exchange,
    plausible_pairs,
    refill,
)
from nas_jax.negatives.records import TextNegatives
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import gather_positions, pin_rows
from nas_jax.typing import Array, Metrics, Params

if TYPE_CHECKING:
    from nas_jax.methods.albef import Albef


def word_table(params: Params) -> Array:
    """Word embeddings (V, D), to which the generator's head is tied."""
    return params["text_encoder"]["word_embedding"]["embedding"]


def negative_texts(method: Albef, config: NtaConfig, seen: Seen) -> tuple[TextNegatives, Metrics]:
    """One caption for each picture, refilled or with two words exchanged, and shares of them."""
    if config.exchange == 0:
        made = refilled_texts(method, config, seen)
        return made, {"nta/changed_share": made.valid_BxC.mean()}
    made = exchanged_texts(method, config, seen)
    size, share = len(made.ids_BxCxL), exchanged_share(config, method.setting.epoch(seen.step))
    exchanged_Bx1 = seen.draw(
        "exchanged_Bx1", lambda key: jax.random.bernoulli(key, share, (size, 1))
    )
    if config.exchange < 1 or config.exchange_ramp_epochs:
        refilled = refilled_texts(method, config, seen)
        ids_BxCxL = jnp.where(exchanged_Bx1[..., None], made.ids_BxCxL, refilled.ids_BxCxL)
        valid_BxC = jnp.where(exchanged_Bx1, made.valid_BxC, refilled.valid_BxC)
        made = replace(made, ids_BxCxL=ids_BxCxL, valid_BxC=valid_BxC)
    return made, {
        "nta/changed_share": made.valid_BxC.mean(),
        "nta/exchanged_share": (made.valid_BxC & exchanged_Bx1).mean(),
    }


def exchanged_share(config: NtaConfig, epoch: Array | float) -> Array | float:
    """The share of exchanged captions at a moment of the run, in epochs."""
    if config.exchange_ramp_epochs == 0:
        return config.exchange
    grown = (epoch - config.start_epoch) / config.exchange_ramp_epochs
    return config.exchange * jnp.clip(grown, 0.0, 1.0)


def refilled_texts(method: Albef, config: GeneratorConfig, seen: Seen) -> TextNegatives:
    """One caption for each picture, with some words replaced by what the teacher thinks likely."""
    vocabulary, draw = method.setting.vocabulary, seen.draw
    ids_BxL, mask_BxL = seen.batch["token_ids_BxL"], seen.batch["token_mask_BxL"]
    teacher = jax.lax.stop_gradient(method.generator_params(seen))
    masked = draw(
        "words", lambda key: choose_words(key, ids_BxL, mask_BxL, vocabulary, config.share)
    )

    def best_words(rows: tuple[MaskedWords, Array, Array]) -> tuple[Array, Array]:
        masked, ids_BxL, mask_BxL = rows
        net = method.apply(teacher)
        tokens_BxLxD, _ = net.encode_text(masked.token_ids_BxL, mask_BxL)
        picked_BxMxD = gather_positions(tokens_BxLxD, masked.positions_BxM)
        logits_BxMxV = net.generator_logits(picked_BxMxD, word_table(teacher))
        return candidates(ids_BxL, masked, logits_BxMxV, vocabulary, config.top_words)

    inputs = masked, ids_BxL, mask_BxL
    scores_BxMxC, words_BxMxC = in_pieces(best_words, method.setting.pieces, inputs)
    new_ids_BxL, valid_B = draw(
        "refill", lambda key: refill(key, ids_BxL, masked, scores_BxMxC, words_BxMxC)
    )
    return TextNegatives(new_ids_BxL[:, None], mask_BxL[:, None], valid_B[:, None], ("nta",))


def exchanged_texts(method: Albef, config: GeneratorConfig, seen: Seen) -> TextNegatives:
    """One caption for each picture, with two words in each other's place where the teacher thinks
    both plausible; invalid where none of the pairs tried is.
    """
    vocabulary, draw = method.setting.vocabulary, seen.draw
    ids_BxL, mask_BxL = seen.batch["token_ids_BxL"], seen.batch["token_mask_BxL"]
    teacher = jax.lax.stop_gradient(method.generator_params(seen))
    count = config.exchange_pairs
    pairs = draw("pairs", lambda key: choose_pairs(key, ids_BxL, mask_BxL, vocabulary, count))

    def plausible(rows: tuple[WordPairs, Array, Array]) -> Array:
        pairs, ids_BxL, mask_BxL = rows
        net, shape = method.apply(teacher), pairs.token_ids_BxPxL.shape
        mask_BxPxL = jnp.broadcast_to(mask_BxL[:, None], shape)
        inputs = pairs.token_ids_BxPxL, mask_BxPxL, pairs.positions_BxPx2
        ids_RxL, mask_RxL, positions_Rx2 = (pin_rows(x.reshape(-1, x.shape[-1])) for x in inputs)
        tokens_RxLxD, _ = net.encode_text(ids_RxL, mask_RxL)
        picked_Rx2xD = gather_positions(tokens_RxLxD, positions_Rx2)
        logits_Rx2xV = net.generator_logits(picked_Rx2xD, word_table(teacher))
        logits_BxPx2xV = pin_rows(logits_Rx2xV.reshape(*shape[:2], *logits_Rx2xV.shape[1:]))
        return plausible_pairs(ids_BxL, pairs, logits_BxPx2xV, vocabulary, config.plausible)

    plausible_BxP = in_pieces(plausible, method.setting.pieces, (pairs, ids_BxL, mask_BxL))
    new_ids_BxL, valid_B = draw(
        "exchange", lambda key: exchange(key, ids_BxL, pairs, plausible_BxP)
    )
    return TextNegatives(new_ids_BxL[:, None], mask_BxL[:, None], valid_B[:, None], ("nta",))


class Generator(Term):
    """Masked-word loss of NTA's generator, from text alone, on the words that MLM masks anyway."""

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """Mean over the masked positions."""
        method, tokens_BxLxD = self.method, seen.student.others["masked"]
        masked = Mlm(method).masked(seen.batch, seen.draw)
        word_table_VxD = word_table(seen.params)
        if not method.config.nta.generator_gradient:
            inputs = tokens_BxLxD, word_table_VxD
            tokens_BxLxD, word_table_VxD = jax.lax.stop_gradient(inputs)

        def piece(rows: tuple) -> Array:
            masked, tokens_BxLxD = rows
            picked_BxMxD = gather_positions(tokens_BxLxD, masked.positions_BxM)
            net = method.apply(seen.params)
            return mlm_rows(net.generator_logits(picked_BxMxD, word_table_VxD), None, masked, 0.0)

        losses_B = in_pieces(piece, method.setting.pieces, (masked, tokens_BxLxD))
        return mlm_mean(losses_B, masked), {}
