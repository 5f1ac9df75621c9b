"""Networks, each built on the one before: two towers, ALBEF's, NAS's.

A method calls their functions on a bound module (`Method.apply`). The momentum teacher is the same
module with a copy of the parameter groups `teacher_groups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.kernels.image_tokens import ImageTokens, Replacement
from nas_jax.kernels.last_layer import Readout
from nas_jax.models.bert import FusionEncoder, MlmHead, TextEncoder, kernel_init
from nas_jax.models.codebook import (
    DictionaryConfig,
    DictionaryState,
    nearest_code,
    quantize,
    straight_through,
)
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.visual_dictionary import DictionaryNeck
from nas_jax.models.vit import VisionTransformer
from nas_jax.typing import Array, Metrics

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise_image(
    image_BxHxWx3: Array | np.ndarray,
    mean: tuple[float, ...] = IMAGE_MEAN,
    std: tuple[float, ...] = IMAGE_STD,
) -> Array:
    """uint8 pixels -> float32 with a mean and a deviation of each colour, by default CLIP's.

    Float images are taken as normalised already.
    """
    if image_BxHxWx3.dtype != jnp.uint8:
        return jnp.asarray(image_BxHxWx3.astype(jnp.float32))
    scaled_BxHxWx3 = jnp.asarray(image_BxHxWx3.astype(jnp.float32) / 255.0)
    return (scaled_BxHxWx3 - jnp.array(mean)) / jnp.array(std)


def unit(x: Array) -> Array:
    """L2-normalises the last axis in float32; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    return x * (jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24) ** -0.5)


class TwoTowers(nn.Module):
    """An image encoder and a text encoder, each with a projection of [CLS] to unit features."""

    config: ModelConfig

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.image_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.image_proj = nn.Dense(config.embed_dim, dtype=dtype, kernel_init=kernel_init(config))
        self.text_proj = nn.Dense(config.embed_dim, dtype=dtype, kernel_init=kernel_init(config))

    def encode_image(self, image_BxHxWx3: Array) -> tuple[Array, Array]:
        """uint8 or normalised float image -> image tokens (B, T, D), unit features (B, E)."""
        tokens_BxTxD = self.image_encoder(normalise_image(image_BxHxWx3))
        return tokens_BxTxD, unit(self.image_proj(tokens_BxTxD[:, 0]))

    def encode_text(
        self, token_ids_RxL: Array, token_mask_RxL: Array, seeds_R: Array | None = None
    ) -> tuple[Array, Array]:
        """Token ids -> text tokens (R, L, D), unit features (R, E).

        seeds: of the dropout, one a row; None for evaluation.
        """
        tokens_RxLxD = self.text_encoder(token_ids_RxL, token_mask_RxL, seeds_R)
        return tokens_RxLxD, unit(self.text_proj(tokens_RxLxD[:, 0]))

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        image_tokens_BxTxD, _ = self.encode_image(image_BxHxWx3)
        text_tokens_BxLxD, _ = self.encode_text(token_ids_BxL, token_mask_BxL)
        return image_tokens_BxTxD, text_tokens_BxLxD


