"""Runs both encoders on a batch: all captions in one call of the text encoder.

Negative captions and second pictures have functions of their own.
"""

from __future__ import annotations

import jax.numpy as jnp

from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method
from nas_jax.methods.terms import Encoded
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array, Batch, Params


def encode_pairs(
    method: Method,
    params: Params,
    batch: Batch,
    texts: dict[str, Array],
    draw: Draws,
    who: str,
) -> Encoded:
    """Unimodal tokens and ITC features, in pieces.

    texts: captions (B, L) beside the true one, as long as it. who: names the dropout, as a teacher
    keeps its own.
    """
    texts = {"caption": batch["token_ids_BxL"]} | texts
    size = len(batch["token_ids_BxL"])
    rows = {  # letter P: the captions of a picture
        "image_BxHxWx3": batch["image_BxHxWx3"],
        "mask_BxL": batch["token_mask_BxL"],
        "ids_BxPxL": jnp.stack(list(texts.values()), 1),
        "seeds_BxP": jnp.stack([draw.seeds(f"{who}/{name}", size) for name in texts], 1),
    }

    def piece(rows: dict[str, Array]) -> Encoded:
        net = method.apply(params)
        image_tokens_BxTxD, image_BxE = net.encode_image(rows["image_BxHxWx3"])
        mask_BxPxL = jnp.broadcast_to(rows["mask_BxL"][:, None], rows["ids_BxPxL"].shape)
        inputs = rows["ids_BxPxL"], mask_BxPxL, rows["seeds_BxP"]
        encoded = net.encode_text(*(pin_rows(x.reshape(-1, *x.shape[2:])) for x in inputs))
        tokens_BxPxLxD, text_BxPxE = (
            pin_rows(x.reshape(-1, len(texts), *x.shape[1:])) for x in encoded
        )
        others = {name: tokens_BxPxLxD[:, number] for number, name in enumerate(texts)}
        tokens_BxLxD = others.pop("caption")
        return Encoded(image_tokens_BxTxD, image_BxE, tokens_BxLxD, text_BxPxE[:, 0], others)

    return in_pieces(piece, method.setting.pieces, rows)


def encode_captions(
    method: Method,
    params: Params,
    ids_BxCxL: Array,
    mask_BxCxL: Array,
    seeds_BxC: Array | None = None,
) -> tuple[Array, Array]:
    """Tokens (B, C, L, D) and unit features (B, C, E) of C captions of each picture, in pieces.

    seeds: of the dropout; None: there is none.
    """
    count = ids_BxCxL.shape[1]

    def piece(rows: list[Array]) -> tuple[Array, Array]:
        flat = [pin_rows(x.reshape(-1, *x.shape[2:])) for x in rows]
        encoded = method.apply(params).encode_text(*flat)
        tokens_BxCxLxD, text_BxCxE = (pin_rows(x.reshape(-1, count, *x.shape[1:])) for x in encoded)
        return tokens_BxCxLxD, text_BxCxE

    rows = [x for x in (ids_BxCxL, mask_BxCxL, seeds_BxC) if x is not None]
    return in_pieces(piece, method.setting.pieces, rows)


def encode_pictures(method: Method, params: Params, image_BxCxHxWx3: Array) -> Array:
    """Image tokens (B, C, T, D) of C further pictures of each pair, in pieces."""
    count = image_BxCxHxWx3.shape[1]

    def piece(image_BxCxHxWx3: Array) -> Array:
        flat = pin_rows(image_BxCxHxWx3.reshape(-1, *image_BxCxHxWx3.shape[2:]))
        tokens_RxTxD, _ = method.apply(params).encode_image(flat)
        return pin_rows(tokens_RxTxD.reshape(-1, count, *tokens_RxTxD.shape[1:]))

    return in_pieces(piece, method.setting.pieces, image_BxCxHxWx3)
