"""Contrast inside one modality: a sample against the teacher's features of it and of others (IMC
of TCL, Yang et al., CVPR 2022).
"""

from __future__ import annotations

import jax.numpy as jnp

from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.parallel.mesh import pin, pin_rows
from nas_jax.typing import Array


def own_cross_entropy(rows_BxE: Array, taught_BxE: Array, queue_QxE: Array, temp: Array) -> Array:
    """-log softmax(row . keys / temp) at the own key, (B,), float32.

    Keys are the teacher's features of the batch, where row i has key i, and those of the queue,
    which may be empty. All features are unit vectors.
    """
    keys = (pin(taught_BxE, None, None), pin(queue_QxE, None, None))
    groups = keys[: 1 + (queue_QxE.shape[0] > 0)]
    logits = tuple(pin_rows(rows_BxE / temp @ keys_PxE.T) for keys_PxE in groups)
    truth = (jnp.arange(len(rows_BxE)), None)[: len(groups)]
    return soft_cross_entropy(logits, None, truth, jnp.float32(0))