class AlbefNetwork(TwoTowers):
    """Two towers, and a fusion encoder with two heads (Li et al. 2021, section 3.1)."""

    @property
    def teacher_groups(self) -> tuple[str, ...]:
        """The groups of parameters that the momentum teacher has."""
        towers = "image_encoder", "image_proj", "text_encoder"
        return (*towers, "fusion_encoder", "mlm_head", "text_proj")

    def setup(self):
        super().setup()
        self.fusion_encoder = FusionEncoder(self.config)
        self.mlm_head = MlmHead(self.config)
        self.itm_head = nn.Dense(2, kernel_init=kernel_init(self.config))

    @overload
    def fuse(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        image: tuple[ImageTokens, ...],
        seeds_R: Array | None = None,
        readouts: None = None,
    ) -> Array: ...

    @overload
    def fuse(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        image: tuple[ImageTokens, ...],
        seeds_R: Array | None,
        readouts: Sequence[Readout],
    ) -> list[Array]: ...

    def fuse(
        self,
        text_tokens_RxLxD: Array,
        token_mask_RxL: Array,
        image: tuple[ImageTokens, ...],
        seeds_R: Array | None = None,
        readouts: Sequence[Readout] | None = None,
    ) -> Array | list[Array]:
        """Fused tokens (R, L, D), or (B, P, M, D) for each of the readouts."""
        image = self._with_positions(image)
        return self.fusion_encoder(text_tokens_RxLxD, token_mask_RxL, image, seeds_R, readouts)

    def _with_positions(self, image: tuple[ImageTokens, ...]) -> tuple[ImageTokens, ...]:
        """The image tokens with what a network's replaced patches need beside them."""
        return image

    def itm_logits(self, fused_RxMxD: Array) -> Array:
        """ITM logits (R, 2), float32, of the first token of each row; class 1 = match."""
        return self.itm_head(fused_RxMxD[:, 0].astype(jnp.float32))

    def mlm_logits(self, tokens_BxMxD: Array) -> Array:
        """Logits (B, M, V) of BERT's MLM head on fused tokens."""
        return self.mlm_head(tokens_BxMxD, self.text_encoder.word_table())

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        image_BxTxD, text_BxLxD = super().__call__(image_BxHxWx3, token_ids_BxL, token_mask_BxL)
        fused_BxLxD = self.fuse(text_BxLxD, token_mask_BxL, (ImageTokens((image_BxTxD,)),))
        self.itm_logits(fused_BxLxD)
        self.mlm_logits(fused_BxLxD)
        return image_BxTxD, text_BxLxD


class DictionaryTokens(NamedTuple):
    """A batch of pictures in the tokens of the visual dictionary."""

    tokens_BxTxD: Array  # [CLS] untouched, then the dictionary tokens
    features_BxNxD: Array  # what was quantized
    mixed_BxNxD: Array  # gated mix, before position code and normalisation
    code_ids_BxN: Array
    state: DictionaryState  # after the update


class PatchCodes(NamedTuple):
    """Which code each patch of some pictures has."""

    code_ids_BxN: Array
    distance_BxN: Array  # squared, of the patch's feature to its code
    state: DictionaryState


