"""What rows of the fusion encoder look at.

Several texts stand beside each picture: the true one, hard negatives, generated ones. They read the same image tokens,
so their keys and values are computed once for each picture and not once for each row; another picture of the batch is
looked up among the keys and values that are there; and a picture with some tokens replaced differs in those only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import take_rows
from nas_jax.typing import Array


@flax.struct.dataclass
class Replacement:
    """Tokens of each picture that are replaced, all by the same code (NVA), in the parts that LayerNorm leaves of them.

    The new token at patch n is scale_BxN * (base_BxD + place_NxD) + bias_D. So its keys and values follow from one
    projection for each picture and one for each patch position, however many tokens are replaced.
    """

    where_BxN: Array  # bool, True where replaced
    base_BxD: Array
    scale_BxN: Array


class Places(NamedTuple):
    """The parts of a replaced token that are the same for all pictures."""

    place_NxD: Array
    bias_D: Array


@flax.struct.dataclass
class Look:
    """How `rows` texts beside each picture read it."""

    rows: int = flax.struct.field(pytree_node=False, default=1)
    detached: bool = flax.struct.field(pytree_node=False, default=False)  # no gradient to the image tokens
    index_B: Array | None = None  # they read picture index_B[b] instead
    shards: int = flax.struct.field(pytree_node=False, default=1)  # blocks of the batch that an index stays in
    replacement: Replacement | None = None  # they read it with tokens replaced


@flax.struct.dataclass
class Pictures:
    """Image tokens of B pictures, and the looks of the texts beside each of them, in the order of the texts.

    The tokens (B, T, D) in one array, or [CLS] and the patches in two.
    """

    tokens: tuple[Array, ...]
    looks: tuple[Look, ...] = (Look(),)
    places: Places | None = None  # needed by looks with replacements
    plain: bool = flax.struct.field(pytree_node=False, default=False)  # keys and values of all tokens in any case

    @property
    def rows(self) -> int:
        """Texts beside each picture."""
        return sum(look.rows for look in self.looks)


def as_pictures(seen: Array | tuple[Pictures, ...]) -> tuple[Pictures, ...]:
    """Image tokens alone are one row for each picture, in the plain form."""
    return seen if isinstance(seen, tuple) else (Pictures((seen,), plain=True),)


def cls_apart(pictures: tuple[Pictures, ...]) -> tuple[Pictures, ...]:
    """[CLS] and patches in two arrays: once for all layers, whose gradients then need not be put together each time."""
    return tuple(seen.replace(tokens=(seen.tokens[0][:, :1], seen.tokens[0][:, 1:])) for seen in pictures)


def looks_of(pictures: tuple[Pictures, ...], texts: Sequence[int]) -> tuple[Pictures, ...]:
    """What some of the texts beside each picture look at. `texts`: their numbers, in the order of all looks."""
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


def tokens_of(look: Look, seen: Pictures) -> list[Array]:
    """The tokens (B, T, D) that a look reads, in the parts of `seen`."""
    tokens = [jax.lax.stop_gradient(x) if look.detached else x for x in seen.tokens]
    if look.index_B is not None:
        tokens = [take_rows(x, look.index_B, look.shards) for x in tokens]
    if look.replacement is not None:
        base_Bx1xD, (place_NxD, bias_D) = look.replacement.base_BxD[:, None], seen.places
        new_BxNxD = look.replacement.scale_BxN[..., None] * (base_Bx1xD + place_NxD) + bias_D
        tokens[-1] = replace_patches(tokens[-1], look.replacement.where_BxN, new_BxNxD)
    return tokens


def replace_patches(kept: Array, where_BxN: Array, new: Array) -> Array:
    """(B, T, ...) with the new patches (B, N, ...) where they are wanted; [CLS], if it stands before, is kept."""
    where = where_BxN.reshape(*where_BxN.shape, *(1,) * (kept.ndim - 2))
    before = kept.shape[1] - where.shape[1]
    patches = jnp.where(where, new.astype(kept.dtype), kept[:, before:])
    return jnp.concatenate([kept[:, :before], patches], axis=1) if before else patches
