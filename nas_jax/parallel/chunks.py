"""Exact gradient accumulation: a batch in pieces, with the result of the whole batch.

Averaging the gradients of small batches would be another loss: ITC compares all pairs of the batch.
So each part of the loss that works row by row runs in pieces which are computed again in the
backward pass, and what compares rows sees all of them (the idea of GradCache, Gao et al. 2021,
without its second loop).
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from nas_jax.parallel.mesh import BATCH, pin, pin_rows
from nas_jax.typing import Array, PyTree


def in_pieces(function: Callable[[PyTree], PyTree], pieces: int, rows: PyTree) -> PyTree:
    """`function(rows)`, for a function that maps arrays with rows first to such arrays, row by row.

    A piece takes every `pieces`-th row, so that no row changes its device. The rows must be a
    multiple of `pieces`.
    """
    if pieces == 1:
        return function(rows)

    def split(x: Array) -> Array:
        x = x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1)
        return pin(x, None, BATCH, *(None,) * (x.ndim - 2))

    def join(x: Array) -> Array:
        return pin_rows(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]))

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(function), jax.tree.map(split, rows)))
