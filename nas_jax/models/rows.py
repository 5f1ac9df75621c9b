"""Rows of the fusion encoder: which text beside which image tokens, all computed in one call.

A method says what a row sees. `fuse` sends the rows of all objectives through the encoder in one
call, and computes what several of them share once (`kernels/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import ImageTokens, QueryGroup, Replacement
from nas_jax.kernels.last_layer import Readout
from nas_jax.models.towers import AlbefNetwork
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import pin_rows, row_devices, take_rows
from nas_jax.typing import Array, Metrics, PyTree


@flax.struct.dataclass
class Rows:
    """One kind of rows: a text beside each picture of the batch.

    A text sees the batch's image tokens of its own picture, or of picture other_B[b], or
    `tokens_BxTxD` in their place. Where these are the picture's own with some patches replaced,
    `replacement` says the same in parts.
    """

    text_tokens_BxLxD: Array
    token_mask_BxL: Array
    other_B: Array | None = None
    tokens_BxTxD: Array | None = None
    replacement: Replacement | None = None
    token_ids_BxL: Array | None = None  # of a text that is not the picture's own, where known
    positions_BxM: Array | None = None  # of the text, that are read; None: [CLS] alone
    valid_B: Array | None = None  # bool, False where a row could not be made; None: all are
    metrics: Metrics = flax.struct.field(default_factory=dict)  # of how they were made
    # 1: text and picture match, 0: they do not; None: that is not asked
    label: int | None = flax.struct.field(pytree_node=False, default=None)
    # trains neither encoder
    detached: bool = flax.struct.field(pytree_node=False, default=False)

    def valid(self) -> Array:
        """True (B,) on rows that could be made."""
        if self.valid_B is None:
            return jnp.ones(len(self.token_mask_BxL), bool)
        return self.valid_B


class BatchSplit(NamedTuple):
    """How a batch is cut; static."""

    shards: int = 1  # blocks of the batch that `other_B` stays in
    pieces: int = 1  # in which the rows are computed, one after the other


def fuse(
    network: AlbefNetwork,
    params: PyTree,
    image_tokens_BxTxD: Array,
    rows: Mapping[str, Rows],
    seeds: Mapping[str, Array],
    split: BatchSplit = BatchSplit(),  # noqa: B008 (immutable)
) -> dict[str, Array]:
    """Fused tokens (B, M, D) of each kind of rows at the positions that are read.

    The rows of a pair stand together, so that they stay on the device that has the pair. seeds:
    (B,) for each kind, of the dropout.
    """
    kinds = sorted(rows, key=lambda kind: _order(rows[kind], split))
    first_Bx1 = jnp.zeros((image_tokens_BxTxD.shape[0], 1), jnp.int32)
    asked = {kind: rows[kind].positions_BxM for kind in kinds}
    read = {kind: first_Bx1 if x_BxM is None else x_BxM for kind, x_BxM in asked.items()}
    # Kinds of which the same number of positions is read go through the last layer together.
    groups = [
        [kind for kind in kinds if read[kind].shape == shape]
        for shape in {x.shape: None for x in read.values()}
    ]
    inputs = {  # letter P: the kinds of rows
        "text_BxPxLxD": jnp.stack([_text(rows[kind]) for kind in kinds], axis=1),
        "mask_BxPxL": jnp.stack([rows[kind].token_mask_BxL for kind in kinds], axis=1),
        "seeds_BxP": jnp.stack([seeds[kind] for kind in kinds], axis=1),
        "image": _image(image_tokens_BxTxD, [rows[kind] for kind in kinds], split),
        "read": read,
    }

    def piece(inputs: dict[str, PyTree]) -> dict[str, Array]:
        texts = [inputs[name] for name in ("text_BxPxLxD", "mask_BxPxL", "seeds_BxP")]
        text_RxLxD, mask_RxL, seeds_R = (pin_rows(x.reshape(-1, *x.shape[2:])) for x in texts)
        positions = [jnp.stack([inputs["read"][kind] for kind in group], 1) for group in groups]
        texts_of = [tuple(map(kinds.index, group)) for group in groups]
        readouts = list(map(Readout, texts_of, positions))
        net = network.bind({"params": params})
        fused = net.fuse(text_RxLxD, mask_RxL, inputs["image"], seeds_R, readouts)
        return {
            kind: fused_BxPxMxD[:, number]
            for group, fused_BxPxMxD in zip(groups, fused, strict=True)
            for number, kind in enumerate(group)
        }

    fused = in_pieces(piece, split.pieces, inputs)
    return {kind: fused[kind] for kind in rows}


def first_tokens(
    network: AlbefNetwork,
    params: PyTree,
    image_tokens_GxTxD: Array,
    text_tokens_GxCxLxD: Array,
    token_mask_GxCxL: Array,
) -> Array:
    """Fused [CLS] tokens (G, C, D) of C texts beside each of G pictures, without dropout."""
    texts = text_tokens_GxCxLxD.shape[1]
    inputs = text_tokens_GxCxLxD, token_mask_GxCxL
    text_RxLxD, mask_RxL = (pin_rows(x.reshape(-1, *x.shape[2:])) for x in inputs)
    first = jnp.zeros((len(image_tokens_GxTxD), texts, 1), jnp.int32)
    image = (ImageTokens((image_tokens_GxTxD,), (QueryGroup(texts),)),)
    net = network.bind({"params": params})
    (fused_GxCx1xD,) = net.fuse(
        text_RxLxD, mask_RxL, image, None, [Readout(tuple(range(texts)), first)]
    )
    return fused_GxCx1xD[:, :, 0]


def fuse_together(
    network: AlbefNetwork,
    params: PyTree,
    text: tuple[Array, Array],
    image_tokens_BxTxD: Array,
    positions_BxM: Array,
    seeds_B: Array | None = None,
) -> Array:
    """Fused image tokens (B, M, D) at `positions` of theirs.

    Text and image tokens go through the fusion encoder as one sequence, all of whose tokens attend
    to each other and to the image tokens: so image tokens can be asked for too, as in models of one
    stream.

    text: tokens (B, L, D) and mask (B, L).
    """
    text_tokens_BxLxD, token_mask_BxL = text
    length, dtype = token_mask_BxL.shape[1], text_tokens_BxLxD.dtype
    image_BxTxD = image_tokens_BxTxD.astype(dtype)
    both_BxSxD = pin_rows(jnp.concatenate([text_tokens_BxLxD, image_BxTxD], axis=1))
    mask_BxS = jnp.pad(token_mask_BxL, ((0, 0), (0, image_BxTxD.shape[1])), constant_values=True)
    net = network.bind({"params": params})
    readout = Readout((0,), (length + positions_BxM)[:, None])
    inputs = both_BxSxD, mask_BxS, (ImageTokens((image_BxTxD,)),), seeds_B, [readout]
    (fused_Bx1xMxD,) = net.fuse(*inputs)
    return fused_Bx1xMxD[:, 0]


def tokens_seen(row: Rows, image_tokens_BxTxD: Array, shards: int = 1) -> Array:
    """The image tokens (B, T, D) that a kind of rows sees."""
    tokens_BxTxD = image_tokens_BxTxD if row.tokens_BxTxD is None else row.tokens_BxTxD
    if row.other_B is not None:
        tokens_BxTxD = take_rows(tokens_BxTxD, row.other_B, shards)
    return jax.lax.stop_gradient(tokens_BxTxD) if row.detached else tokens_BxTxD


def _image(
    image_tokens_BxTxD: Array, rows: list[Rows], split: BatchSplit
) -> tuple[ImageTokens, ...]:
    """What the rows see, in their order, from as few image tokens as possible."""
    shared, others = [], []
    for row in rows:
        if _by_itself(row, split):
            others.append(ImageTokens((tokens_seen(row, image_tokens_BxTxD, split.shards),)))
        elif row.other_B is not None or row.replacement is not None:
            shared.append(QueryGroup(1, row.detached, row.other_B, split.shards, row.replacement))
        elif shared and shared[-1] == QueryGroup(shared[-1].rows, row.detached):
            shared[-1] = QueryGroup(shared[-1].rows + 1, row.detached)
        else:
            shared.append(QueryGroup(1, row.detached))
    own = (ImageTokens((image_tokens_BxTxD,), tuple(shared)),) if shared else ()
    return (*own, *others)


def _by_itself(row: Rows, split: BatchSplit) -> bool:
    """Whether the tokens that a row sees are projected for it alone."""
    # The other picture may be in another piece, or on another device: its tokens are fewer bytes
    # than its keys.
    elsewhere = row.other_B is not None and (split.pieces > 1 or split.shards % row_devices() > 0)
    return elsewhere or (row.tokens_BxTxD is not None and row.replacement is None)


def _order(row: Rows, split: BatchSplit) -> tuple[bool, ...]:
    """Rows that see the same come together; those with tokens of their own come last."""
    others = row.replacement is not None, row.other_B is not None
    return _by_itself(row, split), *others, row.detached


def _text(row: Rows) -> Array:
    return jax.lax.stop_gradient(row.text_tokens_BxLxD) if row.detached else row.text_tokens_BxLxD
