"""Queries, keys and values of tokens, and the projection behind the heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.kernels.matmuls import weight_gradient
from nas_jax.kernels.twins import same_as
from nas_jax.parallel.mesh import BATCH, one_device, pin
from nas_jax.typing import Array


@dataclass(frozen=True)
class HeadWeights:
    """P projections of tokens to heads, in the dtype of the matmuls; the last two make keys and
    values.

    The functions below add the bias of queries alone. That of keys moves all logits of a query
    alike, and softmax does not see it; that of values is added to their weighted mean (`attend`),
    which is fewer numbers.
    """

    kernel_DxPxHxF: Array
    bias_PxHxF: Array
    cudnn: bool = False  # attention to these keys is NVIDIA's kernel where it has no dropout

    def part(self, number: int) -> Array:
        """The kernel (D, H, F) of one projection."""
        return self.kernel_DxPxHxF[:, number]

    def cast(self, x: Array) -> Array:
        """x in the dtype of the matmuls."""
        return x.astype(self.kernel_DxPxHxF.dtype)


class KeyValue(NamedTuple):
    """Keys and values (B, T, H, F) of some tokens, without their biases."""

    key: Array
    value: Array


def query(x_BxTxD: Array, weights: HeadWeights) -> Array:
    """Queries (B, T, H, F): the first projection."""
    return _pin(project(weights.cast(x_BxTxD), weights.part(0)) + weights.bias_PxHxF[0])


def key_value(x_BxTxD: Array, weights: HeadWeights) -> KeyValue:
    """The last two projections."""
    x_BxTxD = weights.cast(x_BxTxD)
    return KeyValue(*(_pin(project(x_BxTxD, weights.part(part))) for part in (-2, -1)))


def _pin(x_BxTxHxF: Array) -> Array:
    return pin(x_BxTxHxF, BATCH, None, "tensor", None)


# ----------------------------------------------------------------------------------- one projection


def plain_project(x_BxTxD: Array, kernel_DxHxF: Array) -> Array:
    """x W of each head."""
    return jnp.einsum("btd,dhf->bthf", x_BxTxD, kernel_DxHxF)


@same_as(plain_project)
def project(x_BxTxD: Array, kernel_DxHxF: Array) -> Array:
    """(B, T, D) and (D, H, F) -> (B, T, H, F), with gradients as flat matmuls on CPUs."""
    return _project(x_BxTxD, kernel_DxHxF)


_project = jax.custom_vjp(plain_project)


def _project_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return input_gradient(grad, kernel), weight_gradient(x, grad)


_project.defvjp(lambda x, kernel: (_project(x, kernel), (x, kernel)), _project_backward)


def plain_input_gradient(grad_BxTxHxF: Array, kernel_DxHxF: Array) -> Array:
    """The sum over all heads and their numbers."""
    return jnp.einsum("bthf,dhf->btd", grad_BxTxHxF, kernel_DxHxF)


@same_as(plain_input_gradient)
def input_gradient(grad_BxTxHxF: Array, kernel_DxHxF: Array) -> Array:
    """The gradient (B, T, D) of what was projected to heads, from that of the result.

    On CPUs a sum over two axes makes XLA transpose the kernel first; on TPUs one over their product
    is slower.
    """

    def flat(grad: Array, kernel: Array) -> Array:
        return jnp.einsum(
            "btk,dk->btd", grad.reshape(*grad.shape[:2], -1), kernel.reshape(kernel.shape[0], -1)
        )

    return jax.lax.platform_dependent(
        grad_BxTxHxF, kernel_DxHxF, cpu=flat, default=plain_input_gradient
    )


# ----------------------------------------------------------------------- several of the same tokens


def plain_query_key_value(x_BxTxD: Array, weights: HeadWeights) -> tuple[Array, KeyValue]:
    """One after the other."""
    return query(x_BxTxD, weights), key_value(x_BxTxD, weights)


@same_as(plain_query_key_value)
def query_key_value(x_BxTxD: Array, weights: HeadWeights) -> tuple[Array, KeyValue]:
    """`query` and `key_value` of the same tokens: on CPUs in one matmul, as XLA would copy each
    part of the kernel first.
    """
    queries, *others = _project_all(weights.cast(x_BxTxD), weights.kernel_DxPxHxF)
    return _pin(queries + weights.bias_PxHxF[0]), KeyValue(*map(_pin, others))


@jax.custom_vjp
def _project_all(x_BxTxD: Array, kernel_DxPxHxF: Array) -> list[Array]:
    if not one_device():
        return _project_each(x_BxTxD, kernel_DxPxHxF)
    return jax.lax.platform_dependent(
        x_BxTxD, kernel_DxPxHxF, cpu=_project_joined, default=_project_each
    )


def _parts(kernel_DxPxHxF: Array) -> list[Array]:
    return [kernel_DxPxHxF[:, part] for part in range(kernel_DxPxHxF.shape[1])]


def _project_each(x_BxTxD: Array, kernel_DxPxHxF: Array) -> list[Array]:
    return [plain_project(x_BxTxD, kernel_DxHxF) for kernel_DxHxF in _parts(kernel_DxPxHxF)]


def _project_joined(x_BxTxD: Array, kernel_DxPxHxF: Array) -> list[Array]:
    parts = kernel_DxPxHxF.shape[1:]
    joined_BxTxPxHxF = (x_BxTxD @ kernel_DxPxHxF.reshape(len(kernel_DxPxHxF), -1)).reshape(
        *x_BxTxD.shape[:2], *parts
    )
    return [joined_BxTxPxHxF[:, :, part] for part in range(parts[0])]


def _project_all_backward(saved: tuple[Array, Array], grads: list[Array]) -> tuple[Array, Array]:
    def each(x: Array, kernel: Array, *grads: Array) -> tuple[Array, Array]:
        pairs = [
            _project_backward((x, part), grad)
            for part, grad in zip(_parts(kernel), grads, strict=True)
        ]
        total = pairs[0][0]
        for grad_x, _ in pairs[1:]:  # one behind the other: a TPU adds each while it multiplies
            total = grad_x + jax.lax.optimization_barrier(total)
        return total, jnp.stack([grad_kernel for _, grad_kernel in pairs], 1)

    def joined(x: Array, kernel: Array, *grads: Array) -> tuple[Array, Array]:
        grad = jnp.stack(grads, 2).reshape(*x.shape[:2], -1)
        grad_x = jnp.einsum("btk,dk->btd", grad, kernel.reshape(len(kernel), -1))
        return grad_x, weight_gradient(x, grad).reshape(kernel.shape)

    if not one_device():
        return each(*saved, *grads)
    return jax.lax.platform_dependent(*saved, *grads, cpu=joined, default=each)


_project_all.defvjp(lambda x, kernel: (_project_all(x, kernel), (x, kernel)), _project_all_backward)


def plain_key_value_twice(x_BxTxD: Array, weights: HeadWeights) -> tuple[KeyValue, KeyValue]:
    """Each by itself."""
    detached_BxTxD = jax.lax.stop_gradient(x_BxTxD)
    return key_value(x_BxTxD, weights), key_value(detached_BxTxD, weights)


@same_as(plain_key_value_twice)
def key_value_twice(x_BxTxD: Array, weights: HeadWeights) -> tuple[KeyValue, KeyValue]:
    """`key_value`, and again without a gradient to the tokens: computed once."""
    x_BxTxD = weights.cast(x_BxTxD)
    both = [map(_pin, _project_twice(x_BxTxD, weights.part(part))) for part in (-2, -1)]
    trained, detached = zip(*both, strict=True)
    return KeyValue(*trained), KeyValue(*detached)


@jax.custom_vjp
def _project_twice(x: Array, kernel: Array) -> tuple[Array, Array]:
    projected = plain_project(x, kernel)
    return projected, projected


def _project_twice_backward(
    saved: tuple[Array, Array], grads: tuple[Array, Array]
) -> tuple[Array, Array]:
    x, kernel = saved
    return input_gradient(grads[0], kernel), weight_gradient(x, grads[0] + grads[1])


_project_twice.defvjp(
    lambda x, kernel: (_project_twice(x, kernel), (x, kernel)), _project_twice_backward
)


def never(queries: int, tokens: int, weights: HeadWeights) -> bool:
    """Keys and values are always computed."""
    return False


@same_as(never)
def absorbs(queries: int, tokens: int, weights: HeadWeights) -> bool:
    """Whether so many queries attend to so many tokens with fewer operations if `attend` gets the
    tokens themselves, not their keys and values.

    q (x W_k)' = (q W_k') x' and p (x W_v) = (p x) W_v: the kernels can be absorbed by the queries
    and by what is mixed (DeepSeek-AI 2024, DeepSeek-V2, section 2.1.2).
    """
    dim, _, heads, _ = weights.kernel_DxPxHxF.shape
    return not weights.cudnn and queries * (dim + (heads - 1) * tokens) < tokens * dim


# -------------------------------------------------------------------------------- behind the heads


def plain_merge_heads(x_BxTxHxF: Array, kernel_HxFxD: Array) -> Array:
    """The sum over all heads and their numbers."""
    return jnp.einsum("bthf,hfd->btd", x_BxTxHxF, kernel_HxFxD)


@same_as(plain_merge_heads)
def merge_heads(x_BxTxHxF: Array, kernel_HxFxD: Array) -> Array:
    """(B, T, H, F) and (H, F, D) -> (B, T, D).

    On CPUs as one matmul of two axes: XLA sums over heads and numbers in the order in which the
    larger array has them, and would transpose the kernel to it. Autodiff gives a gradient of the
    kernel that is transposed too, so that the optimizer would read it across.
    """
    return _merge_heads(x_BxTxHxF, kernel_HxFxD)


@jax.custom_vjp
def _merge_heads(x_BxTxHxF: Array, kernel_HxFxD: Array) -> Array:
    def flat(x: Array, kernel: Array) -> Array:
        return x.reshape(*x.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1])

    return jax.lax.platform_dependent(x_BxTxHxF, kernel_HxFxD, cpu=flat, default=plain_merge_heads)


def _merge_heads_backward(saved: tuple[Array, Array], grad_BxTxD: Array) -> tuple[Array, Array]:
    def flat(grad: Array, kernel: Array) -> Array:
        joined = jnp.einsum("btd,kd->btk", grad, kernel.reshape(-1, kernel.shape[-1]))
        return joined.reshape(*grad.shape[:2], *kernel.shape[:2])

    def by_heads(grad: Array, kernel: Array) -> Array:
        return jnp.einsum("btd,hfd->bthf", grad, kernel)

    x_BxTxHxF, kernel_HxFxD = saved
    grad_BxTxHxF = jax.lax.platform_dependent(grad_BxTxD, kernel_HxFxD, cpu=flat, default=by_heads)
    return grad_BxTxHxF, weight_gradient(x_BxTxHxF, grad_BxTxD)


_merge_heads.defvjp(lambda x, kernel: (_merge_heads(x, kernel), (x, kernel)), _merge_heads_backward)
