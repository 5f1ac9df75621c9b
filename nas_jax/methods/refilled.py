"""What VL-Match and ViLTA share: ALBEF with a language model that is trained beside it and writes
negative captions for the matching loss (`methods/refill.py`) from `nta.start_epoch` on.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.config import NegativeTextConfig
from nas_jax.methods.terms import Itm
from nas_jax.methods.text_negatives import FineItm
from nas_jax.negatives.nta import GeneratorConfig


@dataclass(frozen=True)
class RefilledConfig(AlbefConfig):
    """ALBEF's switches, and those of the language model and its captions."""

    nta: GeneratorConfig = field(default_factory=GeneratorConfig)
    negatives: NegativeTextConfig = field(default_factory=lambda: NegativeTextConfig(("refill",)))

    negative_terms: ClassVar[tuple[str, ...]] = ("negative_itm",)

    @property
    def has_generator(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Refilled(Albef):
    """A stage says whether negative captions are on."""

    def stage(self, step: int) -> bool:
        """Negative captions come in at `nta.start_epoch`."""
        return self.setting.epoch(step) >= self.config.nta.start_epoch

    def stage_starts(self) -> tuple[int, ...]:
        """The first step, and the first with negative captions."""
        start = math.ceil(self.config.nta.start_epoch * self.setting.steps_per_epoch)
        return tuple(sorted({0, start}))

    def matching(self, stage: Hashable) -> Itm:
        """The matching loss of a stage."""
        return FineItm(self) if stage else Itm(self)
