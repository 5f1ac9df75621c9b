"""NAS: Negative Augmented Samples (Wang et al., AAAI 2025, arXiv 2412.10029), on top of ALBEF
(`methods/albef.py`).

ITC and MLM are ALBEF's. What is new stands in the middle: the pictures of the matching loss pass
through a visual dictionary, and beside the hard negatives of the batch stand negatives that differ
from the true pair in a few tokens only: NVA replaces the object's visual tokens by their neighbours
in the dictionary, NTA replaces words of the caption, and FGITM is the matching loss over all of
them. The dictionary itself is in `models/visual_dictionary.py`.

The authors' code has the dictionary and NVA; where it and the paper differ, the code is the default
and the paper's reading is a config field. NTA is in the paper only: see `negatives/nta.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import Replacement
from nas_jax.losses.itm import MatchRows, itm_loss
from nas_jax.losses.mlm import MaskedText, gather_positions, masked_mean, mlm_rows
from nas_jax.methods import albef
from nas_jax.methods.albef import Context, Encoded, MethodState, Pass, Replay, Stage, apply, drawn
from nas_jax.models.visual_dictionary import DictionaryState, alive, quantize, squared_distances
from nas_jax.negatives.nta import MaskedWords, candidates, choose_words, refill
from nas_jax.negatives.nva import (
    draw_neighbour,
    draw_object,
    neighbour_codes,
    object_similarity,
    patches_of_object,
)
from nas_jax.parallel.chunks import in_pieces
from nas_jax.typing import Array, Batch, Metrics, Params


class DictionaryTokens(NamedTuple):
    """A batch of pictures in the words of the dictionary."""

    # [CLS] untouched, then the dictionary tokens: what the fusion encoder reads
    tokens_BxTxD: Array
    features_BxNxD: Array  # what was quantized
    mixed_BxNxD: Array  # gated mix, before position code and normalisation
    code_ids_BxN: Array


class NvaImages(NamedTuple):
    """Negative pictures and how they were made."""

    tokens_BxTxD: Array
    similarity_BxN: Array
    object_patch_B: Array
    code_B: Array
    replaced_BxN: Array
    valid_B: Array
    # the same tokens as the picture's own and one new token, where they are that
    replacement: Replacement | None


class NtaTexts(NamedTuple):
    """Negative captions."""

    token_ids_BxL: Array
    text_tokens_BxLxD: Array
    valid_B: Array


def look_up(
    ctx: Context,
    params: Params,
    state: DictionaryState,
    image_tokens_BxTxD: Array,
    *,
    key: Array | None = None,
    frozen: bool = False,
) -> tuple[DictionaryTokens, DictionaryState, Metrics]:
    """Visual dictionary (method section, VD): patches -> codes -> gated, positioned tokens.

    With a key the dictionary is also updated on this batch; without one it is only read.
    """
    config = ctx.config.dictionary
    features_BxNxD = apply(ctx, params, "dictionary_features", image_tokens_BxTxD[:, 1:])
    state, code_ids_BxN, quantized_BxNxD, metrics = quantize(
        config,
        state,
        features_BxNxD,
        update=key is not None,
        key=jax.random.key(0) if key is None else key,
        total_steps=ctx.total_steps,
        frozen=frozen,
    )
    mixed_BxNxD = apply(ctx, params, "dictionary_mix", features_BxNxD, quantized_BxNxD)
    tokens_BxTxD = with_cls(
        image_tokens_BxTxD, apply(ctx, params, "dictionary_finish", mixed_BxNxD)
    )
    return DictionaryTokens(tokens_BxTxD, features_BxNxD, mixed_BxNxD, code_ids_BxN), state, metrics


def with_cls(image_tokens_BxTxD: Array, patches_BxNxD: Array) -> Array:
    """The picture's own [CLS] before other patch tokens."""
    return jnp.concatenate(
        [image_tokens_BxTxD[:, :1], patches_BxNxD.astype(image_tokens_BxTxD.dtype)], axis=1
    )


