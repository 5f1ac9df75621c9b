"""TCL: Triple Contrastive Learning (Yang et al., CVPR 2022, arXiv 2202.10401), on top of ALBEF.

Aligning pictures with captions says little about either alone, so each modality is also contrasted
with itself, and its global feature with the local ones it is made of. The alignment loss is the
mean of six terms; matching loss and masked language modelling are ALBEF's.

The formulae are those of the authors' code (models/model_pretrain.py): the teacher reads a second
view of each picture, also for MLM; contrast inside a modality has hard targets; the negatives of a
local feature are locals of other samples of the batch, never those of the sample itself. The
authors' colour jitter, grey and blur are `distort` here, on the second view alone: hues stay, as
captions name colours.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from nas_jax.data.readers import SecondView
from nas_jax.losses.local_information import local_information, pooled_patches
from nas_jax.losses.mlm import word_places
from nas_jax.methods.added import IntraModal, added_terms
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.terms import Itc, Itm, Mlm, Seen, Term, Terms
from nas_jax.models.towers import unit
from nas_jax.parallel.chunks import in_pieces
from nas_jax.typing import Array, Metrics
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class TclConfig(AlbefConfig):
    """ALBEF's switches, and those of the triple contrast."""

    name: str = "tcl"
    # Weights of the three parts; each is the mean of two of the six terms.
    cross_modal: float = 1 / 3
    intra_modal: float = 1 / 3
    local: float = 1 / 3
    distortion: float = 1.0  # of the second view (data/image_ops.py, distort)

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        weights = self.cross_modal, self.intra_modal, self.local
        if min(weights) < 0 or not 0 <= self.distortion <= 1:
            raise ConfigError(
                f"cross_modal, intra_modal, local={weights}, distortion={self.distortion}",
                "weights of at least 0 and a strength between 0 and 1",
                "1/3 each and 1 are the defaults",
            )
        if self.intra_modal and any(name == "intra_modal" for name, _ in self.terms):
            raise ConfigError(
                "terms with 'intra_modal', which TCL has already",
                "it once",
                "set its weight with method.intra_modal",
            )


@dataclass(frozen=True)
class Tcl(Albef):
    """State: ALBEF's."""

    Config = TclConfig

    @property
    def wants(self) -> tuple[Any, ...]:
        """A second view of each picture, which the teacher reads."""
        others = (field for field in super().wants if not isinstance(field, SecondView))
        return (SecondView(self.config.distortion), *others)

    def terms(self, stage: Hashable) -> Terms:
        """L = (L_i2t + L_t2i + L_i2i + L_t2t + L_lmi of images and texts) / 6 + L_itm + L_mlm."""
        config = self.config
        terms = {
            "itc": (config.cross_modal, Itc(self)),
            "intra_modal": (config.intra_modal, IntraModal(self)),
            "local": (config.local, LocalInformation(self)),
            "itm": (1.0, Itm(self)),
            "mlm": (1.0, Mlm(self)),
        }
        return terms | added_terms(self)


class LocalInformation(Term):
    """LMI, local mutual information: the student's global features against the teacher's
    local ones, in each modality.
    """

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean of both modalities."""
        net, vocabulary = self.method.apply(seen.teacher), self.method.setting.vocabulary
        captions = seen.batch["token_ids_BxL"], seen.batch["token_mask_BxL"]
        word_BxL = word_places(*captions, vocabulary)

        def project(tokens: tuple[Array, Array]) -> tuple[Array, Array]:
            image_BxTxD, text_BxLxD = tokens
            patches_BxNxE = unit(net.image_proj(image_BxTxD[:, 1:]))
            return pooled_patches(patches_BxNxE), unit(net.text_proj(text_BxLxD[:, 1:]))

        taught = seen.taught.image_tokens_BxTxD, seen.taught.text_tokens_BxLxD
        patches_BxMxE, words_BxLxE = in_pieces(project, self.method.setting.pieces, taught)
        temp, all_BxM = seen.params["temp"], jnp.ones(patches_BxMxE.shape[:2], bool)
        image_B = local_information(seen.student.image_BxE, patches_BxMxE, all_BxM, temp)
        text_B = local_information(seen.student.text_BxE, words_BxLxE, word_BxL[:, 1:], temp)
        image, text = image_B.mean(), text_B.mean()
        return (image + text) / 2, {"local/image": image, "local/text": text}
