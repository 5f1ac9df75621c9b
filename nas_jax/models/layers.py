"""What layers are made of, and stacks of them: one after the other, or as a loop over stacked
parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import BATCH, one_device, pin
from nas_jax.typing import Array, PyTree

POLICIES = ("none", "dots", "full")


def rematerialised(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """The layer class, computing in the backward pass what it does not keep.

    none: keeps everything. dots: keeps the results of its projections, computes attention and what
    is elementwise again. full: keeps its input only.
    """
    if policy == "none":
        return layer
    if policy == "dots":
        return nn.remat(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return nn.remat(layer)


class Weights(NamedTuple):
    """Kernel (D, F) and bias (F,) of a `Dense`."""

    kernel: Array
    bias: Array


class Dense(nn.Module):
    """x W + b over the last axis; kernel (D, F), bias (F,). As flax's, with the kernel's gradient
    in one matmul.

    Autodiff takes the gradient transposed and turns it, which XLA does slowly on CPUs.
    """

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x_BxTxD: Array) -> Array:
        """(B, T, D) -> (B, T, F)."""
        return _dense(x_BxTxD, _weights(self, x_BxTxD.shape[-1]), self.dtype)


class DenseWeights(nn.Module):
    """The weights of a `Dense` alone."""

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, dim: int) -> Weights:
        """For inputs of D numbers."""
        return _weights(self, dim)


def _weights(module: Dense | DenseWeights, dim: int) -> Weights:
    kernel_DxF = module.param("kernel", module.kernel_init, (dim, module.features), jnp.float32)
    return Weights(
        kernel_DxF, module.param("bias", nn.initializers.zeros, (module.features,), jnp.float32)
    )


def _dense(x_BxTxD: Array, weights: Weights, dtype: jnp.dtype) -> Array:
    # Cast at each use, so that the gradients of several uses add up as the parameters are kept.
    return _matmul(x_BxTxD.astype(dtype), weights.kernel.astype(dtype)) + weights.bias.astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def mlp(x_BxTxD: Array, mlp_in: Weights, mlp_out: Weights, dtype: jnp.dtype) -> Array:
    """Two projections with exact GELU between them: (B, T, D) -> (B, T, D).

    weights: in float32; dtype: of the matmuls. Without gradient, CPUs compute many tokens in a form
    of their own.
    """
    rows, dim = x_BxTxD.shape[0] * x_BxTxD.shape[1], x_BxTxD.shape[-1]
    as_it_is = functools.partial(_mlp, dtype=dtype)
    if rows < dim or not one_device():
        return as_it_is(x_BxTxD, mlp_in, mlp_out)
    turned = functools.partial(_mlp_turned, dtype=dtype)
    return jax.lax.platform_dependent(x_BxTxD, mlp_in, mlp_out, cpu=turned, default=as_it_is)


def _mlp(x_BxTxD: Array, mlp_in: Weights, mlp_out: Weights, dtype: jnp.dtype) -> Array:
    with jax.named_scope("mlp_in"):
        hidden_BxTxF = _dense(x_BxTxD, mlp_in, dtype)
    hidden_BxTxF = pin(gelu(hidden_BxTxF), BATCH, None, "tensor")
    with jax.named_scope("mlp_out"):
        return _dense(hidden_BxTxF, mlp_out, dtype)


def _mlp_turned(x_BxTxD: Array, mlp_in: Weights, mlp_out: Weights, dtype: jnp.dtype) -> Array:
    # Both matmuls have their left side turned, and XLA takes a faster library for these. Gradients
    # would be slower.
    x_NxD = x_BxTxD.astype(dtype).reshape(-1, x_BxTxD.shape[-1])
    (kernel_DxF, bias_F), (kernel_FxD, bias_D) = jax.tree.map(
        lambda leaf: leaf.astype(dtype), (mlp_in, mlp_out)
    )
    with jax.named_scope("mlp_in"):
        hidden_FxN = gelu(jnp.einsum("df,nd->fn", kernel_DxF, x_NxD) + bias_F[:, None])
    with jax.named_scope("mlp_out"):
        return jnp.einsum("fn,fd->nd", hidden_FxN, kernel_FxD).reshape(x_BxTxD.shape) + bias_D


# Where a gradient is asked, it is that of the plain form, whose values are then taken too.
mlp.defjvp(
    lambda dtype, primals, tangents: jax.jvp(
        functools.partial(_mlp, dtype=dtype), primals, tangents
    )
)


@jax.custom_vjp
def _matmul(x_BxTxD: Array, kernel_DxF: Array) -> Array:
    rows, (wide, narrow) = x_BxTxD.shape[0] * x_BxTxD.shape[1], kernel_DxF.shape
    if wide == narrow or wide % narrow or rows < narrow or not one_device():
        return _whole(x_BxTxD, kernel_DxF)
    return jax.lax.platform_dependent(x_BxTxD, kernel_DxF, cpu=_in_parts, default=_whole)


def _whole(x_BxTxD: Array, kernel_DxF: Array) -> Array:
    return jnp.einsum("btd,df->btf", x_BxTxD, kernel_DxF)


def _in_parts(x_BxTxD: Array, kernel_DxF: Array) -> Array:
    # Parts as wide as the output stay in the cache. Not where a mesh splits the input: a part might
    # be elsewhere.
    parts = kernel_DxF.shape[0] // kernel_DxF.shape[1]
    pairs = zip(jnp.split(x_BxTxD, parts, -1), jnp.split(kernel_DxF, parts), strict=True)
    return sum(_whole(x, kernel) for x, kernel in pairs)


def _matmul_backward(saved: tuple[Array, Array], grad_BxTxF: Array) -> tuple[Array, Array]:
    x_BxTxD, kernel_DxF = saved
    return jnp.einsum("btf,df->btd", grad_BxTxF, kernel_DxF), grad_of_kernel(x_BxTxD, grad_BxTxF)


def grad_of_kernel(x: Array, grad: Array) -> Array:
    """The gradient (*I, *O) of a kernel that takes x (B, T, *I) to (B, T, *O), by that of the
    result.
    """

    def as_they_are(x: Array, grad: Array) -> Array:
        return jnp.tensordot(x, grad, ((0, 1), (0, 1)))

    def flat(x: Array, grad: Array) -> Array:
        # XLA turns x over before the matmul, number by number, which is slow above all where its
        # rows are a multiple of 4 kB long and share a few lines of the cache. Behind a barrier it
        # leaves that to the matmul itself.
        x_NxI = jax.lax.optimization_barrier(x.reshape(-1, math.prod(x.shape[2:])))
        return (x_NxI.T @ grad.reshape(len(x_NxI), -1)).reshape(*x.shape[2:], *grad.shape[2:])

    return jax.lax.platform_dependent(x, grad, cpu=flat, default=as_they_are)


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _matmul_backward)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU, x times the normal distribution function; keeps x alone for the backward pass.

    By erf, one polynomial, in float32: jax.nn.gelu goes by erfc, with exponentials and branches.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal(wide)).astype(x.dtype)


def _normal(x: Array) -> Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return ((grad.astype(jnp.float32) * (_normal(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def run_layers(
    layers: Sequence[nn.Module], scan: bool, first: int, x: PyTree, *inputs: PyTree
) -> PyTree:
    """Calls layer(x, number, *inputs) for each layer in turn; numbers count from `first`.

    scan: as one loop, which compiles several times faster and runs slower. The parameters stay
    those of the single layers, and are stacked inside the step: both ways read the same
    checkpoints.
    """
    if not scan or len(layers) < 2 or layers[0].is_initializing():
        for number, layer in enumerate(layers, first):
            x = layer(x, number, *inputs)
        return x
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(layer.variables["params"] for layer in layers)
    )
    alone = layers[0].clone(parent=None, name=None)

    def body(x: PyTree, one: tuple[PyTree, jax.Array]) -> tuple[PyTree, None]:
        params, number = one
        return alone.apply({"params": params}, x, number, *inputs), None

    return jax.lax.scan(body, x, (stacked, first + jnp.arange(len(layers), dtype=jnp.uint32)))[0]