def negative_images(
    ctx: Context,
    params: Params,
    state: DictionaryState,
    encoded: Encoded,
    words: DictionaryTokens,
    keys: dict[str, Array],
    replay: Replay | None = None,
) -> NvaImages:
    """NVA: every patch that shares the object's code gets the same neighbouring code (method
    section, Fig. 3).
    """
    config = ctx.config.nva
    similarity_BxN = object_similarity(
        encoded.image_tokens_BxTxD[:, 1:],
        encoded.image_tokens_BxTxD[:, 0],
        encoded.text_tokens_BxLxD[:, 0],
        config.similarity,
    )
    candidates = (
        similarity_BxN.shape[1] if config.similarity == "random" else config.object_candidates
    )
    object_patch_B = drawn(
        replay, "object_patch_B", lambda: draw_object(keys["object"], similarity_BxN, candidates)
    )
    object_BxD = jnp.take_along_axis(words.features_BxNxD, object_patch_B[:, None, None], axis=1)[
        :, 0
    ]
    usable_BxK = jnp.ones_like(state.counts_K, bool)[None]
    if not ctx.config.dictionary.literal:
        # The code was assigned before the dictionary moved: it need not be the nearest now, and
        # could be drawn again.
        assigned_Bx1 = jnp.take_along_axis(words.code_ids_BxN, object_patch_B[:, None], axis=1)
        usable_BxK = alive(state, ctx.config.dictionary.dead_below)[None]
        usable_BxK &= jnp.arange(usable_BxK.shape[1])[None] != assigned_Bx1
    distances_BxK = squared_distances(jax.lax.stop_gradient(object_BxD), state.codes_KxD)
    neighbour_BxC, log_weight_BxC = neighbour_codes(distances_BxK, usable_BxK, config.neighbours)
    code_B, valid_B = draw_neighbour(keys["neighbour"], neighbour_BxC, log_weight_BxC)
    code_B = drawn(replay, "code_B", lambda: code_B)

    replaced_BxN = patches_of_object(words.code_ids_BxN, object_patch_B)
    # The authors' straight-through form: the value is the new code, its gradient would go to the
    # old feature.
    new_BxNxD = words.features_BxNxD + jax.lax.stop_gradient(
        state.codes_KxD[code_B][:, None] - words.features_BxNxD
    )
    if config.gate_replaced:
        new_BxNxD = apply(ctx, params, "dictionary_mix", words.features_BxNxD, new_BxNxD)
    else:
        new_BxNxD = apply(ctx, params, "dictionary_align", new_BxNxD)
    mixed_BxNxD = jnp.where(replaced_BxN[..., None], new_BxNxD, words.mixed_BxNxD)
    tokens_BxTxD = with_cls(
        encoded.image_tokens_BxTxD, apply(ctx, params, "dictionary_finish", mixed_BxNxD)
    )
    replacement = None
    # one code for all replaced patches, and none of its gradient
    if config.stop_gradient and not config.gate_replaced:
        aligned_BxD = apply(ctx, params, "dictionary_align", state.codes_KxD[code_B])
        replacement = apply(ctx, params, "dictionary_replacement", replaced_BxN, aligned_BxD)
        replacement = jax.lax.stop_gradient(replacement)
    return NvaImages(
        tokens_BxTxD, similarity_BxN, object_patch_B, code_B, replaced_BxN, valid_B, replacement
    )


def negative_texts(
    ctx: Context, params: Params, teacher: Params, batch: Batch, keys: dict[str, Array]
) -> NtaTexts:
    """NTA: words masked and refilled by the teacher's text layers and generator head, then read by
    the student.

    In a call of its own: where it gives no gradient (`nta.stop_gradient`), rows beside it would
    make it compute one.
    """
    config, ids_BxL, mask_BxL = ctx.config.nta, batch["token_ids_BxL"], batch["token_mask_BxL"]
    masked = choose_words(
        keys["words"], ids_BxL, mask_BxL, ctx.tables, ctx.special.mask, config.share
    )
    teacher = jax.lax.stop_gradient(teacher)

    def best_words(rows: tuple[MaskedWords, Array, Array]) -> tuple[Array, Array]:
        masked, ids_BxL, mask_BxL = rows
        tokens_BxLxD, _ = apply(ctx, teacher, "encode_text", masked.token_ids_BxL, mask_BxL)
        picked_BxMxD = gather_positions(tokens_BxLxD, masked.positions_BxM)
        word_table_VxD = teacher["text_encoder"]["word_embedding"]["embedding"]
        logits_BxMxV = apply(ctx, teacher, "generator_logits", picked_BxMxD, word_table_VxD)
        return candidates(ids_BxL, masked, logits_BxMxV, ctx.tables, config.top_words)

    scores_BxMxC, words_BxMxC = in_pieces(best_words, ctx.pieces, (masked, ids_BxL, mask_BxL))
    new_ids_BxL, valid_B = refill(keys["refill"], ids_BxL, masked, scores_BxMxC, words_BxMxC)

    def read(rows: tuple[Array, Array, Array]) -> Array:
        return apply(ctx, params, "encode_text", *rows)[0]

    seeds_B = albef.row_seeds(keys["refilled"], ids_BxL.shape[0])
    return NtaTexts(
        new_ids_BxL, in_pieces(read, ctx.pieces, (new_ids_BxL, mask_BxL, seeds_B)), valid_B
    )


def generator_loss(
    ctx: Context, params: Params, masked: MaskedText, text_tokens_BxLxD: Array
) -> Array:
    """Masked-word loss of NTA's generator, from the text alone, on the words that MLM has masked
    anyway.
    """
    word_table_VxD = params["text_encoder"]["word_embedding"]["embedding"]
    if not ctx.config.nta.generator_gradient:
        text_tokens_BxLxD, word_table_VxD = jax.lax.stop_gradient(
            (text_tokens_BxLxD, word_table_VxD)
        )

    def piece(rows: tuple[MaskedText, Array]) -> Array:
        masked, text_tokens_BxLxD = rows
        picked_BxMxD = gather_positions(text_tokens_BxLxD, masked.positions_BxM)
        return mlm_rows(
            apply(ctx, params, "generator_logits", picked_BxMxD, word_table_VxD), None, masked, 0.0
        )

    return masked_mean(in_pieces(piece, ctx.pieces, (masked, text_tokens_BxLxD)), masked)


