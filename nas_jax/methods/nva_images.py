"""What NVA asks the network: where the object is, and which codes are near it.

The rules themselves are in `negatives/nva.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method
from nas_jax.methods.terms import Encoded
from nas_jax.models.attention_maps import mean_over_words
from nas_jax.models.codebook import DictionaryConfig, alive, squared_distances
from nas_jax.models.towers import DictionaryTokens
from nas_jax.negatives.nva import (
    NvaConfig,
    codes_of_objects,
    least_like,
    neighbour_codes,
    object_similarity,
    unit_over_patches,
)
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import gather_positions, pin_rows
from nas_jax.typing import Array, Batch, Params

# ---------------------------------------------------------------------------------- the object


def find_object(
    method: Method, params: Params, encoded: Encoded, words: DictionaryTokens, batch: Batch
) -> Array:
    """How much each patch (B, N) counts as the caption's object, by `nva.similarity`; no
    gradient.
    """
    similarity = method.config.nva.similarity
    if similarity not in ("gradient", "attention"):
        tokens_BxTxD, text_BxLxD = encoded.image_tokens_BxTxD, encoded.text_tokens_BxLxD
        cls_tokens = tokens_BxTxD[:, 0], text_BxLxD[:, 0]
        return object_similarity(tokens_BxTxD[:, 1:], *cls_tokens, similarity)
    params = jax.lax.stop_gradient(params)
    rows = {
        "tokens_BxTxD": words.tokens_BxTxD,
        "text_BxLxD": encoded.text_tokens_BxLxD,
        "mask_BxL": batch["token_mask_BxL"],
        "ids_BxL": batch["token_ids_BxL"],
    }

    def piece(rows: dict[str, Array]) -> Array:
        by = {"gradient": match_gradient, "attention": word_attention}[similarity]
        return unit_over_patches(by(method, params, rows)[:, 1:])

    return in_pieces(piece, method.setting.pieces, jax.lax.stop_gradient(rows))


def match_gradient(method: Method, params: Params, rows: dict[str, Array]) -> Array:
    """How much each image token (B, T) speaks for a match: the sum of token times gradient of the
    match logit, where positive (Selvaraju et al. 2017, on tokens).
    """

    def logit(tokens_BxTxD: Array) -> Array:
        texts = rows["text_BxLxD"][:, None], rows["mask_BxL"][:, None]
        return method.score(params, tokens_BxTxD, *texts)["itm"].sum()

    tokens_BxTxD = rows["tokens_BxTxD"]
    product_BxTxD = jax.grad(logit)(tokens_BxTxD).astype(jnp.float32) * tokens_BxTxD
    return jax.nn.relu(product_BxTxD.sum(-1))


def word_attention(method: Method, params: Params, rows: dict[str, Array]) -> Array:
    """The probability with which the content words of a caption attend to each image token (B, T),
    the mean over heads and words, or over all its tokens where it has no such word.

    In the middle fusion layer: of six the third, on which ALBEF's maps are drawn.
    """
    config, mask_BxL = method.network.config, rows["mask_BxL"]
    content_V = jnp.asarray(method.setting.vocabulary.content_V)
    words_BxL = content_V[rows["ids_BxL"]] & mask_BxL
    words_BxL = jnp.where(words_BxL.any(-1, keepdims=True), words_BxL, mask_BxL)
    (batch, length), tokens_BxTxD = mask_BxL.shape, rows["tokens_BxTxD"]
    offset_BxHxLxT = jnp.zeros((batch, config.heads, length, tokens_BxTxD.shape[1]))
    layer = (config.fusion_layers - 1) // 2
    inputs = rows["text_BxLxD"], mask_BxL, tokens_BxTxD, layer, offset_BxHxLxT
    _, probabilities_BxHxLxT = method.apply(params).fusion_encoder.with_map(*inputs)
    return mean_over_words(probabilities_BxHxLxT.astype(jnp.float32), words_BxL)


# ---------------------------------------------------------------------------------- the new code


def neighbours(
    dictionary: DictionaryConfig,
    nva: NvaConfig,
    words: DictionaryTokens,
    objects_BxU: Array,
    caption_BxD: Array,
) -> tuple[Array, Array, Array]:
    """Codes (B * U, C) near the objects' features, the log-weights they are drawn with, and the
    codes (B * U, A) of the objects' patches.

    caption_BxD: the captions' [CLS], which nva.neighbour_pool compares with the codes.
    """
    state, dim = words.state, words.features_BxNxD.shape[-1]
    object_RxD = gather_positions(words.features_BxNxD, objects_BxU).reshape(-1, dim)
    assigned_R = gather_positions(words.code_ids_BxN, objects_BxU).reshape(-1)
    usable_RxK = jnp.ones_like(state.counts_K, bool)[None]
    if not dictionary.literal:
        # The code was assigned before the dictionary moved: it need not be the nearest now, and
        # could be drawn again.
        usable_RxK = alive(state, dictionary.dead_below)[None]
        usable_RxK &= jnp.arange(usable_RxK.shape[1])[None] != assigned_R[:, None]
    distances_RxK = squared_distances(jax.lax.stop_gradient(pin_rows(object_RxD)), state.codes_KxD)
    own_RxA = codes_of_objects(assigned_R, distances_RxK, nva.object_codes)
    beyond = None
    if nva.neighbour_distance > 0:
        beyond = nva.neighbour_distance * spread(words)
    count = nva.neighbour_pool or nva.neighbours
    found = neighbour_codes(distances_RxK, usable_RxK, count, nva.neighbour_from, beyond)
    if not nva.neighbour_pool:
        return *found, own_RxA
    code_RxC, log_weight_RxC = found
    caption_RxD = jnp.repeat(caption_BxD, objects_BxU.shape[1], axis=0)
    inputs = caption_RxD, state.codes_KxD[code_RxC], log_weight_RxC, nva.neighbours
    place_RxC, log_weight_RxC = least_like(*inputs)
    return jnp.take_along_axis(code_RxC, place_RxC, axis=1), log_weight_RxC, own_RxA


def spread(words: DictionaryTokens) -> Array:
    """The mean Euclidean distance of the batch's features to their codes."""
    features_BxNxD = jax.lax.stop_gradient(words.features_BxNxD)
    return jnp.linalg.norm(
        features_BxNxD - words.state.codes_KxD[words.code_ids_BxN], axis=-1
    ).mean()


# ---------------------------------------------------------------------------------- when


def rows_on(config: NvaConfig, epoch: Array | float, valid_B: Array, draw: Draws) -> Array:
    """Which of the rows (B,) have a negative by now: a share that rises with `nva.ramp_epochs`."""
    if config.ramp_epochs == 0:
        return valid_B
    share = jnp.clip((epoch - config.start_epoch) / config.ramp_epochs, 0.0, 1.0)
    return valid_B & draw("nva_on", lambda key: jax.random.bernoulli(key, share, valid_B.shape))
