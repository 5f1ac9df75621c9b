"""A BERT that writes: causal self-attention, and cross-attention to the states of a question (ALBEF
code, models/model_vqa.py and xbert.py).

Its layers have the names and shapes of the fusion encoder's, from which they start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.kernels.attention import MASKED
from nas_jax.kernels.dropout import dropout, layer_seeds, token_seeds
from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.models.attention import FromHeads, ToHeads
from nas_jax.models.bert import LAYER_NORM_EPS, MlmHead, kernel_init
from nas_jax.models.layers import Dense, feed_forward, rematerialised
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import pin_rows
from nas_jax.tasks.finetuned import JointNetwork
from nas_jax.typing import Array


class MaskedAttention(nn.Module):
    """Attention of some tokens to others, with a mask for each pair of them.

    own: to the same tokens, with one kernel ``qkv``; else ``query`` and ``key_value``.
    """

    config: ModelConfig
    own: bool

    @nn.compact
    def __call__(
        self, x_RxLxD: Array, seen_RxTxD: Array, mask_RxLxT: Array, seeds_RxL: Array | None
    ) -> Array:
        """(R, L, D). The mask broadcasts to (R, L, T)."""
        config, dim, dtype = self.config, x_RxLxD.shape[-1], jnp.dtype(self.config.dtype)
        given = config.heads, dtype, kernel_init(config)

        def heads(name: str, parts: int, tokens: Array, first: int) -> list[Array]:
            weights = ToHeads(parts, *given, name=name)(dim, False)
            kernel, bias = weights.kernel_DxPxHxF[:, first:], weights.bias_PxHxF[first:]
            found = jnp.einsum("rtd,dphf->prthf", tokens.astype(dtype), kernel)
            return list(found + bias[:, None, None])

        if self.own:
            query, key, value = heads("qkv", 3, x_RxLxD, 0)
        else:
            (query,), (key, value) = (
                heads("query", 1, x_RxLxD, 0),
                heads("key_value", 2, seen_RxTxD, 0),
            )
        logits = jnp.einsum("rlhf,rthf->rhlt", query, key).astype(jnp.float32)
        logits = jnp.where(mask_RxLxT[:, None], logits * query.shape[-1] ** -0.5, MASKED)
        seeds = None if seeds_RxL is None else seeds_RxL[:, None, :, None]
        weights = dropout(jax.nn.softmax(logits), config.dropout, seeds, self.name or "", (1, 3))
        mixed_RxLxHxF = jnp.einsum("rhlt,rthf->rlhf", weights.astype(dtype), value)
        return FromHeads(dtype, kernel_init(config), name="out")(mixed_RxLxHxF)


class DecoderLayer(nn.Module):
    """As `models.bert.BertLayer`, but each token sees those before it alone."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BxKxAxD: Array,
        mask_BxKxA: Array,
        states: tuple[Array, Array],
        seeds_BxKxA: Array | None,
    ) -> Array:
        """Tokens of K answers to each question. states: of the questions (B, L, D), and mask."""
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)
        batch, answers, length, dim = x_BxKxAxD.shape
        states_BxLxD, states_mask_BxL = states

        def add_and_norm(name: str, residual: Array, update: Array) -> Array:
            seeds = None if seeds_BxKxA is None else seeds_BxKxA[..., None]
            update = dropout(update.reshape(x_BxKxAxD.shape), config.dropout, seeds, name, (3,))
            norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name=name)
            return pin_rows(norm(residual + update))

        def by(rows: tuple[int, ...], x: Array) -> Array:
            return x.reshape(*rows, *x.shape[3:])

        def seeds_by(rows: tuple[int, ...]) -> Array | None:
            return None if seeds_BxKxA is None else by(rows, seeds_BxKxA)

        alone, together = (batch * answers, length), (batch, answers * length)
        before_AxA = jnp.tril(jnp.ones((length, length), bool))
        seen_RxAxA = by(alone, mask_BxKxA)[:, None] & before_AxA
        x = by(alone, x_BxKxAxD)
        update = MaskedAttention(config, True, name="attention")(x, x, seen_RxAxA, seeds_by(alone))
        x_BxKxAxD = add_and_norm("attention_norm", x_BxKxAxD, update)
        # all answers to a question share its keys and values
        update = MaskedAttention(config, False, name="cross_attention")(
            by(together, x_BxKxAxD),
            states_BxLxD,
            states_mask_BxL[:, None],
            seeds_by(together),
        )
        x_BxKxAxD = add_and_norm("cross_attention_norm", x_BxKxAxD, update)
        mlp_in = Dense(config.mlp_ratio * dim, dtype, init, name="mlp_in")
        mlp_out = Dense(dim, dtype, init, name="mlp_out")
        update = feed_forward(by(together, x_BxKxAxD), mlp_in, mlp_out)
        return add_and_norm("mlp_norm", x_BxKxAxD, update)


