"""Multi-head attention, shared by the image encoder, the text encoder and the fusion encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.models.dropout import dropout
from nas_jax.models.pictures import Pictures, Places, Replacement
from nas_jax.parallel.mesh import BATCH, pin, pin_rows, take_rows
from nas_jax.typing import Array

MASKED = -1e9  # added to logits of padding; finite, so that a row without any key stays finite too
IMPLEMENTATIONS = ("xla", "cudnn")


class KeyValue(NamedTuple):
    """Keys and values of some tokens."""

    key_BxTxHxF: Array
    value_BxTxHxF: Array


class HeadProjection(nn.Module):
    """Several projections to heads in one matrix: kernel (D, P, H, F), bias (P, H, F)."""

    parts: int
    heads: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def weights(self, dim: int) -> tuple[Array, Array]:
        """Kernel and bias in the dtype of the matmuls."""
        shape = (self.parts, self.heads, dim // self.heads)
        flat = self.param("kernel", self._init, (dim, *shape))
        return flat.astype(self.dtype), self.param("bias", nn.initializers.zeros, shape).astype(self.dtype)

    def _init(self, key: Array, shape: tuple[int, ...]) -> Array:
        return self.kernel_init(key, (shape[0], shape[1] * shape[2] * shape[3]), jnp.float32).reshape(shape)

    def __call__(self, x_BxTxD: Array, first: int = 0, last: int | None = None) -> list[Array]:
        """Parts `first` to `last` of the projections, each (B, T, H, F)."""
        kernel, bias = self.weights(x_BxTxD.shape[-1])
        projected = _project(x_BxTxD.astype(self.dtype), kernel[:, first:last]) + bias[first:last]
        return _parts(projected)

    def replaced(self, keys: KeyValue, replacement: Replacement, places: Places) -> KeyValue:
        """`keys` of pictures (B, N + 1, H, F) with those of the replaced tokens; see `Replacement`."""
        kernel, bias = self.weights(places.place_NxD.shape[-1])

        def project(x: Array) -> Array:
            return jnp.einsum("...d,dphf->...phf", x.astype(self.dtype), kernel, preferred_element_type=jnp.float32)

        def with_cls(x: Array, axis: int) -> Array:
            return jnp.pad(x, [(int(number == axis), 0) for number in range(x.ndim)])

        base_BxPxHxF, place_TxPxHxF = project(replacement.base_BxD), with_cls(project(places.place_NxD), 0)
        bias_PxHxF = project(places.bias_D) + bias.astype(jnp.float32)
        scale_BxT, where_BxT = with_cls(replacement.scale_BxN, 1), with_cls(replacement.where_BxN, 1)

        def part(number: int, kept_BxTxHxF: Array) -> Array:
            new_BxTxHxF = base_BxPxHxF[:, None, number] + place_TxPxHxF[None, :, number]
            new_BxTxHxF = new_BxTxHxF * scale_BxT[..., None, None] + bias_PxHxF[number]
            return jnp.where(where_BxT[..., None, None], new_BxTxHxF.astype(kept_BxTxHxF.dtype), kept_BxTxHxF)

        return KeyValue(part(0, keys.key_BxTxHxF), part(1, keys.value_BxTxHxF))

    def twice(self, x_BxTxD: Array) -> tuple[list[Array], list[Array]]:
        """The projections, and again without a gradient to `x`: computed once."""
        kernel, bias = self.weights(x_BxTxD.shape[-1])
        projected, detached = _project_twice(x_BxTxD.astype(self.dtype), kernel)
        return _parts(projected + bias), _parts(detached + bias)


def _parts(projected_BxTxPxHxF: Array) -> list[Array]:
    projected = pin(projected_BxTxPxHxF, BATCH, None, None, "tensor", None)
    return [projected[:, :, part] for part in range(projected.shape[2])]


def _project(x: Array, kernel: Array) -> Array:
    return jnp.einsum("btd,dphf->btphf", x, kernel)


@jax.custom_vjp
def _project_twice(x: Array, kernel: Array) -> tuple[Array, Array]:
    projected = _project(x, kernel)
    return projected, projected


def _project_twice_forward(x: Array, kernel: Array):
    return _project_twice(x, kernel), (x, kernel)


def _project_twice_backward(saved: tuple[Array, Array], grads: tuple[Array, Array]):
    x, kernel = saved
    grad_x = jnp.einsum("btphf,dphf->btd", grads[0], kernel)
    return grad_x, jnp.einsum("btd,btphf->dphf", x, grads[0] + grads[1])


_project_twice.defvjp(_project_twice_forward, _project_twice_backward)


def attend(
    query_BxLxHxF: Array,
    groups: Sequence[KeyValue],
    key_mask_BxT: Array | None = None,
    drop: Callable[[Array], Array] | None = None,
    implementation: str = "xla",
) -> Array:
    """Attention (B, L, H, F) over the keys of all groups together; the same as over their concatenation.

    key_mask: True on real keys. drop: dropout of the weights (B, H, L, T). Both with one group only.
    """
    dtype, scale = query_BxLxHxF.dtype, query_BxLxHxF.shape[-1] ** -0.5
    if implementation == "cudnn" and len(groups) == 1 and drop is None:
        lengths_B = None if key_mask_BxT is None else key_mask_BxT.sum(-1, dtype=jnp.int32)
        return jax.nn.dot_product_attention(
            query_BxLxHxF, *groups[0], scale=scale, key_value_seq_lengths=lengths_B, implementation="cudnn"
        )
    logits = [
        jnp.einsum("blhf,bthf->bhlt", query_BxLxHxF * scale, group.key_BxTxHxF).astype(jnp.float32) for group in groups
    ]
    if key_mask_BxT is not None:
        logits = [jnp.where(key_mask_BxT[:, None, None, :], logits[0], MASKED)]
    mixed = 0
    for weights_BxHxLxT, group in zip(_softmax(logits), groups, strict=True):
        weights_BxHxLxT = weights_BxHxLxT.astype(dtype)
        if drop is not None:
            weights_BxHxLxT = drop(weights_BxHxLxT)
        mixed = mixed + jnp.einsum("bhlt,bthf->blhf", weights_BxHxLxT, group.value_BxTxHxF)
    return pin(mixed, BATCH, None, "tensor", None)


def _softmax(logits: list[Array]) -> list[Array]:
    """The softmax over the last axes of all arrays together."""
    if len(logits) == 1:
        return [jax.nn.softmax(logits[0])]
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack([x.max(-1) for x in logits]), axis=0))[..., None]
    weights = [jnp.exp(x - largest) for x in logits]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    return [x / total for x in weights]


class _Heads(nn.Module):
    """What both kinds of attention have. F = D / H."""

    heads: int
    dropout: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer
    implementation: str = "xla"

    def _project(self, name: str, parts: int) -> HeadProjection:
        return HeadProjection(parts, self.heads, self.dtype, self.kernel_init, name=name)

    def _out(self, mixed_RxLxHxF: Array) -> Array:
        dim = mixed_RxLxHxF.shape[-2] * mixed_RxLxHxF.shape[-1]
        return nn.DenseGeneral(dim, axis=(-2, -1), dtype=self.dtype, kernel_init=self.kernel_init, name="out")

    def _drop(self, seeds_RxL: Array | None) -> Callable[[Array], Array] | None:
        if seeds_RxL is None or self.dropout == 0:
            return None
        return lambda weights_RxHxLxT: dropout(
            weights_RxHxLxT, self.dropout, seeds_RxL[:, None, :, None], self.name, (1, 3)
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

        seeds: of the dropout, one for each query; None for evaluation. picked: only these tokens ask; with one stream.
        """
        qkv = self._project("qkv", 3)
        if picked_RxM is None:
            projected = [qkv(x) for x in streams]
        else:
            projected = [[*qkv(gather_tokens(streams[0], picked_RxM), 0, 1), *qkv(streams[0], 1, 3)]]
        groups = [KeyValue(*one[1:]) for one in projected]
        mixed = [attend(one[0], groups, key_mask_RxL, self._drop(seeds_RxL), self.implementation) for one in projected]
        out = self._out(mixed[0])
        return [pin_rows(out(one)) for one in mixed]


