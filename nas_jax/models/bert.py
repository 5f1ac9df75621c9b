"""Text encoder, fusion encoder and MLM head: one BERT (Devlin et al. 2019) cut in two (ALBEF code,
models/xbert.py).

The first layers read text alone; the others also attend to the image tokens. Post-norm, exact GELU,
no pooler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.models.attention import CrossAttention, SelfAttention, gather_tokens
from nas_jax.models.dropout import dropout, layer_seeds, token_seeds
from nas_jax.models.layers import DenseWeights, gelu, mlp, rematerialised, run_layers
from nas_jax.models.pictures import Pictures, cls_apart, looks_of
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import pin, pin_rows
from nas_jax.typing import Array

LAYER_NORM_EPS = 1e-12


def kernel_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Gaussian, for kernels and embeddings alike."""
    return nn.initializers.normal(config.init_std)


class BertLayer(nn.Module):
    """Self-attention, cross-attention when pictures are given, feed-forward; each with a post-norm
    residual.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_RxLxD: Array,
        layer: Array | int,
        mask_RxL: Array,
        pictures: tuple[Pictures, ...] | None = None,
        seeds_RxL: Array | None = None,
        picked_RxM: Array | None = None,
    ) -> Array:
        """Text tokens (R, L, D), or (R, M, D) where only those at the positions `picked` are
        wanted.

        layer: its number in BERT, for the dropout. seeds: of the dropout, one a token; None for
        evaluation.
        """
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)
        seeds_RxL = layer_seeds(seeds_RxL, layer)
        if seeds_RxL is not None and picked_RxM is not None:
            seeds_RxL = jnp.take_along_axis(seeds_RxL, picked_RxM, axis=1)
        heads = (config.heads, config.dropout, dtype, init, config.attention)

        def add_and_norm(name: str, residual: Array, update: Array) -> Array:
            seeds = None if seeds_RxL is None else seeds_RxL[..., None]
            update = dropout(update, config.dropout, seeds, name, (2,))
            return pin_rows(nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name=name)(residual + update))

        (update,) = SelfAttention(*heads, name="attention")(
            [x_RxLxD], mask_RxL, seeds_RxL, picked_RxM
        )
        residual = x_RxLxD if picked_RxM is None else gather_tokens(x_RxLxD, picked_RxM)
        x_RxLxD = add_and_norm("attention_norm", residual, update)
        if pictures is not None:
            cross = CrossAttention(*heads, name="cross_attention")
            x_RxLxD = add_and_norm(
                "cross_attention_norm", x_RxLxD, cross(x_RxLxD, pictures, seeds_RxL)
            )
        mlp_in = DenseWeights(config.mlp_ratio * config.dim, init, name="mlp_in")(config.dim)
        mlp_out = DenseWeights(config.dim, init, name="mlp_out")(config.mlp_ratio * config.dim)
        return add_and_norm("mlp_norm", x_RxLxD, mlp(x_RxLxD, mlp_in, mlp_out, dtype))


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
        self.layer = [
            rematerialised(BertLayer, config.remat)(config) for _ in range(config.text_layers)
        ]

    def __call__(
        self,
        token_ids_RxL: Array,
        token_mask_RxL: Array,
        seeds_R: Array | None = None,
    ) -> Array:
        """Token ids -> text tokens (R, L, D), CLS first."""
        config, seeds_RxL = self.config, token_seeds(seeds_R, token_ids_RxL.shape[1])
        # Whole on every device: rows looked up in a table split by width would have to be put
        # together again.
        words_VxD = pin(self.word_embedding.embedding.astype(self.word_embedding.dtype), None, None)
        x_RxLxD = (
            pin_rows(jnp.take(words_VxD, token_ids_RxL, axis=0))
            + self.position_embedding(jnp.arange(token_ids_RxL.shape[1]))[None]
            + self.type_embedding(jnp.zeros((1, 1), jnp.int32))
        )
        seeds = None if seeds_RxL is None else seeds_RxL[..., None]
        x_RxLxD = pin_rows(
            dropout(self.embedding_norm(x_RxLxD), config.dropout, seeds, "embedding", (2,))
        )
        return run_layers(
            self.layer, config.scan_layers, 0, x_RxLxD, token_mask_RxL, None, seeds_RxL
        )

    def word_table(self) -> Array:
        """Word embeddings (V, D), to which the MLM heads are tied."""
        return self.word_embedding.embedding


class Wanted(NamedTuple):
    """Some of the texts beside each picture, by their numbers, and the positions of theirs that are
    read.
    """

    texts: tuple[int, ...]
    positions_BxPxM: Array


class FusionEncoder(nn.Module):
    """Layers that read the text tokens and attend to the image tokens."""

    config: ModelConfig

    def setup(self):
        layer = rematerialised(BertLayer, self.config.remat)
        self.layer = [layer(self.config) for _ in range(self.config.fusion_layers)]

    def __call__(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        pictures: tuple[Pictures, ...],
        seeds_R: Array | None = None,
        wanted: Sequence[Wanted] | None = None,
    ) -> Array | list[Array]:
        """Fused tokens (R, L, D) of R rows, those beside a picture together (`models/pictures.py`).

        wanted: (B, P, M, D) for each of several groups of texts instead; the last layer computes
        those tokens only.
        """
        config, number = self.config, self.config.text_layers
        seeds_RxL = token_seeds(seeds_R, text_tokens_RxLxD.shape[1])
        if config.cls_apart:
            pictures = cls_apart(pictures)
        layers = self.layer if wanted is None else self.layer[:-1]
        x_RxLxD = run_layers(
            layers,
            config.scan_layers,
            number,
            text_tokens_RxLxD,
            token_mask_RxL,
            pictures,
            seeds_RxL,
        )
        if wanted is None:
            return x_RxLxD
        batch, last = pictures[0].tokens[0].shape[0], number + len(layers)

        def last_layer(group: Wanted) -> Array:
            def rows_of(x: Array | None) -> Array | None:
                if x is None:
                    return None
                by_picture = x.reshape(batch, -1, *x.shape[1:])
                if len(group.texts) < by_picture.shape[1]:
                    by_picture = jnp.stack([by_picture[:, text] for text in group.texts], 1)
                return pin_rows(by_picture.reshape(-1, *x.shape[1:]))

            positions_RxM = group.positions_BxPxM.reshape(-1, group.positions_BxPxM.shape[-1])
            seen = looks_of(pictures, group.texts)
            x_RxMxD = self.layer[-1](
                rows_of(x_RxLxD),
                last,
                rows_of(token_mask_RxL),
                seen,
                rows_of(seeds_RxL),
                positions_RxM,
            )
            return pin_rows(x_RxMxD.reshape(batch, len(group.texts), *x_RxMxD.shape[1:]))

        return [last_layer(group) for group in wanted]


class MlmHead(nn.Module):
    """BERT's prediction head: dense, GELU, LayerNorm, and a decoder tied to the word embeddings."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BxMxD: Array, word_table_VxD: Array) -> Array:
        """Logits (B, M, V) in float32."""
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)
        hidden = nn.Dense(config.dim, dtype=dtype, kernel_init=init, name="transform")(tokens_BxMxD)
        hidden = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="norm")(gelu(hidden))
        bias_V = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
        logits_BxMxV = jnp.einsum("bmd,vd->bmv", hidden, word_table_VxD.astype(dtype))
        return logits_BxMxV.astype(jnp.float32) + bias_V
