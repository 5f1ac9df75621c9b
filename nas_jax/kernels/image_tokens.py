"""Image tokens that several texts attend to.

Beside each image of a batch stand several texts: the true one, hard negatives, generated ones. They
come in groups that attend to the same: the image, another image of the batch, or the image with
some of its tokens replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import pin_rows, take_rows
from nas_jax.typing import Array


@flax.struct.dataclass
class Replacement:
    """Tokens of each image that are replaced, all by the same code (NVA), in the terms that
    LayerNorm makes of them.

    The new token at patch n is scale_BxN * (base_BxD + position_NxD) + bias_D, and a position is
    the sum of its row's and its column's code. So the new keys and values follow from one
    projection for each image, and one for each row and column of patches, however many tokens are
    replaced.
    """

    where_BxN: Array  # bool, True where replaced
    base_BxD: Array
    scale_BxN: Array


class PositionTerms(NamedTuple):
    """The terms of a replaced token that are the same for all images, on a grid of S x S
    patches.
    """

    row_SxD: Array
    column_SxD: Array
    bias_D: Array


@flax.struct.dataclass
class QueryGroup:
    """How `rows` texts beside each image attend to it."""

    rows: int = flax.struct.field(pytree_node=False, default=1)
    # no gradient to the image tokens
    detached: bool = flax.struct.field(pytree_node=False, default=False)
    index_B: Array | None = None  # they attend to image index_B[b] instead
    # blocks of the batch that an index stays in
    shards: int = flax.struct.field(pytree_node=False, default=1)
    replacement: Replacement | None = None  # they attend to it with tokens replaced


@flax.struct.dataclass
class ImageTokens:
    """Tokens of B images, and the groups of texts beside each of them, in the order of the texts.

    The tokens (B, T, D) are in one array, or [CLS] and the patches in two.
    """

    tokens: tuple[Array, ...]
    groups: tuple[QueryGroup, ...] = (QueryGroup(),)
    positions: PositionTerms | None = None  # needed by groups with replacements

    @property
    def rows(self) -> int:
        """Texts beside each image."""
        return sum(group.rows for group in self.groups)

    def position_terms(self) -> PositionTerms:
        """The positions. Raises ValueError where a group with a replacement lacks them."""
        if self.positions is None:
            raise ValueError("image tokens with a replacement need their positions")
        return self.positions

    def seen_by(self, group: QueryGroup) -> Array:
        """The tokens (B, T, D) that each text of a group attends to."""
        tokens_BxTxD = jnp.concatenate(self.tokens, axis=1)
        if group.index_B is not None:
            tokens_BxTxD = take_rows(tokens_BxTxD, group.index_B, group.shards)
        if group.detached:
            tokens_BxTxD = jax.lax.stop_gradient(tokens_BxTxD)
        if group.replacement is not None:
            terms = self.position_terms()
            tokens_BxTxD = replace_patches(tokens_BxTxD, group.replacement, terms)
        return tokens_BxTxD


def as_image_tokens(image: Array | tuple[ImageTokens, ...]) -> tuple[ImageTokens, ...]:
    """Image tokens (B, T, D) alone have one text beside each image."""
    return image if isinstance(image, tuple) else (ImageTokens((image,)),)


def cls_apart(image: tuple[ImageTokens, ...]) -> tuple[ImageTokens, ...]:
    """[CLS] and patches in two arrays: once for all layers, whose gradients then need not be put
    together each time.
    """
    return tuple(replace(one, tokens=(one.tokens[0][:, :1], one.tokens[0][:, 1:])) for one in image)


def some_texts(image: tuple[ImageTokens, ...], texts: Sequence[int]) -> tuple[ImageTokens, ...]:
    """Image tokens with some of the texts beside each image.

    `texts`: their numbers, in the order of all groups.
    """
    kept, first = [], 0
    for one in image:
        groups = []
        for group in one.groups:
            rows = sum(first <= text < first + group.rows for text in texts)
            if rows:
                groups.append(replace(group, rows=rows))
            first += group.rows
        if groups:
            kept.append(replace(one, groups=tuple(groups)))
    return tuple(kept)


def by_image(x: Array, batch: int) -> Array:
    """(R, ...) -> (B, P, ...): the texts beside each of `batch` images in an axis of their own."""
    return pin_rows(x.reshape(batch, -1, *x.shape[1:]))


def replace_patches(
    kept: Array,
    replacement: Replacement,
    positions: PositionTerms,
    project: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """(B, T, ...): what a linear map gives of the tokens, and what it gives of the new ones at the
    replaced patches.

    kept: that of the image's own tokens, the patches and perhaps [CLS] before. project: the map,
    (..., D) -> ....
    """
    base, bias = project(replacement.base_BxD)[:, None], project(positions.bias_D)
    position = project(positions.row_SxD)[:, None] + project(positions.column_SxD)[None]
    position = position.reshape(-1, *position.shape[2:])
    before = kept.shape[1] - position.shape[0]

    def of_tokens(x_BxN: Array) -> Array:
        x_BxT = jnp.pad(x_BxN, ((0, 0), (before, 0)))
        return x_BxT.reshape(*x_BxT.shape, *(1,) * (kept.ndim - 2))

    position = jnp.pad(position, ((before, 0), *((0, 0),) * (position.ndim - 1)))
    new = (base + position) * of_tokens(replacement.scale_BxN) + bias
    return jnp.where(of_tokens(replacement.where_BxN), new.astype(kept.dtype), kept)
