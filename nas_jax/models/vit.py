"""Image encoder: Vision Transformer (Dosovitskiy et al. 2021) as ALBEF uses it (ALBEF code, models/vit.py)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.models.attention import Attention
from nas_jax.models.remat import rematerialised
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import BATCH, pin, pin_rows
from nas_jax.typing import Array

LAYER_NORM_EPS = 1e-6


class Block(nn.Module):
    """Pre-norm Transformer block with exact GELU."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD: Array) -> Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        init = nn.initializers.truncated_normal(config.init_std)
        normed = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="attention_norm")(x_BxTxD)
        x_BxTxD = x_BxTxD + Attention(config.heads, 0.0, dtype, init, name="attention")(normed)
        normed = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="mlp_norm")(x_BxTxD)
        hidden = nn.Dense(config.mlp_ratio * config.dim, dtype=dtype, kernel_init=init, name="mlp_in")(normed)
        hidden = pin(nn.gelu(hidden, approximate=False), BATCH, None, "tensor")
        return pin_rows(x_BxTxD + nn.Dense(config.dim, dtype=dtype, kernel_init=init, name="mlp_out")(hidden))


def patchify(image_BxHxWxC: Array, patch_size: int) -> Array:
    """Cuts an image into row-major patches: (B, H, W, C) -> (B, N, patch * patch * C)."""
    batch, height, width, channels = image_BxHxWxC.shape
    grid = image_BxHxWxC.reshape(
        batch, height // patch_size, patch_size, width // patch_size, patch_size, channels
    ).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, -1, patch_size * patch_size * channels)


class VisionTransformer(nn.Module):
    """ViT with a CLS token, learned absolute positions and a final LayerNorm over all tokens; no dropout."""

    config: ModelConfig

    @nn.compact
    def __call__(self, image_BxHxWx3: Array) -> Array:
        """Normalised float image -> tokens (B, N + 1, D), CLS first."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        init = nn.initializers.truncated_normal(config.init_std)
        patches_BxNxP = patchify(image_BxHxWx3, config.patch_size).astype(dtype)
        x_BxNxD = nn.Dense(config.dim, dtype=dtype, kernel_init=init, name="patch_embed")(patches_BxNxP)
        cls_1x1xD = self.param("cls_token", init, (1, 1, config.dim))
        position_1xTxD = self.param("position_embedding", init, (1, config.num_patches + 1, config.dim))
        cls_Bx1xD = jnp.broadcast_to(cls_1x1xD, (x_BxNxD.shape[0], 1, config.dim)).astype(dtype)
        x_BxTxD = pin_rows(jnp.concatenate([cls_Bx1xD, x_BxNxD], axis=1) + position_1xTxD.astype(dtype))
        block = rematerialised(Block, config.remat)
        for layer in range(config.image_layers):
            x_BxTxD = block(config, name=f"block_{layer}")(x_BxTxD)
        return nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, name="norm")(x_BxTxD)
