"""Multi-head attention, shared by the image encoder, the text encoder and the fusion encoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.models.dropout import dropout
from nas_jax.models.layers import grad_of_kernel
from nas_jax.models.pictures import Look, Pictures, Places, Replacement, replace_patches
from nas_jax.parallel.mesh import BATCH, one_device, pin, pin_rows, take_rows
from nas_jax.typing import Array

MASKED = -1e9  # added to logits of padding; finite, so that a row without any key stays finite too
IMPLEMENTATIONS = ("xla", "cudnn")


class KeyValue(NamedTuple):
    """Keys and values (B, T, H, F) of some tokens, or the kernels (D, H, F) that make them."""

    key: Array
    value: Array


def _init_flat(
    kernel_init: nn.initializers.Initializer, inputs: int
) -> nn.initializers.Initializer:
    """Draws a kernel as one matrix, whose rows are its first `inputs` axes."""

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        return kernel_init(key, (rows, columns), jnp.float32).reshape(shape)

    return init


class HeadProjection(nn.Module):
    """Several projections to heads: kernel (D, P, H, F), bias (P, H, F)."""

    parts: int
    heads: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, dim: int) -> ToHeads:
        """The weights for tokens of D numbers, in the dtype of the matmuls."""
        shape = (self.parts, self.heads, dim // self.heads)
        kernel = self.param("kernel", _init_flat(self.kernel_init, inputs=1), (dim, *shape)).astype(
            self.dtype
        )
        bias = self.param("bias", nn.initializers.zeros, shape).astype(self.dtype)
        return ToHeads(kernel, _split(kernel), bias)


@dataclass(frozen=True)
class ToHeads:
    """The weights of a `HeadProjection`, and what is computed with them.

    Only a query gets its bias here. That of keys moves all logits of a query alike, and softmax
    does not see it; that of values is added to what they are mixed to (`attend`), which are fewer
    numbers.
    """

    kernel_DxPxHxF: Array
    kernels_DxHxF: list[Array]  # its parts
    bias_PxHxF: Array

    def query_key_value(self, x_BxTxD: Array) -> tuple[Array, KeyValue]:
        """`query` and `key_value` of the same tokens."""
        query, *key_value = _project_all(self._cast(x_BxTxD), self.kernel_DxPxHxF)
        return _pin(query + self.bias_PxHxF[0]), KeyValue(*map(_pin, key_value))

    def query(self, x_BxTxD: Array) -> Array:
        """Part 0 (B, T, H, F)."""
        return _pin(_project(self._cast(x_BxTxD), self.kernels_DxHxF[0]) + self.bias_PxHxF[0])

    def key_value(self, x_BxTxD: Array) -> KeyValue:
        """The last two parts, without bias."""
        x_BxTxD = self._cast(x_BxTxD)
        return KeyValue(*(_pin(_project(x_BxTxD, kernel)) for kernel in self.kernels_DxHxF[-2:]))

    def key_value_twice(self, x_BxTxD: Array) -> tuple[KeyValue, KeyValue]:
        """`key_value`, and again without a gradient to `x`: computed once."""
        x_BxTxD = self._cast(x_BxTxD)
        both = [map(_pin, _project_twice(x_BxTxD, kernel)) for kernel in self.kernels_DxHxF[-2:]]
        plain, detached = zip(*both, strict=True)
        return KeyValue(*plain), KeyValue(*detached)

    @property
    def value_bias_HxF(self) -> Array:
        """Bias of the last part."""
        return self.bias_PxHxF[-1]

    def absorbs(self, queries: int, tokens: int) -> bool:
        """Whether so many queries read so many tokens with fewer operations as they are than by
        keys and values.
        """
        dim, heads = self.kernel_DxPxHxF.shape[0], self.bias_PxHxF.shape[1]
        return queries * (dim + (heads - 1) * tokens) < tokens * dim

    def attend(
        self,
        query_BxLxHxF: Array,
        groups: Sequence[KeyValue | Array],
        key_mask_BxT: Array | None = None,
        drop: Drop | None = None,
        implementation: str = "xla",
    ) -> Array:
        """Attention (B, L, H, F) over all groups together, of keys and values or of tokens (B, T,
        D) as they are.

        It is the same as over the concatenation of their keys and values, whose bias is added to
        what is mixed, times the sum of the weights, which is 1 without dropout. key_mask: True on
        real keys, with one group only.
        """
        scale = query_BxLxHxF.shape[-1] ** -0.5
        if implementation == "cudnn" and len(groups) == 1 and drop is None:
            lengths_B = None if key_mask_BxT is None else key_mask_BxT.sum(-1, dtype=jnp.int32)
            mixed = jax.nn.dot_product_attention(
                query_BxLxHxF,
                *groups[0],
                scale=scale,
                key_value_seq_lengths=lengths_B,
                implementation="cudnn",
            )
            return mixed + self.value_bias_HxF
        groups = tuple(
            group if isinstance(group, KeyValue) else self._cast(group) for group in groups
        )
        kernels = (
            None
            if all(isinstance(group, KeyValue) for group in groups)
            else KeyValue(*self.kernels_DxHxF[-2:])
        )
        rate, salt, seeds_BxL = (0.0, "", None) if drop is None else drop
        mixed, kept_BxLxH = _mix(
            (rate, salt), query_BxLxHxF * scale, groups, kernels, key_mask_BxT, seeds_BxL
        )
        return _pin(
            mixed
            + (self.value_bias_HxF if drop is None else kept_BxLxH[..., None] * self.value_bias_HxF)
        )

    def replaced(
        self, group: KeyValue | Array, replacement: Replacement, places: Places
    ) -> KeyValue | Array:
        """The group of these tokens with some patches replaced."""
        if not isinstance(group, KeyValue):
            return replace_patches(group, replacement, places)

        def part(kernel_DxHxF: Array, kept_BxTxHxF: Array) -> Array:
            def project(x: Array) -> Array:
                return jnp.einsum(
                    "...d,dhf->...hf",
                    self._cast(x),
                    kernel_DxHxF,
                    preferred_element_type=jnp.float32,
                )

            return replace_patches(kept_BxTxHxF, replacement, places, project)

        return KeyValue(*map(part, self.kernels_DxHxF[-2:], group))

    def _cast(self, x: Array) -> Array:
        return x.astype(self.bias_PxHxF.dtype)


def _pin(x_BxTxHxF: Array) -> Array:
    return pin(x_BxTxHxF, BATCH, None, "tensor", None)


@jax.custom_vjp
def _split(kernel_DxPxHxF: Array) -> list[Array]:
    return [kernel_DxPxHxF[:, part] for part in range(kernel_DxPxHxF.shape[1])]


# Autodiff would fill up each part's gradient with zeros to the shape of them all, and add these.
_split.defvjp(lambda kernel: (_split(kernel), None), lambda _, grads: (jnp.stack(grads, 1),))


@jax.custom_vjp
def _project(x: Array, kernel: Array) -> Array:
    return jnp.einsum("btd,dhf->bthf", x, kernel)


@jax.custom_vjp
def _project_twice(x: Array, kernel: Array) -> tuple[Array, Array]:
    projected = _project(x, kernel)
    return projected, projected


def _project_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _grad_x(grad, kernel), grad_of_kernel(x, grad)


def _project_twice_backward(
    saved: tuple[Array, Array], grads: tuple[Array, Array]
) -> tuple[Array, Array]:
    x, kernel = saved
    return _grad_x(grads[0], kernel), grad_of_kernel(x, grads[0] + grads[1])


@jax.custom_vjp
def _project_all(x_BxTxD: Array, kernel_DxPxHxF: Array) -> list[Array]:
    if not one_device():
        return _project_each(x_BxTxD, kernel_DxPxHxF)
    return jax.lax.platform_dependent(
        x_BxTxD, kernel_DxPxHxF, cpu=_project_joined, default=_project_each
    )


def _project_each(x_BxTxD: Array, kernel_DxPxHxF: Array) -> list[Array]:
    return [_project(x_BxTxD, kernel_DxHxF) for kernel_DxHxF in _split(kernel_DxPxHxF)]


def _project_joined(x_BxTxD: Array, kernel_DxPxHxF: Array) -> list[Array]:
    # A CPU would copy each part of the kernel first.
    parts = kernel_DxPxHxF.shape[1:]
    joined_BxTxPxHxF = (x_BxTxD @ kernel_DxPxHxF.reshape(len(kernel_DxPxHxF), -1)).reshape(
        *x_BxTxD.shape[:2], *parts
    )
    return [joined_BxTxPxHxF[:, :, part] for part in range(parts[0])]


def _project_all_backward(saved: tuple[Array, Array], grads: list[Array]) -> tuple[Array, Array]:
    x_BxTxD, kernel_DxPxHxF = saved

    def each(x: Array, kernel: Array, *grads: Array) -> tuple[Array, Array]:
        pairs = [
            _project_backward((x, part), grad)
            for part, grad in zip(_split(kernel), grads, strict=True)
        ]
        total = pairs[0][0]
        for grad_x, _ in pairs[1:]:  # one behind the other: a TPU adds each while it multiplies
            total = grad_x + jax.lax.optimization_barrier(total)
        return total, jnp.stack([grad_kernel for _, grad_kernel in pairs], 1)

    def joined(x: Array, kernel: Array, *grads: Array) -> tuple[Array, Array]:
        grad = jnp.stack(grads, 2).reshape(*x.shape[:2], -1)
        grad_x = jnp.einsum("btk,dk->btd", grad, kernel.reshape(len(kernel), -1))
        return grad_x, grad_of_kernel(x, grad).reshape(kernel.shape)

    if not one_device():
        return each(x_BxTxD, kernel_DxPxHxF, *grads)
    return jax.lax.platform_dependent(x_BxTxD, kernel_DxPxHxF, *grads, cpu=joined, default=each)


_project_all.defvjp(lambda x, kernel: (_project_all(x, kernel), (x, kernel)), _project_all_backward)


def _grad_x(grad_BxTxHxF: Array, kernel_DxHxF: Array) -> Array:
    # On CPUs a sum over two axes makes XLA turn the kernel over first; on TPUs one over their
    # product is slower.
    def flat(grad: Array, kernel: Array) -> Array:
        return jnp.einsum(
            "btk,dk->btd", grad.reshape(*grad.shape[:2], -1), kernel.reshape(kernel.shape[0], -1)
        )

    def by_heads(grad: Array, kernel: Array) -> Array:
        return jnp.einsum("bthf,dhf->btd", grad, kernel)

    return jax.lax.platform_dependent(grad_BxTxHxF, kernel_DxHxF, cpu=flat, default=by_heads)


_project.defvjp(lambda x, kernel: (_project(x, kernel), (x, kernel)), _project_backward)
_project_twice.defvjp(
    lambda x, kernel: (_project_twice(x, kernel), (x, kernel)), _project_twice_backward
)


class FromHeads(nn.Module):
    """The projection of all heads together: kernel (H, F, D), bias (D,).

    As flax's DenseGeneral, whose gradient of the kernel comes turned over, so that the optimizer
    would read it across.
    """

    dim: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x_BxTxHxF: Array) -> Array:
        """(B, T, H, F) -> (B, T, D)."""
        shape = (*x_BxTxHxF.shape[-2:], self.dim)
        kernel_HxFxD = self.param("kernel", _init_flat(self.kernel_init, inputs=2), shape).astype(
            self.dtype
        )
        bias_D = self.param("bias", nn.initializers.zeros, (self.dim,)).astype(self.dtype)
        return _join(x_BxTxHxF.astype(self.dtype), kernel_HxFxD) + bias_D


@jax.custom_vjp
def _join(x_BxTxHxF: Array, kernel_HxFxD: Array) -> Array:
    # On CPUs XLA sums over numbers and heads in the order in which the larger array comes, and
    # turns the kernel to it.
    def flat(x: Array, kernel: Array) -> Array:
        return x.reshape(*x.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1])

    def by_heads(x: Array, kernel: Array) -> Array:
        return jnp.einsum("bthf,hfd->btd", x, kernel)

    return jax.lax.platform_dependent(x_BxTxHxF, kernel_HxFxD, cpu=flat, default=by_heads)


def _join_backward(saved: tuple[Array, Array], grad_BxTxD: Array) -> tuple[Array, Array]:
    def flat(grad: Array, kernel: Array) -> Array:
        joined = jnp.einsum("btd,kd->btk", grad, kernel.reshape(-1, kernel.shape[-1]))
        return joined.reshape(*grad.shape[:2], *kernel.shape[:2])

    def by_heads(grad: Array, kernel: Array) -> Array:
        return jnp.einsum("btd,hfd->bthf", grad, kernel)

    x_BxTxHxF, kernel_HxFxD = saved
    grad_BxTxHxF = jax.lax.platform_dependent(grad_BxTxD, kernel_HxFxD, cpu=flat, default=by_heads)
    return grad_BxTxHxF, grad_of_kernel(x_BxTxHxF, grad_BxTxD)


_join.defvjp(lambda x, kernel: (_join(x, kernel), (x, kernel)), _join_backward)


class Drop(NamedTuple):
    """Dropout of attention weights."""

    rate: float
    salt: str
    seeds_BxL: Array  # of the queries


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    drop: tuple[float, str],
    query_BxLxHxF: Array,
    groups: tuple[KeyValue | Array, ...],
    kernels: KeyValue | None,
    key_mask_BxT: Array | None,
    seeds_BxL: Array | None,
) -> tuple[Array, Array | None]:
    """The values mixed (B, L, H, F), and with dropout the sum of the weights (B, L, H), which it
    moves away from 1.

    The exponentials are computed once, and divided by their sum only after they have been
    multiplied with the values. The backward pass reads them again; the sum it needs over the keys
    of each query is one over the F numbers of its output (Dao et al. 2022, FlashAttention, appendix
    B).

    Of tokens as they are, no keys and values are computed: q (x W_k)' = (q W_k') x' and p (x W_v) =
    (p x) W_v, so the kernels are absorbed by the queries and by what is mixed (DeepSeek-AI 2024,
    DeepSeek-V2, section 2.1.2).
    """
    return _mix_forward(drop, query_BxLxHxF, groups, kernels, key_mask_BxT, seeds_BxL)[0]


def _mix_forward(drop, query_BxLxHxF, groups, kernels, key_mask_BxT, seeds_BxL):
    dtype = query_BxLxHxF.dtype
    query_BxLxHxD = None if kernels is None else _absorb(query_BxLxHxF, kernels.key)
    pairs = [_key_value(group) for group in groups]
    logits = [
        _products(_by_width(query_BxLxHxF, query_BxLxHxD, key), key).astype(jnp.float32)
        for key, _ in pairs
    ]
    if key_mask_BxT is not None:
        logits = [jnp.where(key_mask_BxT[:, None, None, :], logits[0], MASKED)]
    largest_BxHxL = functools.reduce(jnp.maximum, (x.max(-1) for x in logits))
    powers = [jnp.exp(x - largest_BxHxL[..., None]) for x in logits]
    powers = tuple(x.astype(dtype) for x in powers)
    total_BxHxL = sum(map(_sum_last, powers))
    dropped = _dropped(drop, powers, seeds_BxL)
    scale_BxLxH = (1 / total_BxHxL).swapaxes(1, 2)
    sums = [_over_keys(x, value) for x, (_, value) in zip(dropped, pairs, strict=True)]
    mixed = sum(x for x, (_, value) in zip(sums, pairs, strict=True) if value.ndim == 4)
    mixed_BxLxHxD = None
    if kernels is not None:
        mixed_BxLxHxD = sum(x for x, (_, value) in zip(sums, pairs, strict=True) if value.ndim == 3)
        mixed += jnp.einsum("blhd,dhf->blhf", mixed_BxLxHxD, kernels.value)
    mixed_BxLxHxF = (mixed * scale_BxLxH[..., None]).astype(dtype)
    kept_BxLxH = None
    if seeds_BxL is not None:
        kept_BxLxH = (sum(map(_sum_last, dropped)).swapaxes(1, 2) * scale_BxLxH).astype(dtype)
    inputs = query_BxLxHxF, groups, kernels, key_mask_BxT, seeds_BxL
    saved = inputs, query_BxLxHxD, powers, scale_BxLxH, mixed_BxLxHxF, mixed_BxLxHxD, kept_BxLxH
    return (mixed_BxLxHxF, kept_BxLxH), saved


def _mix_backward(drop, saved, grads):
    inputs, query_BxLxHxD, powers, scale_BxLxH, mixed_BxLxHxF, mixed_BxLxHxD, kept_BxLxH = saved
    query_BxLxHxF, groups, kernels, key_mask_BxT, seeds_BxL = inputs
    dtype, pairs = query_BxLxHxF.dtype, [_key_value(group) for group in groups]
    wide_BxLxHxF = grads[0].astype(jnp.float32)
    grad_BxLxHxF = (wide_BxLxHxF * scale_BxLxH[..., None]).astype(dtype)
    grad_BxLxHxD = None if kernels is None else _absorb(grad_BxLxHxF, kernels.value)
    mean_BxLxH = _sum_last(wide_BxLxHxF * mixed_BxLxHxF, dtype) * scale_BxLxH
    products = [
        _products(_by_width(grad_BxLxHxF, grad_BxLxHxD, value), value) for _, value in pairs
    ]
    if seeds_BxL is not None:
        extra_BxLxH = grads[1].astype(jnp.float32) * scale_BxLxH
        mean_BxLxH += extra_BxLxH * kept_BxLxH
        extra_BxHxLx1 = extra_BxLxH.swapaxes(1, 2)[..., None]
        products = _dropped(
            drop, [x.astype(jnp.float32) + extra_BxHxLx1 for x in products], seeds_BxL
        )
    dropped = _dropped(drop, powers, seeds_BxL)
    grad_query, grad_query_BxLxHxD, grad_groups = 0, 0, []
    for power, drop_power, product, (key, _) in zip(powers, dropped, products, pairs, strict=True):
        grad_logits = power.astype(jnp.float32) * (
            product.astype(jnp.float32) - mean_BxLxH.swapaxes(1, 2)[..., None]
        )
        if key_mask_BxT is not None:
            grad_logits = jnp.where(key_mask_BxT[:, None, None, :], grad_logits, 0)
        grad_logits = grad_logits.astype(dtype)
        if key.ndim == 4:
            grad_query += _over_keys(grad_logits, key)
            grad_value = _over_queries(drop_power, grad_BxLxHxF)
            grad_groups.append(KeyValue(_over_queries(grad_logits, query_BxLxHxF), grad_value))
        else:
            grad_query_BxLxHxD += _over_keys(grad_logits, key)
            both = zip((grad_logits, drop_power), (query_BxLxHxD, grad_BxLxHxD), strict=True)
            grad_groups.append(sum(jnp.einsum("bhlt,blhd->btd", *one) for one in both))
    grad_kernels = None
    if kernels is not None:
        grad_query += jnp.einsum("blhd,dhf->blhf", grad_query_BxLxHxD, kernels.key)
        grad_key_DxHxF = jnp.einsum("blhd,blhf->dhf", grad_query_BxLxHxD, query_BxLxHxF)
        grad_kernels = KeyValue(
            grad_key_DxHxF, jnp.einsum("blhd,blhf->dhf", mixed_BxLxHxD, grad_BxLxHxF)
        )
    return grad_query, tuple(grad_groups), grad_kernels, None, None


def _key_value(group: KeyValue | Array) -> KeyValue:
    """Tokens as they are stand for both."""
    return group if isinstance(group, KeyValue) else KeyValue(group, group)


def _absorb(x_BxLxHxF: Array, kernel_DxHxF: Array) -> Array:
    return _pin(jnp.einsum("blhf,dhf->blhd", x_BxLxHxF, kernel_DxHxF))


def _by_width(x_BxLxHxF: Array, x_BxLxHxD: Array | None, key: Array) -> Array:
    """What is multiplied with these keys, or with tokens as they are."""
    return x_BxLxHxF if key.ndim == 4 else x_BxLxHxD


def _products(query: Array, key: Array) -> Array:
    """Inner products (B, H, L, T) of all queries with keys (B, T, H, F), or with tokens (B, T,
    D).
    """

    def heads_first(query: Array, key: Array) -> Array:
        # Else a CPU turns the keys over, number by number.
        query, key = jax.lax.optimization_barrier((query.swapaxes(1, 2), key.swapaxes(1, 2)))
        return jnp.einsum("bhlf,bhtf->bhlt", query, key)

    def as_they_are(query: Array, key: Array) -> Array:
        if key.shape[1] == 1:
            return _matmul("bthf,blhf->bhlt", key, query)
        return _matmul("blhf,bthf->bhlt", query, key)

    if key.ndim == 3:
        return jnp.einsum("blhd,btd->bhlt", query, key)
    return jax.lax.platform_dependent(query, key, cpu=heads_first, default=as_they_are)


# The larger array first, and heads moved after: faster on CPUs than what einsum makes of
# "bhlt,bthf->blhf".


def _over_keys(weights_BxHxLxT: Array, value: Array) -> Array:
    """Weighted sums (B, L, H, F) over all keys, or (B, L, H, D) over tokens."""
    pattern = "bhlt,btd->bhld" if value.ndim == 3 else "bhlt,bthf->bhlf"
    return _matmul(pattern, weights_BxHxLxT, value).swapaxes(1, 2)


def _over_queries(weights_BxHxLxT: Array, x_BxLxHxF: Array) -> Array:
    """Weighted sums (B, T, H, F) over all queries."""
    return _matmul("bhlt,blhf->bhtf", weights_BxHxLxT, x_BxLxHxF).swapaxes(1, 2)


def _matmul(pattern: str, x: Array, y: Array) -> Array:
    """einsum of batches of matrices, also on a TPU where those on the left have a single row."""

    def as_it_is(x: Array, y: Array) -> Array:
        return jnp.einsum(pattern, x, y)

    def of_single_row(x: Array, y: Array) -> Array:
        return _matmul_of_single_row(pattern, x, y)

    left, right, _ = pattern.replace("->", ",").split(",")
    sizes = dict(zip(left + right, x.shape + y.shape, strict=True))
    rows, columns = (
        math.prod(sizes[letter] for letter in letters)
        for letters in (set(left) - set(right), set(right) - set(left))
    )
    if rows > 1 or columns == 1:
        return as_it_is(x, y)
    return jax.lax.platform_dependent(x, y, tpu=of_single_row, default=as_it_is)


def _matmul_of_single_row(pattern: str, x: Array, y: Array) -> Array:
    # XLA would multiply number by number and add along the lanes of a TPU, which is slow. With rows
    # of zeros below it stays a matmul; XLA leaves them out again later.
    left, right, result = pattern.replace("->", ",").split(",")
    row = min(set(left) - set(right))
    padded = jnp.pad(x, [(0, 7 if letter == row else 0) for letter in left])
    return jax.lax.slice_in_dim(jnp.einsum(pattern, padded, y), 0, 1, axis=result.index(row))


def _sum_last(x: Array, dtype: jnp.dtype | None = None) -> Array:
    """Sums over the last axis in float32.

    dtype: that in which a TPU reads the summands, else their own.
    """

    def add(x: Array) -> Array:
        return x.astype(jnp.float32).sum(-1)

    def multiply(x: Array) -> Array:
        return _sum_last_by_matmul(x.astype(dtype or x.dtype))

    return jax.lax.platform_dependent(x, tpu=multiply, default=add)


def _sum_last_by_matmul(x: Array) -> Array:
    # Sums along the lanes of a TPU are slow; XLA would make such a sum of a matmul with ones that
    # it knows of, or with one column.
    ones = jax.lax.optimization_barrier(jnp.ones((x.shape[-1], 8), x.dtype))
    return jnp.einsum("...t,tn->...n", x, ones, preferred_element_type=jnp.float32)[..., 0]


_mix.defvjp(_mix_forward, _mix_backward)


def _dropped(
    drop: tuple[float, str], weights: Sequence[Array], seeds_BxL: Array | None
) -> list[Array]:
    """The weights after dropout, those of a group after those of the groups before."""
    if seeds_BxL is None:
        return list(weights)
    rate, salt = drop
    firsts = [sum(x.shape[-1] for x in weights[:number]) for number in range(len(weights))]
    seeds = seeds_BxL[:, None, :, None]
    return [
        dropout(x, rate, seeds, salt, (1, 3), first)
        for x, first in zip(weights, firsts, strict=True)
    ]


class _Heads(nn.Module):
    """What both kinds of attention have. F = D / H."""

    heads: int
    dropout: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer
    implementation: str = "xla"

    def _project(self, name: str, parts: int) -> HeadProjection:
        return HeadProjection(parts, self.heads, self.dtype, self.kernel_init, name=name)

    def _out(self, dim: int) -> nn.Module:
        return FromHeads(dim, self.dtype, self.kernel_init, name="out")

    def _absorbs(self, to_heads: ToHeads, queries: int, x_BxTxD: Array) -> bool:
        return self.implementation == "xla" and to_heads.absorbs(queries, x_BxTxD.shape[1])

    def _drop(self, seeds_RxL: Array | None) -> Drop | None:
        return (
            None
            if seeds_RxL is None or self.dropout == 0
            else Drop(self.dropout, self.name, seeds_RxL)
        )


class SelfAttention(_Heads):
    """Attention of tokens to each other. Kernels: ``qkv`` (D, 3, H, F), ``out`` (H, F, D)."""

    @nn.compact
    def __call__(
        self,
        streams: Sequence[Array],
        key_mask_RxL: Array | None = None,
        seeds_RxL: Array | None = None,
        picked_RxM: Array | None = None,
    ) -> list[Array]:
        """Each token attends to those of all streams, each (R, L, D), whose mask is True.

        seeds: of the dropout, one for each query; None for evaluation. picked: only these tokens
        ask; with one stream.
        """
        qkv = self._project("qkv", 3)(streams[0].shape[-1])
        if picked_RxM is None:
            queries, groups = zip(*map(qkv.query_key_value, streams), strict=True)
        else:
            queries = [qkv.query(gather_tokens(streams[0], picked_RxM))]
            as_they_are = self._absorbs(qkv, picked_RxM.shape[1], streams[0])
            groups = [streams[0] if as_they_are else qkv.key_value(streams[0])]
        drop = self._drop(seeds_RxL)
        mixed = [
            qkv.attend(query, groups, key_mask_RxL, drop, self.implementation) for query in queries
        ]
        out = self._out(streams[0].shape[-1])
        return [pin_rows(out(one)) for one in mixed]


class CrossAttention(_Heads):
    """Attention of texts to pictures.

    Kernels: ``query`` (D, 1, H, F), ``key_value`` (D, 2, H, F), ``out``.
    """

    @nn.compact
    def __call__(
        self, x_RxLxD: Array, pictures: tuple[Pictures, ...], seeds_RxL: Array | None = None
    ) -> Array:
        """R rows, those of a picture together, in the order of the looks; see
        `models/pictures.py`.
        """
        dim = x_RxLxD.shape[-1]
        query, key_value = self._project("query", 1)(dim), self._project("key_value", 2)(dim)
        batch = pictures[0].tokens[0].shape[0]

        def by_picture(x: Array) -> Array:
            return pin_rows(x.reshape(batch, -1, *x.shape[1:]))

        out = self._out(dim)
        x_BxPxLxD = by_picture(x_RxLxD)
        seeds_BxPxL = None if seeds_RxL is None else by_picture(seeds_RxL)
        mixed, row = [], 0
        for seen in pictures:
            groups_of = self._reader(key_value, seen, seen.rows * x_RxLxD.shape[1])
            for look in seen.looks:
                rows = slice(row, row + look.rows)

                def together(x: Array, rows: slice = rows) -> Array:
                    return pin_rows(x[:, rows].reshape(batch, -1, *x.shape[3:]))

                drop = None if seeds_BxPxL is None else self._drop(together(seeds_BxPxL))
                query_BxQxHxF = query.query(together(x_BxPxLxD))
                mixed_BxQxHxF = key_value.attend(
                    query_BxQxHxF, groups_of(look), None, drop, self.implementation
                )
                mixed_BxQxD = out(mixed_BxQxHxF)
                mixed.append(mixed_BxQxD.reshape(batch, look.rows, *x_RxLxD.shape[1:]))
                row += look.rows
        mixed_BxPxLxD = jnp.concatenate(mixed, axis=1) if len(mixed) > 1 else mixed[0]
        return pin_rows(mixed_BxPxLxD.reshape(x_RxLxD.shape))

    def _reader(
        self, to_heads: ToHeads, seen: Pictures, queries: int
    ) -> Callable[[Look], list[KeyValue | Array]]:
        """What a look attends to: in the parts of the tokens, keys and values, or less work for so
        many queries.
        """
        any_detached = any(look.detached for look in seen.looks)

        # for looks with and without a gradient
        def both(x_BxTxD: Array) -> tuple[KeyValue | Array, KeyValue | Array]:
            if not seen.plain and self._absorbs(to_heads, queries, x_BxTxD):
                return x_BxTxD, jax.lax.stop_gradient(x_BxTxD)
            if any_detached:
                return to_heads.key_value_twice(x_BxTxD)
            return (to_heads.key_value(x_BxTxD),) * 2

        plain, detached = zip(*map(both, seen.tokens), strict=True)

        def groups_of(look: Look) -> list[KeyValue | Array]:
            groups = list(detached if look.detached else plain)
            if look.index_B is not None:
                groups = jax.tree.map(lambda x: take_rows(x, look.index_B, look.shards), groups)
            if look.replacement is not None:
                groups[-1] = to_heads.replaced(groups[-1], look.replacement, seen.places)
            return groups

        return groups_of


def gather_tokens(x_RxLxD: Array, picked_RxM: Array) -> Array:
    """(R, M, D): some tokens of each row."""
    return jnp.take_along_axis(x_RxLxD, picked_RxM[..., None], axis=1)