class NasNetwork(AlbefNetwork):
    """ALBEF's network with the neck of the visual dictionary and the head of NTA's generator."""

    dictionary: bool = True
    generator: bool = True
    literal_gate: bool = False  # the NAS authors' two-valued gate

    @property
    def teacher_groups(self) -> tuple[str, ...]:
        """The generator that makes NTA's captions is the teacher's."""
        return super().teacher_groups + (("generator_head",) if self.generator else ())

    def setup(self):
        super().setup()
        self.neck = DictionaryNeck(self.config, self.literal_gate)
        self.generator_head = MlmHead(self.config)

    def _with_positions(self, image: tuple[ImageTokens, ...]) -> tuple[ImageTokens, ...]:
        """Image tokens with some patches replaced get what these have in common."""
        if any(group.replacement is not None for one in image for group in one.groups):
            positions = jax.lax.stop_gradient(self.neck.position_terms())
            image = tuple(replace(one, positions=positions) for one in image)
        return image

    def generator_logits(self, tokens_BxMxD: Array, word_table_VxD: Array) -> Array:
        """Logits (B, M, V) of NTA's language model, which reads text tokens and no picture."""
        return self.generator_head(tokens_BxMxD, word_table_VxD)

    def look_up(
        self,
        config: DictionaryConfig,
        state: DictionaryState,
        image_tokens_BxTxD: Array,
        decay: Array,
        key: Array | None = None,
    ) -> tuple[DictionaryTokens, Metrics]:
        """Patches -> features -> codes -> gated mix -> tokens; decay, key: see `quantize`."""
        features_BxNxD = self.neck.features(image_tokens_BxTxD[:, 1:])
        state, code_ids_BxN, quantized_BxNxD, metrics = quantize(
            config, state, features_BxNxD, decay, key
        )
        mixed_BxNxD = self.neck.mix(features_BxNxD, quantized_BxNxD)
        tokens_BxTxD = with_cls(image_tokens_BxTxD, self.neck.finish(mixed_BxNxD))
        words = DictionaryTokens(tokens_BxTxD, features_BxNxD, mixed_BxNxD, code_ids_BxN, state)
        return words, metrics

    def patch_codes(self, state: DictionaryState, image_BxHxWx3: Array) -> PatchCodes:
        """The codes as `look_up` reads them, in a dictionary that stands still."""
        image_tokens_BxTxD, _ = self.encode_image(image_BxHxWx3)
        features_BxNxD = self.neck.features(image_tokens_BxTxD[:, 1:])
        return PatchCodes(*nearest_code(features_BxNxD, state.codes_KxD), state)

    def replace_codes(
        self,
        image_tokens_BxTxD: Array,
        words: DictionaryTokens,
        where_BxUxN: Array,
        code_BxU: Array,
        form: str = "code",
    ) -> tuple[Array, Replacement | None]:
        """Image tokens (B, T, D) with another code at the patches of each object, and the same in
        parts.

        where: a patch of several objects is the first one's. form: "code": the new code skips the
        gate, as in the authors' code; "gated": it passes with the old continuous feature; "whole":
        it passes as both. There are parts where all replaced patches of a picture get the same
        token: with one object, and not in the form "gated". They have no gradient.
        """
        object_BxN = jnp.argmax(where_BxUxN, axis=1)[..., None]
        alone = where_BxUxN.shape[1] == 1

        def at_patches(x_BxUxD: Array) -> Array:
            return x_BxUxD if alone else jnp.take_along_axis(x_BxUxD, object_BxN, axis=1)

        new_BxUxD, base_BxUxD = words.state.codes_KxD[code_BxU], None
        if form == "whole":
            base_BxUxD = self.neck.mix(new_BxUxD, new_BxUxD)
            new_BxNxD = at_patches(base_BxUxD)
        else:
            # The authors' straight-through form: the value is the new code, its gradient would go
            # to the old feature.
            new_BxNxD = straight_through(words.features_BxNxD, at_patches(new_BxUxD))
            if form == "gated":
                new_BxNxD = self.neck.mix(words.features_BxNxD, new_BxNxD)
            else:
                new_BxNxD, base_BxUxD = self.neck.align(new_BxNxD), self.neck.align(new_BxUxD)
        replacement = None
        if alone and base_BxUxD is not None:
            replacement = self.neck.replacement(where_BxUxN[:, 0], base_BxUxD[:, 0])
            replacement = jax.lax.stop_gradient(replacement)
        mixed_BxNxD = jnp.where(where_BxUxN.any(1)[..., None], new_BxNxD, words.mixed_BxNxD)
        return with_cls(image_tokens_BxTxD, self.neck.finish(mixed_BxNxD)), replacement

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter of the parts that are on, so that `init` makes those."""
        image_BxTxD, text_BxLxD = super().__call__(image_BxHxWx3, token_ids_BxL, token_mask_BxL)
        if self.dictionary:
            features_BxNxD = self.neck.features(image_BxTxD[:, 1:])
            self.neck.finish(self.neck.mix(features_BxNxD, features_BxNxD))
        if self.generator:
            self.generator_logits(text_BxLxD, self.text_encoder.word_table())
        return image_BxTxD, text_BxLxD


def with_cls(image_tokens_BxTxD: Array, patches_BxNxD: Array) -> Array:
    """The picture's own [CLS] before other patch tokens."""
    patches_BxNxD = patches_BxNxD.astype(image_tokens_BxTxD.dtype)
    return jnp.concatenate([image_tokens_BxTxD[:, :1], patches_BxNxD], axis=1)
