"""SyCoCa: Symmetrizing Contrastive Captioners (Ma et al. 2024, arXiv 2401.02137), on ALBEF.

Captioning makes the picture explain the words; the other direction is missing: the words should
explain the picture. A head restores masked patches from the caption (text-guided masked image
modelling), and the patches that the caption speaks of are the ones to mask (attentive masking).

No code was published, and only the abstract was at hand. Readings of ours: the teacher's attention
of the caption's content words says how relevant a patch is; the most relevant half is masked and
filled with the mean colour; caption and masked picture go through the fusion encoder as one
sequence; the targets are the pixels of each patch with mean 0 and variance 1, as in MAE. In place
of the captioner, which writes from left to right, stands ALBEF's MLM, and ITM stays: the encoders
are ALBEF's, so that scores are comparable.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.losses.masked_pixels import most_relevant, pixel_rows
from nas_jax.methods.added import added_terms
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.nva_images import word_attention
from nas_jax.methods.terms import Itc, Itm, Mlm, Seen, Term, Terms
from nas_jax.models.bert import kernel_init
from nas_jax.models.rows import fuse_together
from nas_jax.models.towers import AlbefNetwork, normalise_image
from nas_jax.models.vit import hide_patches, patchify
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import gather_positions
from nas_jax.typing import Array, Metrics
from nas_jax.utils.errors import ConfigError

MASKINGS = ("attentive", "random")


@dataclass(frozen=True)
class ImageModelling:
    """Text-guided masked image modelling."""

    weight: float = 1.0  # of its loss
    share: float = 0.5  # of the patches that are masked
    # attentive: the patches that the caption attends to most | random: any
    masking: str = "attentive"

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if self.weight < 0 or not 0 < self.share < 1:
            raise ConfigError(
                f"weight={self.weight}, share={self.share}",
                "a weight of 0 or more and a share between 0 and 1",
                "1 and 0.5 are the defaults",
            )
        if self.masking not in MASKINGS:
            raise ConfigError(
                f"masking={self.masking!r}", f"one of {', '.join(MASKINGS)}", "set one of them"
            )


@dataclass(frozen=True)
class SycocaConfig(AlbefConfig):
    """ALBEF's switches, and those of image modelling."""

    name: str = "sycoca"
    images: ImageModelling = field(default_factory=ImageModelling)


class SycocaNetwork(AlbefNetwork):
    """ALBEF's network with a head for the pixels of a patch."""

    def setup(self):
        super().setup()
        pixels = 3 * self.config.patch_size**2
        self.pixel_head = nn.Dense(pixels, kernel_init=kernel_init(self.config))

    def pixels(self, fused_BxMxD: Array) -> Array:
        """The pixels of patches (B, M, 3 * patch * patch), float32, in `patchify`'s order."""
        return self.pixel_head(fused_BxMxD.astype(jnp.float32))

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        image_BxTxD, text_BxLxD = super().__call__(image_BxHxWx3, token_ids_BxL, token_mask_BxL)
        self.pixels(image_BxTxD)
        return image_BxTxD, text_BxLxD


@dataclass(frozen=True)
class Sycoca(Albef):
    """State: ALBEF's."""

    Config = SycocaConfig
    Network = SycocaNetwork

    def terms(self, stage: Hashable) -> Terms:
        """L = L_itc + L_itm + L_mlm + L_tg-mim."""
        terms = {"itc": (1.0, Itc(self)), "itm": (1.0, Itm(self)), "mlm": (1.0, Mlm(self))}
        terms["images"] = (self.config.images.weight, TextGuidedImages(self))
        return terms | added_terms(self)


class TextGuidedImages(Term):
    """TG-MIM: masked patches are restored from the caption and the patches that are left."""

    def relevance(self, seen: Seen) -> Array:
        """How relevant each patch (B, N) is to the caption, as the masking reads it."""
        method = self.method
        if method.config.images.masking == "random":
            shape = len(seen.batch["token_mask_BxL"]), method.network.config.num_patches
            return seen.draw("relevance", lambda key: jax.random.uniform(key, shape))
        teacher, taught = jax.lax.stop_gradient(seen.teacher), seen.taught
        rows = {
            "tokens_BxTxD": taught.image_tokens_BxTxD,
            "text_BxLxD": taught.text_tokens_BxLxD,
            "mask_BxL": seen.batch["token_mask_BxL"],
            "ids_BxL": seen.batch["token_ids_BxL"],
        }

        def piece(rows: dict[str, Array]) -> Array:
            return word_attention(method, teacher, rows)[:, 1:]

        return jax.lax.stop_gradient(in_pieces(piece, method.setting.pieces, rows))

    def predict(self, seen: Seen, positions_BxM: Array, where_BxN: Array) -> Array:
        """The pixels of the masked patches (B, M, P), from a picture that lacks them."""
        method, mask_BxL = self.method, seen.batch["token_mask_BxL"]
        inputs = {
            "image": seen.batch["image_BxHxWx3"],
            "where": where_BxN,
            "positions": positions_BxM,
            "text": (seen.student.text_tokens_BxLxD, mask_BxL),
            "seeds": seen.draw.seeds("fusion/images", len(mask_BxL)),
        }

        def piece(inputs: dict[str, Any]) -> Array:
            net, image_BxHxWx3 = method.apply(seen.params), normalise_image(inputs["image"])
            hidden = hide_patches(image_BxHxWx3, inputs["where"], net.config.patch_size)
            tokens_BxTxD, _ = net.encode_image(hidden)
            given = inputs["text"], tokens_BxTxD, 1 + inputs["positions"], inputs["seeds"]
            return net.pixels(fuse_together(method.network, seen.params, *given))

        return in_pieces(piece, method.setting.pieces, inputs)

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """Mean squared error over the masked patches."""
        share = self.method.config.images.share
        positions_BxM, where_BxN = most_relevant(self.relevance(seen), share)
        predicted_BxMxP = self.predict(seen, positions_BxM, where_BxN)
        image_BxHxWx3 = normalise_image(seen.batch["image_BxHxWx3"])
        pixels_BxNxP = patchify(image_BxHxWx3, self.method.network.config.patch_size)
        return pixel_rows(predicted_BxMxP, gather_positions(pixels_BxNxP, positions_BxM)).mean(), {}
