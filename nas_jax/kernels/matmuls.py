"""Matmuls of tokens with kernels, as XLA computes them fast."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from nas_jax.kernels.twins import same_as
from nas_jax.parallel.mesh import one_device
from nas_jax.typing import Array


def plain_matmul(x_BxTxD: Array, kernel_DxF: Array) -> Array:
    """x W."""
    return jnp.einsum("btd,df->btf", x_BxTxD, kernel_DxF)


@same_as(plain_matmul)
def matmul(x_BxTxD: Array, kernel_DxF: Array) -> Array:
    """(B, T, D) and (D, F) -> (B, T, F), with `weight_gradient` as the gradient of the kernel.

    Autodiff takes that gradient transposed and turns it, which XLA does slowly on CPUs.
    """
    return _matmul(x_BxTxD, kernel_DxF)


@jax.custom_vjp
def _matmul(x_BxTxD: Array, kernel_DxF: Array) -> Array:
    rows, (wide, narrow) = x_BxTxD.shape[0] * x_BxTxD.shape[1], kernel_DxF.shape
    if wide == narrow or wide % narrow or rows < narrow or not one_device():
        return plain_matmul(x_BxTxD, kernel_DxF)
    return wide_matmul(x_BxTxD, kernel_DxF)


def _matmul_backward(saved: tuple[Array, Array], grad_BxTxF: Array) -> tuple[Array, Array]:
    x_BxTxD, kernel_DxF = saved
    grad_BxTxD = jnp.einsum("btf,df->btd", grad_BxTxF, kernel_DxF)
    return grad_BxTxD, weight_gradient(x_BxTxD, grad_BxTxF)


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _matmul_backward)


@same_as(plain_matmul)
def wide_matmul(x_BxTxD: Array, kernel_DxF: Array) -> Array:
    """`matmul` where D is a multiple of F: on CPUs as a sum of parts as wide as the output, which
    stay in the cache.

    Not where a mesh splits the input: a part might be elsewhere.
    """

    def in_parts(x_BxTxD: Array, kernel_DxF: Array) -> Array:
        parts = kernel_DxF.shape[0] // kernel_DxF.shape[1]
        pairs = zip(jnp.split(x_BxTxD, parts, -1), jnp.split(kernel_DxF, parts), strict=True)
        return sum(plain_matmul(x, kernel) for x, kernel in pairs)

    return jax.lax.platform_dependent(x_BxTxD, kernel_DxF, cpu=in_parts, default=plain_matmul)


def plain_weight_gradient(x: Array, grad: Array) -> Array:
    """The sum over all tokens of x times the gradient."""
    return jnp.tensordot(x, grad, ((0, 1), (0, 1)))


@same_as(plain_weight_gradient)
def weight_gradient(x: Array, grad: Array) -> Array:
    """The gradient (*I, *O) of a kernel that takes x (B, T, *I) to (B, T, *O), from that of the
    result.

    On CPUs XLA would transpose x before the matmul, number by number, which is slow above all where
    its rows are a multiple of 4 kB long and share a few lines of the cache. Behind a barrier it
    leaves that to the matmul itself.
    """

    def flat(x: Array, grad: Array) -> Array:
        x_NxI = jax.lax.optimization_barrier(x.reshape(-1, math.prod(x.shape[2:])))
        return (x_NxI.T @ grad.reshape(len(x_NxI), -1)).reshape(*x.shape[2:], *grad.shape[2:])

    return jax.lax.platform_dependent(x, grad, cpu=flat, default=plain_weight_gradient)