class AnswerDecoder(nn.Module):
    """Embeddings, as many layers as the fusion encoder has, and BERT's head of words."""

    config: ModelConfig

    def setup(self):
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, config.dim, dtype=dtype, embedding_init=init)

        self.word_embedding = table(config.vocab_size)
        self.position_embedding = table(config.max_text_length)
        self.type_embedding = table(2)
        self.embedding_norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype)
        layer = rematerialised(DecoderLayer, config.remat)
        self.layer = [layer(config) for _ in range(config.fusion_layers)]
        self.mlm_head = MlmHead(config)

    def __call__(
        self,
        ids_BxKxA: Array,
        mask_BxKxA: Array,
        states: tuple[Array, Array],
        seeds_BxK: Array | None = None,
    ) -> Array:
        """Logits (B, K, A, V), float32, of the word after each token of K answers to a question.

        states: tokens (B, L, D) and mask (B, L) of the questions. seeds: of the dropout.
        """
        config, (batch, answers, length) = self.config, ids_BxKxA.shape
        seeds_BxKxA = token_seeds(None if seeds_BxK is None else seeds_BxK.reshape(-1), length)
        if seeds_BxKxA is not None:
            seeds_BxKxA = seeds_BxKxA.reshape(ids_BxKxA.shape)
        x_BxKxAxD = (
            self.word_embedding(ids_BxKxA)
            + self.position_embedding(jnp.arange(length))
            + self.type_embedding(jnp.zeros((1,), jnp.int32))
        )
        seeds = None if seeds_BxKxA is None else seeds_BxKxA[..., None]
        x_BxKxAxD = dropout(
            self.embedding_norm(x_BxKxAxD), config.dropout, seeds, "embedding", (3,)
        )
        for number, layer in enumerate(self.layer):
            its_seeds = layer_seeds(seeds_BxKxA, number)
            x_BxKxAxD = layer(x_BxKxAxD, mask_BxKxA, states, its_seeds)
        tokens_BxMxD = x_BxKxAxD.reshape(batch, answers * length, config.dim)
        logits_BxMxV = self.mlm_head(tokens_BxMxD, self.word_embedding.embedding)
        return logits_BxMxV.reshape(batch, answers, length, -1)


class VqaNetwork(JointNetwork):
    """The encoders with an answer decoder."""

    def setup(self):
        super().setup()
        self.answer_decoder = AnswerDecoder(self.config)

    def read(
        self, image_BxHxWx3: Array, ids_BxL: Array, mask_BxL: Array, seeds: Mapping[str, Array]
    ) -> Array:
        """States of the questions beside their pictures, (B, L, D)."""
        tokens_BxLxD = self.text_encoder(ids_BxL, mask_BxL, seeds.get("text"))
        image = (ImageTokens((self.encode_image(image_BxHxWx3),)),)
        return self.fusion_encoder(tokens_BxLxD, mask_BxL, image, seeds.get("fusion"))

    def decode(self, *inputs: Any) -> Array:
        """See `AnswerDecoder`."""
        return self.answer_decoder(*inputs)

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        states_BxLxD = self.read(image_BxHxWx3, token_ids_BxL, token_mask_BxL, {})
        text = token_ids_BxL[:, None], token_mask_BxL[:, None]
        return self.decode(*text, (states_BxLxD, token_mask_BxL))
