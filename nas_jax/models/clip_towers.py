"""The two towers of CLIP and of SigLIP, as their published weights need them.

CLIP (Radford et al. 2021): pre-norm ViT and causal text encoder with quick GELU, which
is read at its last token. SigLIP (Zhai et al. 2023; big_vision): no [CLS], an attention head that
pools the patches, a text encoder that sees its padding and is read at the last position. Neither
has dropout. `models/towers.py` has the towers that the other methods share; these have the same
functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.models.attention import FromHeads, ToHeads
from nas_jax.models.bert import kernel_init
from nas_jax.models.layers import Dense, rematerialised, run_layers
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import IMAGE_MEAN, IMAGE_STD, normalise_image, unit
from nas_jax.models.vit import patchify
from nas_jax.parallel.mesh import BATCH, gather_positions, pin, pin_rows
from nas_jax.typing import Array

CLIP_EPS, SIGLIP_EPS = 1e-5, 1e-6  # of LayerNorm
HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and deviation of pixels


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


tanh_gelu = partial(jax.nn.gelu, approximate=True)


class TowerPart(nn.Module):
    """What all parts of a tower are told; D is the width of this tower."""

    config: ModelConfig
    dim: int
    heads: int
    activation: Callable[[Array], Array]
    eps: float

    @property
    def dtype(self) -> jnp.dtype:
        """Of matmuls and activations."""
        return jnp.dtype(self.config.dtype)

    def inner(self, part: type[TowerPart], name: str) -> TowerPart:
        """A part of this one, of the same shape."""
        return part(self.config, self.dim, self.heads, self.activation, self.eps, name=name)

    def norm(self, name: str) -> nn.LayerNorm:
        """LayerNorm."""
        return nn.LayerNorm(self.eps, dtype=self.dtype, name=name)

    def feed_forward(self, x_BxTxD: Array) -> Array:
        """Two projections with the activation between them."""
        init, hidden = kernel_init(self.config), self.config.mlp_ratio * self.dim
        hidden_BxTxF = Dense(hidden, self.dtype, init, name="mlp_in")(x_BxTxD)
        hidden_BxTxF = pin(self.activation(hidden_BxTxF), BATCH, None, "tensor")
        return Dense(self.dim, self.dtype, init, name="mlp_out")(hidden_BxTxF)


class Attention(TowerPart):
    """Multi-head attention. Kernels: ``qkv`` (D, 3, H, F), ``out`` (H, F, D)."""

    @nn.compact
    def __call__(self, query_BxLxD: Array, key_BxTxD: Array, causal: bool = False) -> Array:
        """Each query attends to all keys; causal: to those up to its own position."""
        init = kernel_init(self.config)
        weights = ToHeads(3, self.heads, self.dtype, init, name="qkv")(self.dim, False)

        def project(x: Array, part: int) -> Array:
            kernel_DxHxF, bias_HxF = weights.kernel_DxPxHxF[:, part], weights.bias_PxHxF[part]
            return jnp.einsum("btd,dhf->bthf", x, kernel_DxHxF) + bias_HxF

        heads = project(query_BxLxD, 0), project(key_BxTxD, 1), project(key_BxTxD, 2)
        mixed_BxLxHxF = jax.nn.dot_product_attention(*heads, is_causal=causal)
        return FromHeads(self.dtype, init, name="out")(mixed_BxLxHxF)


class Block(TowerPart):
    """Pre-norm Transformer block."""

    causal: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: Array, layer: Array | int = 0) -> Array:
        """(B, T, D) -> (B, T, D)."""
        normed_BxTxD = self.norm("attention_norm")(x_BxTxD)
        attention = self.inner(Attention, "attention")
        x_BxTxD = pin_rows(x_BxTxD + attention(normed_BxTxD, normed_BxTxD, self.causal))
        return pin_rows(x_BxTxD + self.feed_forward(self.norm("mlp_norm")(x_BxTxD)))


class Tower(TowerPart):
    """What image and text encoders share: a stack of blocks."""

    def blocks(self, x_BxTxD: Array, layers: int, causal: bool = False) -> Array:
        """All layers, without the last norm."""
        block = rematerialised(Block, self.config.remat)
        shape = (self.config, self.dim, self.heads, self.activation, self.eps)
        stack = [block(*shape, causal, name=f"block_{number}") for number in range(layers)]
        return run_layers(stack, self.config.scan_layers, 0, x_BxTxD)


class TextTower(Tower):
    """Words and learned positions, blocks, a last norm."""

    causal: bool = False

    @nn.compact
    def __call__(self, token_ids_RxL: Array) -> Array:
        """Token ids -> text tokens (R, L, D)."""
        config, init = self.config, kernel_init(self.config)

        def table(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, self.dim, dtype=self.dtype, embedding_init=init, name=name)

        words = table(config.vocab_size, "word_embedding")
        words_VxD = pin(words.embedding.astype(self.dtype), None, None)
        positions = table(config.max_text_length, "position_embedding")
        x_RxLxD = jnp.take(words_VxD, token_ids_RxL, axis=0)
        x_RxLxD = pin_rows(x_RxLxD + positions(jnp.arange(token_ids_RxL.shape[1]))[None])
        return self.norm("norm")(self.blocks(x_RxLxD, config.text_layers, self.causal))


class ImageTower(Tower):
    """What both image encoders share: patches with learned positions."""

    def embed(self, image_BxHxWx3: Array, cls: bool, bias: bool) -> Array:
        """Normalised pixels -> (B, N, D), or with [CLS] in front."""
        config, init = self.config, kernel_init(self.config)
        patches_BxNxP = patchify(image_BxHxWx3, config.patch_size).astype(self.dtype)
        dense = nn.Dense(self.dim, bias, self.dtype, kernel_init=init, name="patch_embed")
        x_BxTxD, count = dense(patches_BxNxP), config.num_patches + cls
        if cls:
            cls_1x1xD = self.param("cls_token", init, (1, 1, self.dim)).astype(self.dtype)
            cls_Bx1xD = jnp.broadcast_to(cls_1x1xD, (len(x_BxTxD), 1, self.dim))
            x_BxTxD = jnp.concatenate([cls_Bx1xD, x_BxTxD], axis=1)
        position_1xTxD = self.param("position_embedding", init, (1, count, self.dim))
        return pin_rows(x_BxTxD + position_1xTxD.astype(self.dtype))


class ClipImageTower(ImageTower):
    """ViT with a norm before its blocks; the last norm reads [CLS] alone in CLIP, here all."""

    @nn.compact
    def __call__(self, image_BxHxWx3: Array) -> Array:
        """Normalised pixels -> tokens (B, N + 1, D), [CLS] first."""
        x_BxTxD = self.norm("pre_norm")(self.embed(image_BxHxWx3, cls=True, bias=False))
        return self.norm("norm")(self.blocks(x_BxTxD, self.config.image_layers))


class PoolingHead(TowerPart):
    """One learned query attends to all patches, then a residual feed-forward net (MAP head)."""

    @nn.compact
    def __call__(self, x_BxNxD: Array) -> Array:
        """(B, N, D) -> (B, D)."""
        probe_1x1xD = self.param("probe", kernel_init(self.config), (1, 1, self.dim))
        probe_Bx1xD = jnp.broadcast_to(probe_1x1xD.astype(self.dtype), (len(x_BxNxD), 1, self.dim))
        pooled_Bx1xD = self.inner(Attention, "attention")(probe_Bx1xD, x_BxNxD)
        return (pooled_Bx1xD + self.feed_forward(self.norm("norm")(pooled_Bx1xD)))[:, 0]


class SiglipImageTower(ImageTower):
    """ViT without [CLS], and the pooling head."""

    @nn.compact
    def __call__(self, image_BxHxWx3: Array) -> tuple[Array, Array]:
        """Normalised pixels -> patch tokens (B, N, D), pooled (B, D)."""
        x_BxNxD = self.embed(image_BxHxWx3, cls=False, bias=True)
        x_BxNxD = self.norm("norm")(self.blocks(x_BxNxD, self.config.image_layers))
        return x_BxNxD, self.inner(PoolingHead, "pool")(x_BxNxD)


class PublishedTowers(nn.Module):
    """The functions of `TwoTowers`; a subclass makes the parts."""

    config: ModelConfig
    text_dim: int = 0  # width of the text encoder; 0 = as the image encoder
    pad: int = 0  # id of [PAD], which SigLIP's text encoder reads
    activation = staticmethod(quick_gelu)
    eps = CLIP_EPS
    pixels = IMAGE_MEAN, IMAGE_STD  # mean and deviation, by which pixels are normalised

    @nn.nowrap
    def text_tower(self, causal: bool) -> TextTower:
        """The text encoder."""
        dim, heads = self.text_dim or self.config.dim, self.config.heads
        return TextTower(self.config, dim, heads, self.activation, self.eps, causal)

    @nn.nowrap
    def image_tower(self, tower: type[ImageTower]) -> ImageTower:
        """The image encoder of that class."""
        config = self.config
        return tower(config, config.dim, config.vit_heads, self.activation, self.eps)

    @nn.nowrap
    def projection(self, bias: bool) -> nn.Dense:
        """To the features of the contrastive loss."""
        init, dtype = kernel_init(self.config), jnp.dtype(self.config.dtype)
        return nn.Dense(self.config.embed_dim, bias, dtype, kernel_init=init)

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        self.encode_image(image_BxHxWx3)
        self.encode_text(token_ids_BxL, token_mask_BxL)


class ClipTowers(PublishedTowers):
    """CLIP's ViT and causal text encoder, each with a projection without bias."""

    def setup(self):
        self.image_encoder = self.image_tower(ClipImageTower)
        self.text_encoder = self.text_tower(causal=True)
        self.image_proj, self.text_proj = self.projection(False), self.projection(False)

    def encode_image(self, image_BxHxWx3: Array) -> tuple[Array, Array]:
        """uint8 or normalised float image -> image tokens (B, T, D), unit features (B, E)."""
        tokens_BxTxD = self.image_encoder(normalise_image(image_BxHxWx3, *self.pixels))
        return tokens_BxTxD, unit(self.image_proj(tokens_BxTxD[:, 0]))

    def encode_text(
        self, token_ids_RxL: Array, token_mask_RxL: Array, seeds_R: Array | None = None
    ) -> tuple[Array, Array]:
        """Token ids -> text tokens (R, L, D), unit features (R, E) of the last real token.

        A text that ends with an end token is read there, as CLIP's are. seeds: unused, no dropout.
        """
        tokens_RxLxD = self.text_encoder(token_ids_RxL)
        last_Rx1 = token_mask_RxL.sum(-1, keepdims=True, dtype=jnp.int32) - 1
        return tokens_RxLxD, unit(self.text_proj(gather_positions(tokens_RxLxD, last_Rx1)[:, 0]))


