"""Queries, keys and values of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nas_jax.kernels.matmuls import matmul, matmul_twice
from nas_jax.kernels.twins import same_as
from nas_jax.parallel.mesh import BATCH, pin
from nas_jax.typing import Array


@dataclass(frozen=True)
class HeadWeights:
    """P projections of tokens to heads, in the dtype of the matmuls; the last two make keys and
    values.
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
    """Keys and values (B, T, H, F) of some tokens, without their biases.

    That of keys moves all logits of a query alike, and softmax does not see it; that of values is
    added to their weighted mean (`attend`), which is fewer numbers.
    """

    key: Array
    value: Array


def query(x_BxTxD: Array, weights: HeadWeights) -> Array:
    """Queries (B, T, H, F): the first projection."""
    return _pin(matmul(weights.cast(x_BxTxD), weights.part(0)) + weights.bias_PxHxF[0])


def key_value(x_BxTxD: Array, weights: HeadWeights) -> KeyValue:
    """The last two projections."""
    x_BxTxD = weights.cast(x_BxTxD)
    return KeyValue(*(_pin(matmul(x_BxTxD, weights.part(part))) for part in (-2, -1)))


def key_value_twice(x_BxTxD: Array, weights: HeadWeights) -> tuple[KeyValue, KeyValue]:
    """`key_value`, and again without a gradient to the tokens."""
    x_BxTxD = weights.cast(x_BxTxD)
    key, value = (map(_pin, matmul_twice(x_BxTxD, weights.part(part))) for part in (-2, -1))
    trained, detached = map(KeyValue, key, value)
    return trained, detached


def _pin(x_BxTxHxF: Array) -> Array:
    return pin(x_BxTxHxF, BATCH, None, "tensor", None)


def never(queries: int, tokens: int, weights: HeadWeights) -> bool:
    """Keys and values are always computed."""
    return False


@same_as(never)
def absorbs(queries: int, tokens: int, weights: HeadWeights) -> bool:
    """Whether so many queries attend to so many tokens with fewer operations if `attend` gets the
    tokens themselves, not their keys and values.

    q (x W_k)' = (q W_k') x' and p (x W_v) = (p x) W_v: the kernels can be absorbed by the queries
    and by what is mixed (DeepSeek-AI 2024, DeepSeek-V2, section 2.1.2). Gain: 5 % of a step's
    operations (base).
    """
    dim, _, heads, _ = weights.kernel_DxPxHxF.shape
    return not weights.cudnn and queries * (dim + (heads - 1) * tokens) < tokens * dim


def keys_for(queries: int, x_BxTxD: Array, weights: HeadWeights) -> KeyValue | Array:
    """What so many queries attend to, as `attend` takes it."""
    if absorbs(queries, x_BxTxD.shape[1], weights):
        return weights.cast(x_BxTxD)
    return key_value(x_BxTxD, weights)
