"""The legend of shape letters, and the aliases of what passes between rooms.

Array names end in their shape, one letter (or number) an axis: ``image_tokens_BxTxD``.

    B  pairs in the (global) batch    N  image patches (without CLS)   T  image tokens, N + 1
    L  text positions                 D  model width                   E  width of ITC features
    H  attention heads                F  features of one head          V  vocabulary
    K  codes in the dictionary        Q  entries of an ITC queue       M  masked words of a row
    R  rows of a fusion pass          C  candidates                    S  side of the patch grid
    U  objects of a picture
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Params = dict[str, Any]
"""Nested dict of fp32 arrays, as Linen's ``init`` returns it under ``"params"``."""

Batch = dict[str, jax.Array]
"""What a step reads, all shapes fixed:

``image_BxHxWx3``  uint8 RGB (normalised on the device)
``token_ids_BxL``  int32, [CLS] first, padded with [PAD]
``token_mask_BxL`` bool, True on real tokens ([CLS] included)
``image_id_B``     int32, equal for pairs that show the same picture content

and what a method or task wants beside these (``nas_jax/data/readers.py``).
"""

HostBatch = dict[str, np.ndarray]
"""A `Batch` as the data room yields it; ``parallel.mesh.put_batch`` moves it to the devices."""

Metrics = dict[str, jax.Array | float]
"""Scalar name -> value; names are ``group/quantity``, e.g. ``loss/itc``."""


class Vocabulary(NamedTuple):
    """What losses and negatives know of a tokenizer."""

    size: int  # V
    pad: int  # ids of the special tokens
    cls: int
    sep: int
    mask: int
    # begins a word that carries meaning: letters or digits, neither special nor a function word
    content_V: np.ndarray
    # may be put in place of a word: as above, a whole word and no lone letter
    fillable_V: np.ndarray
    continuation_V: np.ndarray  # second and later pieces of a word ("##ing")
    # the words themselves, "" where an entry is none; () where they are not known
    words: tuple[str, ...] = ()

    @classmethod
    def blank(cls, size: int) -> Vocabulary:
        """A vocabulary for shapes alone, without a tokenizer: every entry is a word that may be
        replaced, and the special ids are 0 to 3.
        """
        words_V = np.ones(size, bool)
        return cls(size, 0, 1, 2, 3, words_V, words_V, np.zeros(size, bool))
