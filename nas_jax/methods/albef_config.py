"""The config of ALBEF (`methods/albef.py`), which those of its siblings extend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nas_jax.methods.added import check_terms
from nas_jax.methods.config import (
    NEGATIVE_TERMS,
    ItcConfig,
    ItmConfig,
    MlmConfig,
    NegativeTextConfig,
)
from nas_jax.methods.method import MethodConfig
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class AlbefConfig(MethodConfig):
    """ALBEF's switches; defaults are its code's."""

    name: str = "albef"
    momentum: float = 0.995  # of the teacher
    alpha: float = 0.4  # weight of the teacher's soft targets in ITC and MLM
    alpha_ramp_epochs: float = 1.0  # epochs over which alpha rises from 0
    itc: ItcConfig = field(default_factory=ItcConfig)
    itm: ItmConfig = field(default_factory=ItmConfig)
    mlm: MlmConfig = field(default_factory=MlmConfig)
    negatives: NegativeTextConfig = field(default_factory=NegativeTextConfig)
    terms: tuple[tuple[str, float], ...] = ()  # further terms (methods/terms.py) and their weights

    # the method's own losses among NEGATIVE_TERMS
    negative_terms: ClassVar[tuple[str, ...]] = ()

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        if not 0 <= self.momentum <= 1 or not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"momentum={self.momentum}, alpha={self.alpha}",
                "shares of 1",
                "0.995 and 0.4 are ALBEF's",
            )
        check_terms(self)
        self.negatives.check_model(self.has_generator)
        added = [name for name, _ in self.terms if name in NEGATIVE_TERMS]
        given = [f"itm.given={name}" for name in getattr(self.itm, "given", ())]
        self.negatives.check_terms([*self.negative_terms, *added, *given])

    def mesh_advice(self, row_devices: int) -> str:
        """Hard negatives that stay on the device of their row move no image tokens."""
        if row_devices == 1 or self.itm.mining_shards % row_devices == 0:
            return ""
        return (
            "hard negatives are drawn over device borders, which moves image tokens: "
            f"--config.method.itm.mining_shards={row_devices} keeps them at home"
        )

    def check_batch(self, batch_size: int) -> None:
        """Raises ConfigError unless queue and blocks of the batch hold whole batches."""
        self.itm.check_batch(batch_size)
        queue = self.itc.queue_size
        if queue % batch_size:
            raise ConfigError(
                f"method.itc.queue_size={queue}, data.batch_size={batch_size}",
                "a queue that holds whole batches",
                f"use method.itc.queue_size={max(1, round(queue / batch_size)) * batch_size}",
            )
