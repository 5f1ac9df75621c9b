"""Model configuration and the table of sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nas_jax.models.attention import IMPLEMENTATIONS
from nas_jax.models.layers import POLICIES
from nas_jax.utils.errors import ConfigError

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the image encoder, the text and fusion encoder, and the projections."""

    dim: int = 768  # width D of both encoders
    heads: int = 12  # attention heads; must divide dim
    image_layers: int = 12  # depth of the ViT
    text_layers: int = 6  # BERT layers that read text alone
    fusion_layers: int = 6  # BERT layers with cross-attention to the image
    mlp_ratio: int = 4  # hidden width of the feed-forward nets / dim
    image_size: int = 256  # pixels a side; must be a multiple of patch_size
    patch_size: int = 16  # pixels a side
    vocab_size: int = 0  # V; 0 takes it from the tokenizer
    max_text_length: int = 512  # rows of the text position table
    embed_dim: int = 256  # width E of the ITC features
    # attention heads of the image encoder; 0 = as heads. Converted towers may differ
    image_heads: int = 0
    # of fresh kernels and embeddings; narrow models need about 0.02 * sqrt(768 / dim) to start
    init_std: float = 0.02
    # of a fresh position table of the image encoder; 0 = init_std. A wider one lets a short run
    # learn which colour is where (docs/notes/relations.md)
    position_std: float = 0.0
    dropout: float = 0.1  # BERT hidden and attention dropout (the ViT has none)
    # none | dots | full: what each layer computes again in the backward pass, to save memory
    remat: str = "none"
    # layers as a loop: compiles several times faster, trains slower; the same parameters
    scan_layers: bool = False
    # the ViT keeps [CLS] beside the patches: 256 tokens fill the tiles of a TPU, 257 do not
    cls_apart: bool = False
    attention: str = "xla"  # xla | cudnn: NVIDIA's kernel wherever attention has no dropout
    # of matmuls and activations; parameters, losses and similarities stay float32
    dtype: str = "float32"

    @property
    def vit_heads(self) -> int:
        """Attention heads of the image encoder."""
        return self.image_heads or self.heads

    @property
    def num_patches(self) -> int:
        """N, patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    def validate(self) -> None:
        """Raises ConfigError on shapes that cannot be built."""
        if self.position_std < 0:
            raise ConfigError(f"position_std={self.position_std}", "0 or more", "0 takes init_std")
        if self.dim % self.heads:
            raise ConfigError(
                f"dim={self.dim}, heads={self.heads}",
                "heads that divide dim",
                "change one of the two",
            )
        if self.image_heads < 0 or self.dim % self.vit_heads:
            raise ConfigError(
                f"dim={self.dim}, image_heads={self.image_heads}",
                "0, or heads that divide dim",
                "0 takes heads",
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size={self.image_size}, patch_size={self.patch_size}",
                "an image size that is a multiple of the patch size",
                f"use {self.image_size // self.patch_size * self.patch_size or self.patch_size}",
            )
        if self.dim % 4:
            raise ConfigError(f"dim={self.dim}", "a multiple of 4 (the 2-D sine code)", "round it")
        for name, known in (
            ("dtype", DTYPES),
            ("remat", POLICIES),
            ("attention", IMPLEMENTATIONS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"{name}={value!r}", f"one of {', '.join(known)}", "set one of them"
                )
        if self.attention == "cudnn" and self.cls_apart:
            raise ConfigError(
                "attention='cudnn' with cls_apart=True",
                "one of the two: NVIDIA's kernel takes all tokens in one array",
                "set cls_apart=False",
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}", "0 <= dropout < 1", "0.1 is BERT's")


SIZES: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        96, 4, 3, 2, 2, image_size=48, patch_size=8, embed_dim=64, max_text_length=64, init_std=0.06
    ),
    "tiny": ModelConfig(192, 3, 4, 2, 2, image_size=96, embed_dim=128, init_std=0.04),
    "small": ModelConfig(384, 6, 6, 3, 3, image_size=128, embed_dim=256, init_std=0.028),
    "base": ModelConfig(),  # ViT-B/16 and BERT-base, ALBEF's own
    "large": ModelConfig(1024, 16, 24, 12, 12),  # ViT-L/16 and BERT-large
}


def model_config(size: str, **overrides) -> ModelConfig:
    """The row `size` of the table with some fields replaced."""
    if size not in SIZES:
        raise ConfigError(
            f"model size {size!r}", f"one of {', '.join(SIZES)}", "add a row to models/sizes.py"
        )
    return replace(SIZES[size], **overrides)