def loss(
    ctx: Context,
    params: Params,
    state: MethodState,
    batch: Batch,
    rng: Array,
    step: Array,
    stage: Stage,
    replay: Replay | None = None,
) -> tuple[Array, tuple[MethodState, Metrics]]:
    """L = L_itc + L_fgitm + L_mlm (+ the generator's own loss) of one batch; also the next state
    and metrics.
    """
    config, keys, alpha = ctx.config, albef.split_keys(rng), albef.soft_weight(ctx, step)
    mask_BxL, image_id_B = batch["token_mask_BxL"], batch["image_id_B"]
    teacher = albef.update_teacher(ctx, state.teacher, params)
    masked = albef.masked_text(ctx, batch, keys, replay)
    encoded, taught = albef.encode(ctx, params, teacher, batch, masked.token_ids_BxL, keys)
    metrics: Metrics = {}

    # ITC on the continuous features, exactly ALBEF's.
    loss_itc, i2t_BxB, t2i_BxB, queue = albef.contrast(
        ctx, params, state.queue, encoded, taught, image_id_B, alpha
    )

    # The pictures in the words of the dictionary.
    dictionary, image_tokens_BxTxD = state.dictionary, encoded.image_tokens_BxTxD
    if config.dictionary.enabled:
        words, dictionary, seen = look_up(
            ctx,
            params,
            state.dictionary,
            encoded.image_tokens_BxTxD,
            key=keys["dictionary"],
            frozen=stage.dictionary_frozen,
        )
        image_tokens_BxTxD = words.tokens_BxTxD
        metrics |= seen

    # FGITM: true pairs against the hard negatives of the batch, NVA's pictures and NTA's texts.
    negative_image_B, negative_text_B, mined_B = albef.mine(
        ctx, i2t_BxB, t2i_BxB, image_id_B, keys, replay
    )
    passes = albef.in_batch_passes(ctx, encoded, mask_BxL, negative_image_B, negative_text_B)
    labels = {
        "positive": (1, jnp.ones_like(mined_B)),
        "hard_image": (0, mined_B),
        "hard_text": (0, mined_B),
    }

    if stage.nva:
        nva = negative_images(ctx, params, dictionary, encoded, words, keys, replay)
        passes["nva"] = Pass(
            encoded.text_tokens_BxLxD,
            mask_BxL,
            tokens_BxTxD=nva.tokens_BxTxD,
            replacement=nva.replacement,
            detached=config.nva.stop_gradient,
        )
        labels["nva"] = (0, nva.valid_B)
        metrics["nva/replaced_share"] = nva.replaced_BxN.mean()
    if stage.nta:
        nta = negative_texts(ctx, params, teacher, batch, keys)
        passes["nta"] = Pass(nta.text_tokens_BxLxD, mask_BxL, detached=config.nta.stop_gradient)
        labels["nta"] = (0, nta.valid_B)
        metrics["nta/changed_share"] = nta.valid_B.mean()

    # The rows of MLM, by default beside the continuous image tokens, go through the fusion encoder
    # with the others.
    apart = (
        None
        if stage.mlm_on_dictionary or not config.dictionary.enabled
        else encoded.image_tokens_BxTxD
    )
    passes["mlm"] = albef.masked_pass(encoded, mask_BxL, masked, apart)
    fused = albef.fuse(ctx, params, image_tokens_BxTxD, passes, keys["match"])
    fused_mlm = fused.pop("mlm")
    loss_mlm = albef.masked_language(
        ctx, params, teacher, mask_BxL, masked, taught, fused_mlm, alpha, keys
    )

    logits = albef.match(ctx, params, fused)
    groups = {kind: MatchRows(logits[kind], *labels[kind]) for kind in logits}
    weights = (
        {"nva": config.itm.nva_weight, "nta": config.itm.nta_weight}
        if config.itm.form == "weighted"
        else None
    )
    loss_itm = itm_loss(groups, weights)
    total = loss_itc + loss_itm + loss_mlm
    metrics |= {"loss/itc": loss_itc, "loss/itm": loss_itm, "loss/mlm": loss_mlm}
    if config.nta.enabled:
        loss_generator = generator_loss(ctx, params, masked, encoded.masked_tokens_BxLxD)
        total = total + config.nta.generator_weight * loss_generator
        metrics["loss/generator"] = loss_generator
    metrics |= {
        "loss": total,
        "itc/temp": params["temp"],
        "itc/alpha": alpha,
        **albef.itm_metrics(groups),
    }
    return total, (MethodState(teacher, queue, dictionary), metrics)
