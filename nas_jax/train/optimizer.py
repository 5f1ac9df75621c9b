"""AdamW as ALBEF configures it, with its rule for what is decayed."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import optax

from nas_jax.train.schedules import Schedule, smooth, staircase
from nas_jax.typing import Params, PyTree
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    schedule: str = "staircase"  # "staircase": ALBEF's own; "smooth": linear warm-up and one cosine
    lr: float = 1e-4
    lr_min: float = 1e-5
    warmup_lr: float = 1e-5
    warmup_units: int = 20  # staircase: steps of the stairs, ...
    warmup_unit_steps: int = 100  # ... each this many iterations long
    warmup_steps: int = 2000  # smooth
    cosine_epochs: int = 0  # staircase: epochs of the cosine; 0 = the run's epochs
    weight_decay: float = 0.02
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0  # global gradient norm; 0 = no clipping, as ALBEF

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if self.schedule not in ("staircase", "smooth"):
            raise ConfigError(
                f"schedule={self.schedule!r}", "staircase or smooth", "set one of them"
            )
        if min(self.lr, self.lr_min, self.warmup_lr, self.weight_decay, self.clip_norm) < 0:
            raise ConfigError(
                f"lr={self.lr}, lr_min={self.lr_min}, warmup_lr={self.warmup_lr}, "
                f"weight_decay={self.weight_decay}, clip_norm={self.clip_norm}",
                "no negative value",
                "mend the sign",
            )


def decayed(params: Params) -> PyTree:
    """True where weight decay applies: not to 1-D tensors nor to biases.

    Position tables, CLS and temperature are.
    """

    def rule(path: tuple, value: jax.Array) -> bool:
        return value.ndim != 1 and path[-1].key != "bias"

    return jax.tree_util.tree_map_with_path(rule, params)


def make_schedule(config: OptimizerConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    """The learning rate of each step, counted from 0."""
    if config.schedule == "smooth":
        return smooth(config.lr, config.lr_min, config.warmup_lr, config.warmup_steps, total_steps)
    return staircase(
        config.lr,
        config.lr_min,
        config.warmup_lr,
        config.warmup_units,
        config.warmup_unit_steps,
        steps_per_epoch,
        config.cosine_epochs or max(1, round(total_steps / steps_per_epoch)),
    )


def make_optimizer(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """AdamW with decoupled decay, and its schedule."""
    schedule = make_schedule(config, total_steps, steps_per_epoch)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule),
    ]
    return optax.chain(*parts), schedule
