"""Negatives as data: the losses that read them do not know who made them."""

from __future__ import annotations

import flax.struct

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
