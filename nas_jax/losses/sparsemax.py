"""Sparsemax: the point of the simplex that is nearest to a vector (Martins and Astudillo, ICML
2016).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.typing import Array


@jax.custom_vjp
def sparsemax(x: Array) -> Array:
    """max(x - tau, 0) over the last axis, with tau such that it sums to 1; float32.

    Entries that are far enough below the largest get exactly 0, and no gradient.
    """
    x = x.astype(jnp.float32)
    # Moved, which changes nothing: sums over many entries then keep their digits.
    x = x - x.max(-1, keepdims=True)
    sorted_x = jnp.flip(jnp.sort(x, axis=-1), axis=-1)
    total, rank = jnp.cumsum(sorted_x, axis=-1), jnp.arange(1, x.shape[-1] + 1)
    size = jnp.sum(1 + rank * sorted_x > total, axis=-1, keepdims=True)  # of the support
    tau = (jnp.take_along_axis(total, size - 1, axis=-1) - 1) / size
    return jnp.maximum(x - tau, 0.0)


def _forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    weights = sparsemax(x)
    return weights, (weights > 0, jnp.zeros((), x.dtype))


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array]:
    """The gradient minus its mean, on the support alone."""
    support, like = saved
    kept = jnp.where(support, grad, 0.0)
    mean = kept.sum(-1, keepdims=True) / support.sum(-1, keepdims=True)
    return (jnp.where(support, grad - mean, 0.0).astype(like.dtype),)


sparsemax.defvjp(_forward, _backward)