class CrossAttention(_Heads):
    """Attention of texts to pictures. Kernels: ``query`` (D, 1, H, F), ``key_value`` (D, 2, H, F), ``out``."""

    @nn.compact
    def __call__(self, x_RxLxD: Array, pictures: tuple[Pictures, ...], seeds_RxL: Array | None = None) -> Array:
        """R rows, those of a picture together, in the order of the looks; see `models/pictures.py`."""
        query, key_value = self._project("query", 1), self._project("key_value", 2)
        batch = pictures[0].tokens_BxTxD.shape[0]

        def by_picture(x: Array) -> Array:
            return pin_rows(x.reshape(batch, -1, *x.shape[1:]))

        query_BxPxLxHxF = by_picture(query(x_RxLxD)[0])
        seeds_BxPxL = None if seeds_RxL is None else by_picture(seeds_RxL)
        mixed, row = [], 0
        for seen in pictures:
            if any(look.detached for look in seen.looks):
                plain, detached = (KeyValue(*both) for both in key_value.twice(seen.tokens_BxTxD))
            else:
                plain = detached = KeyValue(*key_value(seen.tokens_BxTxD))
            for look in seen.looks:
                rows = slice(row, row + look.rows)

                def together(x: Array, rows: slice = rows) -> Array:
                    return x[:, rows].reshape(batch, -1, *x.shape[3:])

                drop = None if seeds_BxPxL is None else self._drop(together(seeds_BxPxL))
                keys = detached if look.detached else plain
                if look.index_B is not None:
                    keys = KeyValue(*(take_rows(x, look.index_B, look.shards) for x in keys))
                if look.replacement is not None:
                    keys = key_value.replaced(keys, look.replacement, seen.places)
                mixed_BxQxHxF = attend(together(query_BxPxLxHxF), [keys], None, drop, self.implementation)
                mixed.append(mixed_BxQxHxF.reshape(batch, look.rows, *query_BxPxLxHxF.shape[2:]))
                row += look.rows
        mixed_BxPxLxHxF = jnp.concatenate(mixed, axis=1) if len(mixed) > 1 else mixed[0]
        mixed_RxLxHxF = pin(
            mixed_BxPxLxHxF.reshape(query_BxPxLxHxF.shape[0] * query_BxPxLxHxF.shape[1], *query_BxPxLxHxF.shape[2:]),
            BATCH,
            None,
            "tensor",
            None,
        )
        return pin_rows(self._out(mixed_RxLxHxF)(mixed_RxLxHxF))


def gather_tokens(x_RxLxD: Array, picked_RxM: Array) -> Array:
    """(R, M, D): some tokens of each row."""
    return jnp.take_along_axis(x_RxLxD, picked_RxM[..., None], axis=1)
