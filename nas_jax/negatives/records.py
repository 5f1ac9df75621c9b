"""Negatives as data: the losses that read them do not know who made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import flax.struct
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import Replacement
from nas_jax.typing import Array


@flax.struct.dataclass
class TextNegatives:
    """C captions for each picture that do not describe it: generated, exchanged, given ..."""

    ids_BxCxL: Array  # int32
    mask_BxCxL: Array  # bool, True on real tokens
    valid_BxC: Array  # bool, False where there is none, or it equals the true caption
    kinds: tuple[str, ...] = flax.struct.field(pytree_node=False)  # name of each of the C


@flax.struct.dataclass
class ImageNegatives:
    """C pictures for each caption that it does not describe, as the fusion encoder reads them."""

    tokens_BxCxTxD: Array
    valid_BxC: Array  # bool
    kinds: tuple[str, ...] = flax.struct.field(pytree_node=False)  # name of each of the C
    # of each of the C: the same tokens as the picture's own with some patches replaced, if they are
    replacements: tuple[Replacement | None, ...] = ()


def joined(parts: Sequence[TextNegatives]) -> TextNegatives:
    """The captions of several makers, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return TextNegatives(
        jnp.concatenate([part.ids_BxCxL for part in parts], 1),
        jnp.concatenate([part.mask_BxCxL for part in parts], 1),
        jnp.concatenate([part.valid_BxC for part in parts], 1),
        tuple(kind for part in parts for kind in part.kinds),
    )


def without_equals(
    negatives: TextNegatives, token_ids_BxL: Array, token_mask_BxL: Array
) -> TextNegatives:
    """The negatives, with those that equal the true caption no longer valid."""
    real_BxCxL = negatives.mask_BxCxL | token_mask_BxL[:, None]
    other_BxCxL = negatives.ids_BxCxL != token_ids_BxL[:, None]
    other_BxCxL |= negatives.mask_BxCxL != token_mask_BxL[:, None]
    valid_BxC = negatives.valid_BxC & (real_BxCxL & other_BxCxL).any(-1)
    return replace(negatives, valid_BxC=valid_BxC)
