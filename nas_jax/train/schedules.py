"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from nas_jax.typing import Array

Schedule = Callable[[Array | int], Array]


def staircase(
    lr: float,
    lr_min: float,
    warmup_lr: float,
    warmup_units: int,
    unit_steps: int,
    steps_per_epoch: int,
    cosine_epochs: int,
) -> Schedule:
    """ALBEF's schedule as its code really steps it (Pretrain.py, scheduler/cosine_lr.py).

    In epoch 0 the rate rises by 1/`warmup_units` of the way after iterations 0, `unit_steps`, 2
    `unit_steps`, ...; the new rate counts from the next iteration on. Each later epoch e has one
    rate, on a cosine that reaches `lr_min` at `cosine_epochs` and stays there. An epoch 0 shorter
    than the warm-up cuts it off.
    """

    def schedule(step: Array | int) -> Array:
        epoch, iteration = step // steps_per_epoch, step % steps_per_epoch
        unit = jnp.clip((iteration - 1) // unit_steps, 0, warmup_units)
        warming = warmup_lr + unit * (lr - warmup_lr) / max(1, warmup_units)
        progress = jnp.minimum(epoch / cosine_epochs, 1.0)
        cosine = lr_min + 0.5 * (lr - lr_min) * (1 + jnp.cos(math.pi * progress))
        return jnp.where(epoch == 0, warming, cosine)

    return schedule


def smooth(
    lr: float, lr_min: float, warmup_lr: float, warmup_steps: int, total_steps: int
) -> Schedule:
    """Linear warm-up over `warmup_steps`, then one cosine down to `lr_min` at `total_steps`."""

    def schedule(step: Array | int) -> Array:
        warming = warmup_lr + (lr - warmup_lr) * step / max(1, warmup_steps)
        progress = jnp.clip((step - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)
        cosine = lr_min + 0.5 * (lr - lr_min) * (1 + jnp.cos(math.pi * progress))
        return jnp.where(step < warmup_steps, warming, cosine)

    return schedule
