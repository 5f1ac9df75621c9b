"""Multi-head attention, shared by the image encoder, the text encoder and the fusion encoder."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.models.dropout import Dropout
from nas_jax.parallel.mesh import BATCH, pin, pin_rows
from nas_jax.typing import Array

MASKED = -1e9  # added to logits of padding; finite, so that a row without any key stays finite too


class Attention(nn.Module):
    """Scaled dot-product attention with fused projections.

    Kernels: ``qkv`` (D, 3, H, F) for self-attention; ``query`` (D, 1, H, F) and ``key_value`` (D, 2, H, F) for
    cross-attention; ``out`` (H, F, D). F = D / H.
    """

    heads: int
    dropout: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self,
        x_BxLxD: Array,
        context_BxTxD: Array | None = None,
        key_mask_BxT: Array | None = None,
        seeds_B: Array | None = None,
    ) -> Array:
        """Attends from `x` to `context` (to itself when None), over the keys whose mask is True.

        seeds_B: uint32 seeds of the dropout, one a row; None for evaluation.
        """
        dim = x_BxLxD.shape[-1]

        def project(name: str, parts: int, inputs: Array) -> list[Array]:
            shape = (parts, self.heads, dim // self.heads)
            dense = nn.DenseGeneral(shape, dtype=self.dtype, kernel_init=self.kernel_init, name=name)
            projected = pin(dense(inputs), BATCH, None, None, "tensor", None)
            return [jnp.squeeze(part, 2) for part in jnp.split(projected, parts, axis=2)]

        if context_BxTxD is None:
            query_BxLxHxF, key_BxTxHxF, value_BxTxHxF = project("qkv", 3, x_BxLxD)
        else:
            (query_BxLxHxF,) = project("query", 1, x_BxLxD)
            key_BxTxHxF, value_BxTxHxF = project("key_value", 2, context_BxTxD)
        scale = (dim // self.heads) ** -0.5
        logits_BxHxLxT = jnp.einsum("blhf,bthf->bhlt", query_BxLxHxF * scale, key_BxTxHxF).astype(jnp.float32)
        if key_mask_BxT is not None:
            logits_BxHxLxT = jnp.where(key_mask_BxT[:, None, None, :], logits_BxHxLxT, MASKED)
        weights_BxHxLxT = jax.nn.softmax(logits_BxHxLxT).astype(self.dtype)
        weights_BxHxLxT = Dropout(self.dropout)(weights_BxHxLxT, seeds_B)
        mixed_BxLxHxF = jnp.einsum("bhlt,bthf->blhf", weights_BxHxLxT, value_BxTxHxF)
        mixed_BxLxHxF = pin(mixed_BxLxHxF, BATCH, None, "tensor", None)
        out = nn.DenseGeneral(dim, axis=(-2, -1), dtype=self.dtype, kernel_init=self.kernel_init, name="out")
        return pin_rows(out(mixed_BxLxHxF))
