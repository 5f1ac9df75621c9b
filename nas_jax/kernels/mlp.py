"""The feed-forward net of a Transformer layer."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.kernels.gelu import gelu
from nas_jax.kernels.matmuls import matmul
from nas_jax.kernels.twins import same_as
from nas_jax.parallel.mesh import BATCH, one_device, pin
from nas_jax.typing import Array


class Weights(NamedTuple):
    """Kernel (D, F) and bias (F,) of a projection, in float32."""

    kernel: Array
    bias: Array


def dense(x_BxTxD: Array, weights: Weights, dtype: jnp.dtype) -> Array:
    """x W + b, (B, T, D) -> (B, T, F), computed in `dtype`."""
    # Cast at each use, so that the gradients of several uses add up in float32.
    return matmul(x_BxTxD.astype(dtype), weights.kernel.astype(dtype)) + weights.bias.astype(dtype)


def plain_mlp(x_BxTxD: Array, mlp_in: Weights, mlp_out: Weights, dtype: jnp.dtype) -> Array:
    """GELU(x W + b) W' + b'."""
    with jax.named_scope("mlp_in"):
        hidden_BxTxF = dense(x_BxTxD, mlp_in, dtype)
    hidden_BxTxF = pin(gelu(hidden_BxTxF), BATCH, None, "tensor")
    with jax.named_scope("mlp_out"):
        return dense(hidden_BxTxF, mlp_out, dtype)


@same_as(plain_mlp)
def mlp(x_BxTxD: Array, mlp_in: Weights, mlp_out: Weights, dtype: jnp.dtype) -> Array:
    """Two projections with exact GELU between them: (B, T, D) -> (B, T, D).

    Without gradient CPUs compute many tokens with the hidden units before the tokens: both matmuls
    then have their left side transposed, and XLA takes a faster library for these.
    """
    return _mlp(x_BxTxD, mlp_in, mlp_out, dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _mlp(x_BxTxD: Array, mlp_in: Weights, mlp_out: Weights, dtype: jnp.dtype) -> Array:
    rows, dim = x_BxTxD.shape[0] * x_BxTxD.shape[1], x_BxTxD.shape[-1]
    as_it_is = functools.partial(plain_mlp, dtype=dtype)
    if rows < dim or not one_device():
        return as_it_is(x_BxTxD, mlp_in, mlp_out)
    turned = functools.partial(_hidden_units_first, dtype=dtype)
    return jax.lax.platform_dependent(x_BxTxD, mlp_in, mlp_out, cpu=turned, default=as_it_is)


def _hidden_units_first(
    x_BxTxD: Array, mlp_in: Weights, mlp_out: Weights, dtype: jnp.dtype
) -> Array:
    x_NxD = x_BxTxD.astype(dtype).reshape(-1, x_BxTxD.shape[-1])
    (kernel_DxF, bias_F), (kernel_FxD, bias_D) = jax.tree.map(
        lambda leaf: leaf.astype(dtype), (mlp_in, mlp_out)
    )
    with jax.named_scope("mlp_in"):
        hidden_FxN = gelu(jnp.einsum("df,nd->fn", kernel_DxF, x_NxD) + bias_F[:, None])
    with jax.named_scope("mlp_out"):
        return jnp.einsum("fn,fd->nd", hidden_FxN, kernel_FxD).reshape(x_BxTxD.shape) + bias_D


# Where a gradient is asked for, values and gradient are those of the plain form: the gradients of
# the other would be slower.
_mlp.defjvp(
    lambda dtype, primals, tangents: jax.jvp(
        functools.partial(plain_mlp, dtype=dtype), primals, tangents
    )
)
