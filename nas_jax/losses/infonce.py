"""Contrast of the pairs of one batch in both directions (InfoNCE; CLIP, Radford et al. 2021).

ALIGN's is the same with label smoothing (Jia et al. 2021).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.losses.blocks import add_to_log_sum, empty_log_sum, in_blocks, scan_blocks
from nas_jax.losses.itc import without
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array


def infonce(
    image_BxE: Array,
    text_BxE: Array,
    temp: Array,
    ignored_BxB: Array | None = None,
    block: int = 0,
    smoothing: float = 0.0,
) -> Array:
    """-log softmax(image . text / temp) at the own pair, the mean over pairs and directions.

    Features are unit vectors in float32; all other pairs of the (global) batch are negatives but
    those that are ignored: pair j of row i, in both directions; never on the diagonal. block:
    captions at a time, a divisor of B; 0 = all. smoothing: share of the target that is spread over
    all B keys, which must be 0 where some are ignored. Both directions read the same similarities:
    of a block, its columns are summed whole, and its rows are added to those of the blocks before.
    """
    if ignored_BxB is not None and smoothing:
        raise ValueError("infonce spreads no target over ignored pairs: one of the two")
    image_BxE = pin_rows(image_BxE) / temp
    own_B = jnp.sum(image_BxE * text_BxE, -1)

    def add(rows_B: Array, keys: tuple[Array, Array | None, Array | None]) -> tuple[Array, Array]:
        text_CxE, as_row_CxB, as_key_CxB = keys
        logits_BxC = pin_rows(jnp.einsum("be,ce->bc", image_BxE, text_CxE))
        columns_C = jax.nn.logsumexp(without(logits_BxC.T, as_row_CxB), axis=1)
        ignored_BxC = None if as_key_CxB is None else as_key_CxB.T
        return add_to_log_sum(rows_B, without(logits_BxC, ignored_BxC)), columns_C

    as_key_BxB = None if ignored_BxB is None else ignored_BxB.T
    blocks = in_blocks((text_BxE, ignored_BxB, as_key_BxB), block)
    rows_B, columns = scan_blocks(add, empty_log_sum(len(image_BxE)), blocks)
    # The mean of all logits is the dot product of the mean features.
    everywhere = jnp.dot(image_BxE.mean(0), text_BxE.mean(0))
    target = (1 - smoothing) * own_B.mean() + smoothing * everywhere
    return (rows_B.mean() + columns.mean()) / 2 - target
