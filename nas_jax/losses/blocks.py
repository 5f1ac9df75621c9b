"""Sums over all keys of a batch, a block of keys at a time.

A loss that compares all pairs of a batch has B x B similarities. Here the rows stay on their
devices, the keys come in blocks of C samples, and only (rows, C) similarities stand in memory. The
backward pass computes those of a block again.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import pin, pin_rows
from nas_jax.typing import Array, PyTree


def in_blocks(keys: PyTree, block: int) -> PyTree:
    """Arrays with all B keys first -> (B / block, block, ...), whole on every device.

    block: 0, or a divisor of B; 0 or more than B: one block.
    """

    def split(x: Array) -> Array:
        whole = pin(x, *(None,) * x.ndim)
        return whole.reshape(-1, min(block or len(x), len(x)), *x.shape[1:])

    return jax.tree.map(split, keys)


def scan_blocks(
    body: Callable[[Array, PyTree], tuple[Array, PyTree]], start: PyTree, blocks: PyTree
) -> tuple[Array, PyTree]:
    """`jax.lax.scan` over blocks, which keeps nothing of a block but what the next one needs."""
    return jax.lax.scan(jax.checkpoint(body), start, blocks)


def streaming_log_sum(
    logits: Callable[[PyTree], Array], rows: int, keys: PyTree, block: int
) -> Array:
    """log sum_j exp(logits_ij) of each row, (B,), without all logits at once.

    logits: a block of keys -> (B, C), float32.
    """

    def add(log_sum_B: Array, keys: PyTree) -> tuple[Array, None]:
        return add_to_log_sum(log_sum_B, logits(keys)), None

    return scan_blocks(add, empty_log_sum(rows), in_blocks(keys, block))[0]


def empty_log_sum(rows: int) -> Array:
    """The logarithm of an empty sum, (B,)."""
    return pin_rows(jnp.full((rows,), -jnp.inf, jnp.float32))


def add_to_log_sum(log_sum_B: Array, logits_BxC: Array) -> Array:
    """log(exp(log_sum) + sum_j exp(logits_j)), (B,)."""
    return jnp.logaddexp(log_sum_B, jax.nn.logsumexp(logits_BxC, axis=1))
