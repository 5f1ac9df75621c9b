"""Text encoder, fusion encoder and MLM head: one BERT (Devlin et al. 2019) cut in two (ALBEF code, models/xbert.py).

The first layers read text alone; the others also attend to the image tokens. Post-norm, exact GELU, no pooler.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.models.attention import Attention
from nas_jax.models.dropout import Dropout
from nas_jax.models.remat import rematerialised
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import BATCH, pin, pin_rows
from nas_jax.typing import Array

LAYER_NORM_EPS = 1e-12


def kernel_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Gaussian, for kernels and embeddings alike."""
    return nn.initializers.normal(config.init_std)


class BertLayer(nn.Module):
    """Self-attention, cross-attention when image tokens are given, feed-forward; each with a post-norm residual."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BxLxD: Array,
        mask_BxL: Array,
        image_tokens_BxTxD: Array | None = None,
        seeds_B: Array | None = None,
    ) -> Array:
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)

        def add_and_norm(name: str, residual: Array, update: Array) -> Array:
            update = Dropout(config.dropout)(update, seeds_B)
            return pin_rows(nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name=name)(residual + update))

        attention = Attention(config.heads, config.dropout, dtype, init, name="attention")
        x_BxLxD = add_and_norm("attention_norm", x_BxLxD, attention(x_BxLxD, key_mask_BxT=mask_BxL, seeds_B=seeds_B))
        if image_tokens_BxTxD is not None:
            cross = Attention(config.heads, config.dropout, dtype, init, name="cross_attention")
            x_BxLxD = add_and_norm("cross_attention_norm", x_BxLxD, cross(x_BxLxD, image_tokens_BxTxD, seeds_B=seeds_B))
        hidden = nn.Dense(config.mlp_ratio * config.dim, dtype=dtype, kernel_init=init, name="mlp_in")(x_BxLxD)
        hidden = pin(nn.gelu(hidden, approximate=False), BATCH, None, "tensor")
        update = nn.Dense(config.dim, dtype=dtype, kernel_init=init, name="mlp_out")(hidden)
        return add_and_norm("mlp_norm", x_BxLxD, update)


class TextEncoder(nn.Module):
    """Embeddings and the text-only layers."""

    config: ModelConfig

    def setup(self):
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, config.dim, dtype=dtype, embedding_init=init)

        self.word_embedding = table(config.vocab_size)
        self.position_embedding = table(config.max_text_length)
        self.type_embedding = table(2)
        self.embedding_norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype)
        self.embedding_dropout = Dropout(config.dropout)
        self.layer = [rematerialised(BertLayer, config.remat)(config) for _ in range(config.text_layers)]

    def __call__(self, token_ids_BxL: Array, token_mask_BxL: Array, seeds_B: Array | None = None) -> Array:
        """Token ids -> text tokens (B, L, D), CLS first."""
        # Whole on every device: rows looked up in a table split by width would have to be put together again.
        words_VxD = pin(self.word_embedding.embedding.astype(self.word_embedding.dtype), None, None)
        x_BxLxD = (
            pin_rows(jnp.take(words_VxD, token_ids_BxL, axis=0))
            + self.position_embedding(jnp.arange(token_ids_BxL.shape[1]))[None]
            + self.type_embedding(jnp.zeros((1, 1), jnp.int32))
        )
        x_BxLxD = pin_rows(self.embedding_dropout(self.embedding_norm(x_BxLxD), seeds_B))
        for layer in self.layer:
            x_BxLxD = layer(x_BxLxD, token_mask_BxL, None, seeds_B)
        return x_BxLxD

    def word_table(self) -> Array:
        """Word embeddings (V, D), to which the MLM heads are tied."""
        return self.word_embedding.embedding


class FusionEncoder(nn.Module):
    """Layers that read the text tokens and attend to the image tokens."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        image_tokens_RxTxD: Array,
        seeds_R: Array | None = None,
    ) -> Array:
        """Fused tokens (R, L, D); position 0 is what the ITM head reads."""
        layer_class = rematerialised(BertLayer, self.config.remat)
        for layer in range(self.config.fusion_layers):
            text_tokens_RxLxD = layer_class(self.config, name=f"layer_{layer}")(
                text_tokens_RxLxD, token_mask_RxL, image_tokens_RxTxD, seeds_R
            )
        return text_tokens_RxLxD


class MlmHead(nn.Module):
    """BERT's prediction head: dense, GELU, LayerNorm, and a decoder tied to the word embeddings."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BxMxD: Array, word_table_VxD: Array) -> Array:
        """Logits (B, M, V) in float32."""
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)
        hidden = nn.Dense(config.dim, dtype=dtype, kernel_init=init, name="transform")(tokens_BxMxD)
        hidden = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="norm")(nn.gelu(hidden, approximate=False))
        bias_V = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
        logits_BxMxV = jnp.einsum("bmd,vd->bmv", hidden, word_table_VxD.astype(dtype))
        return logits_BxMxV.astype(jnp.float32) + bias_V
