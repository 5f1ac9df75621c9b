"""Focal loss against soft targets (Lin et al. 2017; for ITC: SoftMask++, CVPR 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.typing import Array


def focal_cross_entropy(logits_RxP: Array, target_RxP: Array, gamma: float) -> Array:
    """-sum_p target (1 - p)^gamma log p of each row, (R,), float32; gamma 0: cross-entropy.

    The weight (1 - p)^gamma has its gradient, as in the usual focal loss.
    """
    log_p_RxP = jax.nn.log_softmax(logits_RxP.astype(jnp.float32))
    # 1 - p may round to 0, where a power below 1 has no finite gradient.
    rest_RxP = jnp.maximum(1 - jnp.exp(log_p_RxP), 1e-12)
    return -jnp.sum(target_RxP * rest_RxP**gamma * log_p_RxP, axis=-1)
