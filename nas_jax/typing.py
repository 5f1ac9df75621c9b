"""The legend of shape letters, and the aliases of what passes between rooms.

Array names end in their shape, one letter (or number) an axis: ``image_tokens_BxTxD``.

    B  pairs in the (global) batch   N  image patches (no CLS)    T  image tokens, N + 1
    L  text positions                D  model width               E  width of the ITC features
    H  attention heads               F  features of one head      V  vocabulary
    K  codes in the dictionary       Q  entries of an ITC queue   M  masked text positions of a row
    R  rows of a fusion pass         C  candidates                S  side of the patch grid
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Params = dict[str, Any]
"""Nested dict of fp32 arrays, as Linen's ``init`` returns it under ``"params"``."""

Batch = dict[str, np.ndarray | jax.Array]
"""What the data room yields, all shapes fixed:

``image_BxHxWx3``  uint8 RGB (normalised on the device)
``token_ids_BxL``  int32, [CLS] first, padded with [PAD]
``token_mask_BxL`` bool, True on real tokens ([CLS] included)
``image_id_B``     int32, equal for pairs that show the same picture content
"""

Metrics = dict[str, jax.Array | float]
"""Scalar name -> value; names are ``group/quantity``, e.g. ``loss/itc``."""
