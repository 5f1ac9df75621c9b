"""The whole network: two encoders, the fusion encoder, projections, heads, and NAS's dictionary
neck.

One Linen module whose methods are the steps that the methods of `nas_jax/methods` call. The
momentum teacher is the same module applied to a copy of the parameter groups `TEACHER_GROUPS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import ImageTokens, Replacement, as_image_tokens
from nas_jax.kernels.last_layer import Readout
from nas_jax.models.bert import FusionEncoder, MlmHead, TextEncoder, kernel_init
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.visual_dictionary import DictionaryNeck
from nas_jax.models.vit import VisionTransformer
from nas_jax.typing import Array

TEACHER_GROUPS = (
    "image_encoder",
    "image_proj",
    "text_encoder",
    "fusion_encoder",
    "mlm_head",
    "text_proj",
)
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise_image(image_BxHxWx3: Array) -> Array:
    """uint8 pixels -> float32 with CLIP's mean and deviation; float images are taken as already
    normalised.
    """
    if image_BxHxWx3.dtype != jnp.uint8:
        return image_BxHxWx3.astype(jnp.float32)
    return (image_BxHxWx3.astype(jnp.float32) / 255.0 - jnp.array(IMAGE_MEAN)) / jnp.array(
        IMAGE_STD
    )


def unit(x: Array) -> Array:
    """L2-normalises the last axis in float32; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    return x * (jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24) ** -0.5)


class VisionLanguageModel(nn.Module):
    """ALBEF's network (Li et al.

    2021, section 3.1), with NAS's dictionary neck and NTA's text generator head.
    """

    config: ModelConfig
    dictionary: bool = True  # has the neck of the visual dictionary
    generator: bool = True  # has the head of NTA's text generator
    literal_gate: bool = False  # the NAS authors' two-valued gate

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.image_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.fusion_encoder = FusionEncoder(config)
        self.mlm_head = MlmHead(config)
        self.generator_head = MlmHead(config)
        self.image_proj = nn.Dense(config.embed_dim, dtype=dtype, kernel_init=kernel_init(config))
        self.text_proj = nn.Dense(config.embed_dim, dtype=dtype, kernel_init=kernel_init(config))
        self.itm_head = nn.Dense(2, kernel_init=kernel_init(config))
        self.neck = DictionaryNeck(config, self.literal_gate)

    def encode_image(self, image_BxHxWx3: Array) -> tuple[Array, Array]:
        """uint8 or normalised float image -> image tokens (B, T, D) and unit ITC features (B,
        E).
        """
        tokens_BxTxD = self.image_encoder(normalise_image(image_BxHxWx3))
        return tokens_BxTxD, unit(self.image_proj(tokens_BxTxD[:, 0]))

    def encode_text(
        self, token_ids_RxL: Array, token_mask_RxL: Array, seeds_R: Array | None = None
    ) -> tuple[Array, Array]:
        """Token ids -> text tokens (R, L, D) and unit ITC features (R, E)."""
        tokens_RxLxD = self.text_encoder(token_ids_RxL, token_mask_RxL, seeds_R)
        return tokens_RxLxD, unit(self.text_proj(tokens_RxLxD[:, 0]))

    def fuse(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        seen: Array | tuple[ImageTokens, ...],
        seeds_R: Array | None = None,
        wanted: Sequence[Readout] | None = None,
    ) -> Array | list[Array]:
        """Fused tokens (R, L, D), or (B, P, M, D) of what is wanted.

        `seen`: image tokens (R, T, D), or pictures.
        """
        pictures = as_image_tokens(seen)
        if any(group.replacement is not None for one in pictures for group in one.groups):
            positions = jax.lax.stop_gradient(self.neck.position_terms())
            pictures = tuple(one.replace(positions=positions) for one in pictures)
        return self.fusion_encoder(text_tokens_RxLxD, token_mask_RxL, pictures, seeds_R, wanted)

    def match(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        seen: Array | tuple[ImageTokens, ...],
        seeds_R: Array | None = None,
        plain: bool = False,
    ) -> Array:
        """ITM logits (R, 2) in float32; class 1 = the picture and the text match.

        plain: the last layer computes all tokens, not only the one that the head reads.
        """
        inputs = (text_tokens_RxLxD, token_mask_RxL, seen, seeds_R)
        if plain:
            return self.itm_logits(self.fuse(*inputs))
        batch, rows = as_image_tokens(seen)[0].tokens[0].shape[0], text_tokens_RxLxD.shape[0]
        first = jnp.zeros((batch, rows // batch, 1), jnp.int32)
        (fused_BxPx1xD,) = self.fuse(*inputs, [Readout(tuple(range(rows // batch)), first)])
        return self.itm_logits(fused_BxPx1xD.reshape(rows, 1, -1))

    def itm_logits(self, fused_RxMxD: Array) -> Array:
        """ITM logits (R, 2) in float32 of the first token of each row."""
        return self.itm_head(fused_RxMxD[:, 0].astype(jnp.float32))

    def mlm_logits(self, tokens_BxMxD: Array) -> Array:
        """Logits (B, M, V) of BERT's MLM head on fused tokens."""
        return self.mlm_head(tokens_BxMxD, self.text_encoder.word_table())

    def generator_logits(self, tokens_BxMxD: Array, word_table_VxD: Array) -> Array:
        """Logits (B, M, V) of NTA's language model, which reads text tokens and never sees a
        picture.
        """
        return self.generator_head(tokens_BxMxD, word_table_VxD)

    def dictionary_features(self, patches_BxNxD: Array) -> Array:
        """Non-negative features (B, N, D), float32, that the dictionary quantizes."""
        return self.neck.features(patches_BxNxD)

    def dictionary_mix(self, features_BxNxD: Array, quantized_BxNxD: Array) -> Array:
        """Gated mix (B, N, D) of quantized and continuous features."""
        return self.neck.mix(features_BxNxD, quantized_BxNxD)

    def dictionary_align(self, quantized: Array) -> Array:
        """The linear map (..., D) that a replaced token goes through instead of the gate."""
        return self.neck.align(quantized)

    def dictionary_replacement(self, where_BxN: Array, new_BxD: Array) -> Replacement:
        """The dictionary token of new_BxD at the patches `where`, in parts."""
        return self.neck.replacement(where_BxN, new_BxD)

    def dictionary_finish(self, mixed_BxNxD: Array) -> Array:
        """Adds the position code and normalises: dictionary tokens (B, N, D)."""
        return self.neck.finish(mixed_BxNxD)

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Touches every parameter once, so that `init` makes those of the parts in use and no
        others.
        """
        image_tokens, _ = self.encode_image(image_BxHxWx3)
        text_tokens, _ = self.encode_text(token_ids_BxL, token_mask_BxL)
        if self.dictionary:
            features = self.dictionary_features(image_tokens[:, 1:])
            self.dictionary_finish(self.dictionary_mix(features, features))
        if self.generator:
            self.generator_logits(text_tokens, self.text_encoder.word_table())
        fused = self.fuse(text_tokens, token_mask_BxL, image_tokens)
        self.itm_head(fused[:, 0])
        return self.mlm_logits(fused)
