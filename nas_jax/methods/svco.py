"""S-VCO: Symmetrical Visual Contrastive Optimization, Aligning Vision-Language Models with Minimal
Contrastive Images (Wu et al., 2025), carried over from language models that read pictures.

Pictures that differ in a small part, each with its own text, make a model attend to that part: a
text must be preferred with its own picture to the other one, and the other text with the other
picture. Here both are asked of ALBEF's two scores, by a margin on the ITM logit and one on the ITC
cosine of the four combinations.

Only the abstract was at hand; the paper's loss is one of preferences between answers of a language
model, so this file is a port and no reproduction. The data must have such pairs: their keys are
equal up to the mark "#", and `data.siblings=2` puts them next to each other.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from nas_jax.data.readers import SourceId
from nas_jax.methods.added import added_terms
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.minimal_pairs import PairItc, PairItm
from nas_jax.methods.terms import Itc, Itm, Mlm, Terms
from nas_jax.utils.errors import ConfigError

FORMS = ("hinge", "logistic")


@dataclass(frozen=True)
class PairConfig:
    """The symmetric margins."""

    form: str = "hinge"  # or "logistic"
    itc_margin: float = 0.2  # of cosines
    itm_margin: float = 2.0  # of logits
    itc_weight: float = 1.0
    itm_weight: float = 1.0

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        least = min(self.itc_margin, self.itm_margin, self.itc_weight, self.itm_weight)
        if self.form not in FORMS or least < 0:
            raise ConfigError(
                f"form={self.form!r}, margins or weights from {least}",
                f"one of {', '.join(FORMS)}, and margins and weights of 0 or more",
                "hinge, 0.2, 2.0, 1.0 and 1.0 are the defaults",
            )


@dataclass(frozen=True)
class SvcoConfig(AlbefConfig):
    """ALBEF's switches, and the margins."""

    name: str = "svco"
    pairs: PairConfig = field(default_factory=PairConfig)

    def check_batch(self, batch_size: int) -> None:
        """Raises ConfigError unless pairs fit into the batch and the blocks of hard negatives."""
        super().check_batch(batch_size)
        self.itm.check_batch(batch_size, pairs=True)


@dataclass(frozen=True)
class Svco(Albef):
    """State: ALBEF's."""

    Config = SvcoConfig

    @property
    def wants(self) -> tuple[Any, ...]:
        """Who is whose sibling."""
        return (SourceId(), *super().wants)

    def terms(self, stage: Hashable) -> Terms:
        """ALBEF's three losses, and the two margins."""
        config = self.config.pairs
        own = {
            "itc": (1.0, Itc(self)),
            "itm": (1.0, Itm(self)),
            "mlm": (1.0, Mlm(self)),
            "pair_itc": (config.itc_weight, PairItc(self)),
            "pair_itm": (config.itm_weight, PairItm(self)),
        }
        return own | added_terms(self)
