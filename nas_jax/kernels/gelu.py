"""Exact GELU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.kernels.twins import same_as
from nas_jax.typing import Array


def plain_gelu(x: Array) -> Array:
    """x times the normal distribution function."""
    return jax.nn.gelu(x, approximate=False)


@same_as(plain_gelu)
def gelu(x: Array) -> Array:
    """Exact GELU of any shape, by erf in float32; keeps x alone for the backward pass.

    erf is one polynomial, where jax.nn.gelu computes erfc with exponentials and branches. Gain: 5 %
    of a step on a TPU v5e, predicted (base); none on a CPU.
    """
    return _gelu(x)


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    return (wide * _normal(wide)).astype(x.dtype)


def _normal(x: Array) -> Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return ((grad.astype(jnp.float32) * (_normal(wide) + wide * density)).astype(x.dtype),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)
