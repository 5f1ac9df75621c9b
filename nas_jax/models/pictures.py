"""What rows of the fusion encoder look at.

Several texts stand beside each picture: the true one, hard negatives, generated ones. They read the
same image tokens, so their keys and values are computed once for each picture and not once for each
row; another picture of the batch is looked up among the keys and values that are there; and a
picture with some tokens replaced differs in those only. Where few tokens of text look, they read
the image tokens without any keys and values (`attention.ToHeads.absorbs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp

from nas_jax.typing import Array


@flax.struct.dataclass
class Replacement:
    """Tokens of each picture that are replaced, all by the same code (NVA), in the parts that
    LayerNorm leaves of them.

    The new token at patch n is scale_BxN * (base_BxD + place_NxD) + bias_D, and a place is the sum
    of its row's and its column's code. So the new keys and values follow from one projection for
    each picture, and one for each row and column of patches, however many tokens are replaced.
    """

    where_BxN: Array  # bool, True where replaced
    base_BxD: Array
    scale_BxN: Array


class Places(NamedTuple):
    """The parts of a replaced token that are the same for all pictures, on a grid of S x S
    patches.
    """

    row_SxD: Array
    column_SxD: Array
    bias_D: Array


@flax.struct.dataclass
class Look:
    """How `rows` texts beside each picture read it."""

    rows: int = flax.struct.field(pytree_node=False, default=1)
    # no gradient to the image tokens
    detached: bool = flax.struct.field(pytree_node=False, default=False)
    index_B: Array | None = None  # they read picture index_B[b] instead
    # blocks of the batch that an index stays in
    shards: int = flax.struct.field(pytree_node=False, default=1)
    replacement: Replacement | None = None  # they read it with tokens replaced


@flax.struct.dataclass
class Pictures:
    """Image tokens of B pictures, and the looks of the texts beside each of them, in the order of
    the texts.

    The tokens (B, T, D) in one array, or [CLS] and the patches in two.
    """

    tokens: tuple[Array, ...]
    looks: tuple[Look, ...] = (Look(),)
    places: Places | None = None  # needed by looks with replacements
    # keys and values of all tokens in any case
    plain: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def rows(self) -> int:
        """Texts beside each picture."""
        return sum(look.rows for look in self.looks)


def as_pictures(seen: Array | tuple[Pictures, ...]) -> tuple[Pictures, ...]:
    """Image tokens alone are one row for each picture, in the plain form."""
    return seen if isinstance(seen, tuple) else (Pictures((seen,), plain=True),)


def cls_apart(pictures: tuple[Pictures, ...]) -> tuple[Pictures, ...]:
    """[CLS] and patches in two arrays: once for all layers, whose gradients then need not be put
    together each time.
    """
    return tuple(
        seen.replace(tokens=(seen.tokens[0][:, :1], seen.tokens[0][:, 1:])) for seen in pictures
    )


def looks_of(pictures: tuple[Pictures, ...], texts: Sequence[int]) -> tuple[Pictures, ...]:
    """What some of the texts beside each picture look at.

    `texts`: their numbers, in the order of all looks.
    """
    kept, first = [], 0
    for seen in pictures:
        looks = []
        for look in seen.looks:
            rows = sum(first <= text < first + look.rows for text in texts)
            if rows:
                looks.append(look.replace(rows=rows))
            first += look.rows
        if looks:
            kept.append(seen.replace(looks=tuple(looks)))
    return tuple(kept)


def replace_patches(
    kept: Array,
    replacement: Replacement,
    places: Places,
    project: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """(B, T, ...): what a linear map gives of the tokens, and what it gives of the new ones at the
    replaced patches.

    kept: that of the picture's own tokens, the patches and perhaps [CLS] before. project: the map,
    (..., D) -> ....
    """
    base, bias = project(replacement.base_BxD)[:, None], project(places.bias_D)
    place = project(places.row_SxD)[:, None] + project(places.column_SxD)[None]
    place = place.reshape(-1, *place.shape[2:])
    before = kept.shape[1] - place.shape[0]

    def of_tokens(x_BxN: Array) -> Array:
        x_BxT = jnp.pad(x_BxN, ((0, 0), (before, 0)))
        return x_BxT.reshape(*x_BxT.shape, *(1,) * (kept.ndim - 2))

    place = jnp.pad(place, ((before, 0), *((0, 0),) * (place.ndim - 1)))
    new = (base + place) * of_tokens(replacement.scale_BxN) + bias
    return jnp.where(of_tokens(replacement.where_BxN), new.astype(kept.dtype), kept)
