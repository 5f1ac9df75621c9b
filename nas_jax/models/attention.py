"""Multi-head attention, shared by the image encoder, the text encoder and the fusion encoder.

Of each head it is softmax(q k' / sqrt(F)) v, where queries, keys and values are projections of
tokens. A last projection reads all heads together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.kernels.attention import Drop, attend, softmax_attention
from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.kernels.matmuls import matmul
from nas_jax.kernels.projections import HeadWeights, key_value, keys_for, query
from nas_jax.kernels.shared_keys import CrossWeights, cross_attention
from nas_jax.parallel.mesh import gather_positions, pin_rows
from nas_jax.typing import Array

IMPLEMENTATIONS = ("xla", "cudnn")


class ToHeads(nn.Module):
    """Several projections to heads: kernel (D, P, H, F), bias (P, H, F)."""

    parts: int
    heads: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, dim: int, cudnn: bool) -> HeadWeights:
        """The weights for tokens of D numbers."""
        shape = (self.parts, self.heads, dim // self.heads)
        kernel = self.param("kernel", _init_flat(self.kernel_init, inputs=1), (dim, *shape))
        bias = self.param("bias", nn.initializers.zeros, shape)
        return HeadWeights(kernel.astype(self.dtype), bias.astype(self.dtype), cudnn)


class FromHeads(nn.Module):
    """The projection of all heads together: kernel (H, F, D), bias (D,)."""

    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x_RxLxHxF: Array) -> Array:
        """(R, L, H, F) -> (R, L, D)."""
        heads, size = x_RxLxHxF.shape[-2:]
        init, dim = _init_flat(self.kernel_init, inputs=2), heads * size
        kernel_HxFxD = self.param("kernel", init, (heads, size, dim)).astype(self.dtype)
        bias_D = self.param("bias", nn.initializers.zeros, (dim,)).astype(self.dtype)
        return pin_rows(matmul(x_RxLxHxF.astype(self.dtype), kernel_HxFxD, 2) + bias_D)


def _init_flat(
    kernel_init: nn.initializers.Initializer, inputs: int
) -> nn.initializers.Initializer:
    """Draws a kernel as one matrix, whose rows are its first `inputs` axes."""

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        return kernel_init(key, (rows, columns), jnp.float32).reshape(shape)

    return init


class _Heads(nn.Module):
    """What both kinds of attention have. F = D / H."""

    heads: int
    dropout: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer
    implementation: str = "xla"

    def _weights(self, name: str, parts: int, dim: int) -> HeadWeights:
        projections = ToHeads(parts, self.heads, self.dtype, self.kernel_init, name=name)
        return projections(dim, self.implementation == "cudnn")

    def _out(self) -> FromHeads:
        return FromHeads(self.dtype, self.kernel_init, name="out")

    def _drop(self, seeds_RxL: Array | None) -> Drop | None:
        if seeds_RxL is None or self.dropout <= 0:
            return None
        return Drop(self.dropout, self.name or "", seeds_RxL)


class SelfAttention(_Heads):
    """Attention of tokens to each other. Kernels: ``qkv`` (D, 3, H, F), ``out`` (H, F, D)."""

    @nn.compact
    def __call__(
        self,
        streams: Sequence[Array],
        key_mask_RxL: Array | None = None,
        seeds_RxL: Array | None = None,
        positions_RxM: Array | None = None,
    ) -> list[Array]:
        """Each token attends to those of all streams, each (R, L, D), whose mask is True.

        seeds: of the dropout, one for each query; None for evaluation. positions: only the tokens
        there are queries; with one stream.
        """
        weights = self._weights("qkv", 3, streams[0].shape[-1])
        asking = streams if positions_RxM is None else [gather_positions(streams[0], positions_RxM)]
        count, drop, out = sum(x.shape[1] for x in asking), self._drop(seeds_RxL), self._out()
        queries = [query(x, weights) for x in asking]
        keys = [keys_for(count, x, weights) for x in streams]
        return [out(attend(query, keys, weights, key_mask_RxL, drop)) for query in queries]


class CrossAttention(_Heads):
    """Attention of texts to images.

    Kernels: ``query`` (D, 1, H, F), ``key_value`` (D, 2, H, F), ``out`` (H, F, D).
    """

    @nn.compact
    def __call__(
        self,
        x_RxLxD: Array,
        image: tuple[ImageTokens, ...],
        seeds_RxL: Array | None = None,
        offset_RxHxLxT: Array | None = None,
    ) -> Array | tuple[Array, Array]:
        """R texts, those of an image together, in the order of its groups.

        offset: added to the attention probabilities, which are then returned too; with one text
        beside each image.
        """
        dim, drop = x_RxLxD.shape[-1], self._drop(seeds_RxL)
        to_keys = self._weights("key_value", 2, dim)
        weights = CrossWeights(self._weights("query", 1, dim), to_keys, self._out())
        if offset_RxHxLxT is None:
            return cross_attention(x_RxLxD, image, weights, drop)
        key, value = key_value(image[0].tokens[0], to_keys)
        key, value = key + to_keys.bias_PxHxF[0], value + to_keys.bias_PxHxF[1]
        inputs = query(x_RxLxD, weights.query), key, value, None, drop, offset_RxHxLxT
        mixed_RxLxHxF, probabilities_RxHxLxT = softmax_attention(*inputs)
        return weights.out(mixed_RxLxHxF), probabilities_RxHxLxT
