"""Text encoder, fusion encoder and MLM head: one BERT (Devlin et al. 2019) cut in two (ALBEF code,
models/xbert.py).

The first layers read text alone; the others also attend to the image tokens. Post-norm, exact GELU,
no pooler.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.kernels.dropout import dropout, layer_seeds, token_seeds
from nas_jax.kernels.gelu import gelu
from nas_jax.kernels.image_tokens import ImageTokens, cls_apart
from nas_jax.kernels.last_layer import Readout, TextRows, read_last_layer
from nas_jax.models.attention import CrossAttention, SelfAttention
from nas_jax.models.layers import Dense, feed_forward, rematerialised, run_layers
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import gather_positions, pin, pin_rows
from nas_jax.typing import Array

LAYER_NORM_EPS = 1e-12


def kernel_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Gaussian, for kernels and embeddings alike."""
    return nn.initializers.normal(config.init_std)


class BertLayer(nn.Module):
    """Self-attention, cross-attention when image tokens are given, feed-forward; each with a
    post-norm residual.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_RxLxD: Array,
        layer: Array | int,
        rows: TextRows,
        image: tuple[ImageTokens, ...] | None = None,
        offset_RxHxLxT: Array | None = None,
    ) -> Array | tuple[Array, Array]:
        """Text tokens (R, L, D), or (R, M, D) where the rows tell positions.

        layer: its number in BERT, for the dropout. offset: is added to the probabilities of the
        cross-attention, which are then returned too (`models/attention_maps.py`).
        """
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)
        positions_RxM, seeds_RxL = rows.positions_RxM, layer_seeds(rows.seeds_RxL, layer)
        if seeds_RxL is not None and positions_RxM is not None:
            seeds_RxL = jnp.take_along_axis(seeds_RxL, positions_RxM, axis=1)
        heads = (config.heads, config.dropout, dtype, init, config.attention)

        def add_and_norm(name: str, residual: Array, update: Array) -> Array:
            seeds = None if seeds_RxL is None else seeds_RxL[..., None]
            update = dropout(update, config.dropout, seeds, name, (2,))
            return pin_rows(nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name=name)(residual + update))

        (update,) = SelfAttention(*heads, name="attention")(
            [x_RxLxD], rows.mask_RxL, seeds_RxL, positions_RxM
        )
        residual = x_RxLxD if positions_RxM is None else gather_positions(x_RxLxD, positions_RxM)
        x_RxLxD = add_and_norm("attention_norm", residual, update)
        probabilities_RxHxLxT = None
        if image is not None:
            cross = CrossAttention(*heads, name="cross_attention")
            found = cross(x_RxLxD, image, seeds_RxL, offset_RxHxLxT)
            update, probabilities_RxHxLxT = found if isinstance(found, tuple) else (found, None)
            x_RxLxD = add_and_norm("cross_attention_norm", x_RxLxD, update)
        mlp_in = Dense(config.mlp_ratio * config.dim, dtype, init, name="mlp_in")
        mlp_out = Dense(config.dim, dtype, init, name="mlp_out")
        x_RxLxD = add_and_norm("mlp_norm", x_RxLxD, feed_forward(x_RxLxD, mlp_in, mlp_out))
        return x_RxLxD if probabilities_RxHxLxT is None else (x_RxLxD, probabilities_RxHxLxT)


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
        rows = TextRows(token_mask_RxL, seeds_RxL)
        return run_layers(self.layer, config.scan_layers, 0, x_RxLxD, rows)

    def word_table(self) -> Array:
        """Word embeddings (V, D), to which the MLM heads are tied."""
        return self.word_embedding.embedding


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
        image: tuple[ImageTokens, ...],
        seeds_R: Array | None = None,
        readouts: Sequence[Readout] | None = None,
    ) -> Array | list[Array]:
        """Fused tokens (R, L, D) of R texts, those beside an image together.

        readouts: (B, P, M, D) of each of them instead; the last layer computes those tokens only.
        """
        config, first = self.config, self.config.text_layers
        rows = TextRows(token_mask_RxL, token_seeds(seeds_R, text_tokens_RxLxD.shape[1]))
        if config.cls_apart:
            image = cls_apart(image)
        layers = self.layer if readouts is None else self.layer[:-1]
        x_RxLxD = run_layers(layers, config.scan_layers, first, text_tokens_RxLxD, rows, image)
        if readouts is None:
            return x_RxLxD

        def last_layer(x_RxLxD: Array, rows: TextRows, image: tuple[ImageTokens, ...]) -> Array:
            return self.layer[-1](x_RxLxD, first + len(layers), rows, image)

        return read_last_layer(last_layer, x_RxLxD, rows, image, readouts)

    def with_map(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        image_tokens_RxTxD: Array,
        layer: int,
        offset_RxHxLxT: Array,
    ) -> tuple[Array, Array]:
        """Fused tokens (R, L, D) of texts, each with image tokens of its own, and the probabilities
        (R, H, L, T) with which one layer attends to these; without dropout.

        layer: its number among these layers. offset: zeros, added to the probabilities; the
        gradient of any score with respect to it is that of the probabilities.
        """
        rows, image = TextRows(token_mask_RxL), (ImageTokens((image_tokens_RxTxD,)),)
        layers, maps, x_RxLxD = range(len(self.layer)), [], text_tokens_RxLxD
        for number in layers:
            inputs = x_RxLxD, self.config.text_layers + number, rows, image
            if number == layers[layer]:
                x_RxLxD, map_RxHxLxT = self.layer[number](*inputs, offset_RxHxLxT)
                maps.append(map_RxHxLxT)
            else:
                x_RxLxD = self.layer[number](*inputs)
        return x_RxLxD, maps[0]


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
