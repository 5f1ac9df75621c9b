"""Which checkpoints stay on the disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_jax.utils.errors import ConfigError

MODES = ("max", "min")


@dataclass
class Retention:
    """The newest, every so many steps, and the best. An Orbax preservation policy that learns
    metrics after the save.

    Orbax's own `BestN` takes metrics only together with the save, which is before the evaluation.
    """

    keep: int = 2  # the newest so many
    keep_every: int = 0  # and all at multiples of so many steps; 0 = none
    keep_best: int = 1  # and so many of the best by `best_metric`
    best_metric: str = ""  # key of an evaluation; "" = none is best
    best_mode: str = "max"  # "max": greater is better; "min": smaller
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)  # of the evaluated steps

    def validate(self) -> None:
        """Raises ConfigError on values that make no sense."""
        for name, least in (("keep", 1), ("keep_every", 0), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"checkpoints with {name}={getattr(self, name)}",
                    f"at least {least}",
                    "raise it",
                )
        if self.best_mode not in MODES:
            raise ConfigError(
                f"best_mode={self.best_mode!r}", f"one of {', '.join(MODES)}", "set one of them"
            )

    def kept(self, steps: Sequence[int]) -> set[int]:
        """The steps that stay, out of `steps` in rising order.

        A value that is not finite is never the best.
        """
        kept = set(steps[-self.keep :])
        if self.keep_every:
            kept |= {step for step in steps if step % self.keep_every == 0}
        if self.best_metric and self.keep_best:
            sign = 1 if self.best_mode == "max" else -1
            values = {
                step: self.metrics.get(step, {}).get(self.best_metric, math.nan) for step in steps
            }
            ranked = sorted(
                (sign * value, step) for step, value in values.items() if math.isfinite(value)
            )
            kept |= {step for _, step in ranked[-self.keep_best :]}  # of equals, the newer
        return kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """What Orbax asks after each save."""
        del context
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]
