"""SoftMask++ (Park and Han, CVPR 2023, arXiv 2304.00719), on top of ALBEF.

A picture whose evidence for one word is softened is a more diverse example of the same match: the
model has to find the rest of the caption in it. So pictures softened by the word's Grad-CAM are
further rows of the matching loss, ITC gets a focal weight, and captions and pictures are augmented.

No code was published. What the abstract and figure 2 of the paper say is taken from there. Readings
of ours: the softened pair is a match; a softened picture also stands beside the hard caption, since
softness would otherwise give the match away; gamma is 2; the Grad-CAM is that of ALBEF's figures
(the third of six fusion layers); the student alone reads the masked caption and the distorted
picture.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.data.readers import SecondView
from nas_jax.losses.mlm import mask_tokens, word_places
from nas_jax.methods.added import FOCUS, FocalItc, added_terms
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.terms import Itm, Mlm, Seen, Terms
from nas_jax.models.attention_maps import attention_map, grad_cam, soft_mask, softly_masked
from nas_jax.models.rows import Rows
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import gather_positions
from nas_jax.typing import Array, Batch, Metrics, Params
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class SoftMaskConfig(AlbefConfig):
    """ALBEF's switches, and those of softened pictures, focal ITC and augmentation."""

    name: str = "softmask"
    focus: float = FOCUS  # gamma of the focal ITC; 0 = ALBEF's ITC; the paper's is not known
    soft_weight: float = 1.0  # of the matching loss on softened pictures
    text_masking: float = 0.15  # share of the tokens that ITC and ITM of the student read masked
    distortion: float = 1.0  # of the picture that the student reads (data/image_ops.py, distort)

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        if self.focus < 0 or self.soft_weight < 0:
            raise ConfigError(
                f"focus={self.focus}, soft_weight={self.soft_weight}", "0 or more", "2 and 1"
            )
        if not 0 <= self.text_masking < 1 or not 0 <= self.distortion <= 1:
            raise ConfigError(
                f"text_masking={self.text_masking}, distortion={self.distortion}",
                "a share below 1 and a strength between 0 and 1",
                "0.15 and 1 are the defaults",
            )


@dataclass(frozen=True)
class SoftMask(Albef):
    """State: ALBEF's."""

    Config = SoftMaskConfig

    @classmethod
    def make_network(cls, config: SoftMaskConfig, model: ModelConfig) -> nn.Module:
        """ALBEF's network. Raises ConfigError with one fusion layer: what a word attends to in the
        last layer does not reach [CLS], which is asked for the match.
        """
        if config.soft_weight > 0 and model.fusion_layers < 2:
            raise ConfigError(
                f"model.fusion_layers={model.fusion_layers}",
                "at least 2, so that the match depends on what the words attend to",
                "raise it, or set method.soft_weight=0",
            )
        return super().make_network(config, model)

    @property
    def wants(self) -> tuple[Any, ...]:
        """A distorted view of each picture, which the student reads."""
        others = (field for field in super().wants if not isinstance(field, SecondView))
        return (SecondView(self.config.distortion), *others)

    def terms(self, stage: Hashable) -> Terms:
        """L = L_focal-itc + L_itm + L_itm-soft + L_mlm."""
        own = {"itc": (1.0, Focal(self)), "itm": (1.0, SoftItm(self)), "mlm": (1.0, Mlm(self))}
        return own | added_terms(self)

    def views(self, seen: Seen) -> tuple[Batch, Batch]:
        """Student: the distorted picture and a masked caption; teacher: both as they are."""
        batch = seen.batch
        if not seen.learning:
            return batch, batch
        student = batch | {"image_BxHxWx3": batch["image2_BxHxWx3"]}
        if self.config.text_masking > 0:
            texts = batch["token_ids_BxL"], batch["token_mask_BxL"]
            inputs = *texts, self.setting.vocabulary, self.config.text_masking
            masked = seen.draw("masked_caption", lambda key: mask_tokens(key, *inputs))
            student |= {"token_ids_BxL": masked.token_ids_BxL}
        return student, batch

    def word_maps(
        self, params: Params, image_BxTxD: Array, text_BxLxD: Array, mask_BxL: Array
    ) -> Array:
        """Where each word's evidence for the match is, (B, L, N), without gradient.

        Grad-CAM of the match logit of true pairs on the cross-attention of the middle fusion layer.
        """
        config, net = self.network.config, self.apply(jax.lax.stop_gradient(params))
        layer = (config.fusion_layers - 1) // 2

        def piece(rows: tuple[Array, Array, Array]) -> Array:
            image_BxTxD, text_BxLxD, mask_BxL = rows
            shape = len(mask_BxL), config.heads, mask_BxL.shape[1], image_BxTxD.shape[1]

            def fuse(offset_BxHxLxT: Array) -> tuple[Array, Array]:
                inputs = text_BxLxD, mask_BxL, image_BxTxD, layer, offset_BxHxLxT
                return net.fusion_encoder.with_map(*inputs)

            def match(fused_BxLxD: Array) -> Array:
                return net.itm_logits(fused_BxLxD)[:, 1]

            return grad_cam(*attention_map(match, fuse, shape))[..., 1:]

        rows = jax.lax.stop_gradient((image_BxTxD, text_BxLxD, mask_BxL))
        return jax.lax.stop_gradient(in_pieces(piece, self.setting.pieces, rows))


class Focal(FocalItc):
    """ITC with the focal weight of the method's config."""

    def gamma(self) -> float:
        """The exponent of the weight (1 - p) of a key."""
        return self.method.config.focus


class SoftItm(Itm):
    """ALBEF's matching loss, and the same on pictures that are softened for one word."""

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """ALBEF's rows; the softened pictures beside their captions and beside hard ones."""
        rows = super().rows(seen)
        if self.method.config.soft_weight == 0:
            return rows
        image_BxTxD, mask_BxL = seen.image_tokens_BxTxD, seen.batch["token_mask_BxL"]
        text_BxLxD = seen.student.text_tokens_BxLxD
        map_BxLxN = self.method.word_maps(seen.params, image_BxTxD, text_BxLxD, mask_BxL)
        word_BxL = word_places(
            seen.batch["token_ids_BxL"], mask_BxL, self.method.setting.vocabulary
        )
        logits_BxL = jnp.where(word_BxL, 0.0, -1e9)
        word_B = seen.draw("soft_word_B", lambda key: jax.random.categorical(key, logits_BxL))
        mask_BxN = soft_mask(gather_positions(map_BxLxN, word_B[:, None])[:, 0])
        soft_BxTxD = softly_masked(image_BxTxD, mask_BxN)
        valid_B, hard = word_BxL.any(-1), rows["hard_text"]
        share: Metrics = {"soft/masked_share": mask_BxN.mean()}
        soft = Rows(text_BxLxD, mask_BxL, tokens_BxTxD=soft_BxTxD, valid_B=valid_B, label=1)
        beside_hard = replace(hard, tokens_BxTxD=soft_BxTxD, valid_B=valid_B & hard.valid())
        return rows | {"soft": replace(soft, metrics=share), "soft_hard_text": beside_hard}

    def weights(self) -> dict[str, float]:
        """The two kinds of softened rows share the weight."""
        half = self.method.config.soft_weight / 2
        return {"soft": half, "soft_hard_text": half}
