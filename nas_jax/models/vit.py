"""Image encoder: Vision Transformer (Dosovitskiy et al. 2021) as ALBEF uses it (ALBEF code,
models/vit.py).
"""

from __future__ import annotations

from typing import TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from nas_jax.models.attention import SelfAttention
from nas_jax.models.layers import Dense, feed_forward, rematerialised, run_layers
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array

LAYER_NORM_EPS = 1e-6
Pixels = TypeVar("Pixels", Array, np.ndarray)


class Block(nn.Module):
    """Pre-norm Transformer block with exact GELU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, streams: tuple[Array, ...], layer: Array | int = 0) -> tuple[Array, ...]:
        """Tokens (B, T, D) in one array or several; all attend to all."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        init = nn.initializers.truncated_normal(config.init_std)
        norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="attention_norm")
        attention = SelfAttention(
            config.vit_heads, 0.0, dtype, init, config.attention, name="attention"
        )
        mixed = attention([norm(x_BxTxD) for x_BxTxD in streams])
        mlp_norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="mlp_norm")
        mlp_in = Dense(config.mlp_ratio * config.dim, dtype, init, name="mlp_in")
        mlp_out = Dense(config.dim, dtype, init, name="mlp_out")

        def rest(x_BxTxD: Array, update_BxTxD: Array) -> Array:
            x_BxTxD = x_BxTxD + update_BxTxD
            return pin_rows(x_BxTxD + feed_forward(mlp_norm(x_BxTxD), mlp_in, mlp_out))

        return tuple(map(rest, streams, mixed))


def patchify(image_BxHxWxC: Pixels, patch_size: int) -> Pixels:
    """Cuts an image into row-major patches: (B, H, W, C) -> (B, N, patch * patch * C)."""
    batch, height, width, channels = image_BxHxWxC.shape
    grid = image_BxHxWxC.reshape(
        batch, height // patch_size, patch_size, width // patch_size, patch_size, channels
    ).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, -1, patch_size * patch_size * channels)


def hide_patches(image_BxHxWxC: Array, where_BxN: Array, patch_size: int) -> Array:
    """A normalised picture with the mean colour in the patches where `where` is True."""
    batch, height, width, _ = image_BxHxWxC.shape
    where = where_BxN.reshape(batch, height // patch_size, width // patch_size)
    where_BxHxW = where.repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    return jnp.where(where_BxHxW[..., None], 0.0, image_BxHxWxC)


class VisionTransformer(nn.Module):
    """ViT with a CLS token, learned absolute positions and a final LayerNorm over all tokens; no
    dropout.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, image_BxHxWx3: Array) -> Array:
        """Normalised float image -> tokens (B, N + 1, D), CLS first."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        init = nn.initializers.truncated_normal(config.init_std)
        patches_BxNxP = patchify(image_BxHxWx3, config.patch_size).astype(dtype)
        x_BxNxD = Dense(config.dim, dtype, init, name="patch_embed")(patches_BxNxP)
        cls_1x1xD = self.param("cls_token", init, (1, 1, config.dim))
        position_init = nn.initializers.truncated_normal(config.position_std or config.init_std)
        position_1xTxD = self.param(
            "position_embedding", position_init, (1, config.num_patches + 1, config.dim)
        )
        cls_Bx1xD = jnp.broadcast_to(cls_1x1xD, (x_BxNxD.shape[0], 1, config.dim)).astype(dtype)
        streams: tuple[Array, ...] = (
            pin_rows(cls_Bx1xD + position_1xTxD[:, :1].astype(dtype)),
            pin_rows(x_BxNxD + position_1xTxD[:, 1:].astype(dtype)),
        )
        if not config.cls_apart:
            streams = (pin_rows(jnp.concatenate(streams, axis=1)),)
        block = rematerialised(Block, config.remat)
        blocks = [block(config, name=f"block_{layer}") for layer in range(config.image_layers)]
        streams = run_layers(blocks, config.scan_layers, 0, streams)
        norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="norm")
        tokens = [norm(x_BxTxD) for x_BxTxD in streams]
        return pin_rows(jnp.concatenate(tokens, axis=1)) if len(tokens) > 1 else tokens[0]