class SiglipTowers(PublishedTowers):
    """SigLIP's ViT with its pooling head, and text encoder; the text alone has a projection."""

    activation = staticmethod(tanh_gelu)
    eps = SIGLIP_EPS
    pixels = HALF, HALF

    def setup(self):
        self.image_encoder = self.image_tower(SiglipImageTower)
        self.text_encoder = self.text_tower(causal=False)
        self.text_proj = self.projection(True)

    def encode_image(self, image_BxHxWx3: Array) -> tuple[Array, Array]:
        """uint8 or normalised float image -> patch tokens (B, N, D), unit features (B, E = D)."""
        tokens_BxNxD, pooled_BxD = self.image_encoder(normalise_image(image_BxHxWx3, *self.pixels))
        return tokens_BxNxD, unit(pooled_BxD)

    def encode_text(
        self, token_ids_RxL: Array, token_mask_RxL: Array, seeds_R: Array | None = None
    ) -> tuple[Array, Array]:
        """Token ids -> text tokens (R, L, D), unit features (R, E).

        The text is padded to `max_text_length`, as SigLIP's encoder is trained: it reads [PAD], and
        its feature is that of the last position. So features do not depend on L. seeds: unused, no
        dropout.
        """
        length, longest = token_ids_RxL.shape[1], self.config.max_text_length
        ids_RxL = jnp.where(token_mask_RxL, token_ids_RxL, self.pad)
        ids_RxL = jnp.pad(ids_RxL, ((0, 0), (0, longest - length)), constant_values=self.pad)
        tokens_RxLxD = self.text_encoder(ids_RxL)
        return tokens_RxLxD[:, :length], unit(self.text_proj(tokens_RxLxD[:, -1]))
