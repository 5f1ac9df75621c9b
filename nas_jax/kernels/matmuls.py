"""Matmuls of tokens with kernels."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from nas_jax.kernels.twins import same_as
from nas_jax.typing import Array


def plain_matmul(x: Array, kernel: Array, inputs: int = 1) -> Array:
    """x W, a sum over the last `inputs` axes of x."""
    return jnp.tensordot(x, kernel, inputs)


@same_as(plain_matmul)
def matmul(x: Array, kernel: Array, inputs: int = 1) -> Array:
    """(B, T, *I) and (*I, *O) -> (B, T, *O), where I are `inputs` axes.

    The gradient of the kernel is one flat matmul. XLA would transpose x for it first on a CPU,
    number by number, which is slow above all where the rows of x are a multiple of 4 kB long and
    share a few lines of the cache. Behind a barrier it leaves that to the matmul. Gain: 5 % of a
    step on a CPU (base); none on a TPU.
    """
    return _matmul(x, kernel, inputs)


_matmul = jax.custom_vjp(plain_matmul, nondiff_argnums=(2,))


def _forward(x: Array, kernel: Array, inputs: int) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x, kernel, inputs), (x, kernel)


def _backward(inputs: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _grad_x(grad, kernel, inputs), _grad_kernel(x, grad)


def _grad_x(grad: Array, kernel: Array, inputs: int) -> Array:
    outputs = tuple(range(inputs - kernel.ndim, 0))
    return jnp.tensordot(grad, kernel, (outputs, outputs))


def _grad_kernel(x: Array, grad: Array) -> Array:
    def flat(x: Array, grad: Array) -> Array:
        x_NxI = jax.lax.optimization_barrier(x.reshape(-1, math.prod(x.shape[2:])))
        return (x_NxI.T @ grad.reshape(len(x_NxI), -1)).reshape(*x.shape[2:], *grad.shape[2:])

    plain = functools.partial(jnp.tensordot, axes=((0, 1), (0, 1)))
    return jax.lax.platform_dependent(x, grad, cpu=flat, default=plain)


_matmul.defvjp(_forward, _backward)


def plain_matmul_twice(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Each by itself."""
    return matmul(x, kernel), matmul(jax.lax.stop_gradient(x), kernel)


@same_as(plain_matmul_twice)
def matmul_twice(x: Array, kernel: Array) -> tuple[Array, Array]:
    """`matmul`, and again without a gradient to x: with one gradient of the kernel for both.

    Gain: 2 % of a step on a CPU (base). It stays although that is below 3 %: without it the kernels
    that were left out would cost more than that together.
    """
    return _matmul_twice(x, kernel)


@jax.custom_vjp
def _matmul_twice(x: Array, kernel: Array) -> tuple[Array, Array]:
    product = plain_matmul(x, kernel)
    return product, product


def _backward_twice(saved: tuple[Array, Array], grads: tuple[Array, Array]) -> tuple[Array, Array]:
    x, kernel = saved
    return _grad_x(grads[0], kernel, 1), _grad_kernel(x, grads[0] + grads[1])


_matmul_twice.defvjp(lambda x, kernel: (_matmul_twice(x, kernel), (x, kernel)), _backward_twice)
