"""Sigmoid loss of all pairs of a batch (SigLIP, Zhai et al. 2023, eq. 2 and algorithm 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.losses.blocks import in_blocks, scan_blocks
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array


def sigmoid_loss(
    image_BxE: Array, text_BxE: Array, scale: Array, bias: Array, block: int = 0
) -> Array:
    """-1/B sum_i sum_j log sigmoid(z_ij (scale x_i y_j + bias)), z = 1 on the diagonal, else -1.

    image, text: unit features, float32. block: captions at a time, a divisor of B; 0 = all.
    """
    image_BxE = pin_rows(image_BxE) * scale
    rows_Bx1 = jnp.arange(len(image_BxE))[:, None]

    def add(loss_B: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        text_CxE, numbers_C = block
        logits_BxC = pin_rows(jnp.einsum("be,ce->bc", image_BxE, text_CxE)) + bias
        sign_BxC = jnp.where(rows_Bx1 == numbers_C, 1.0, -1.0)
        return loss_B - jax.nn.log_sigmoid(sign_BxC * logits_BxC).sum(1), None

    blocks = in_blocks((text_BxE, jnp.arange(len(text_BxE))), block)
    start_B = pin_rows(jnp.zeros(len(image_BxE), jnp.float32))
    return scan_blocks(add, start_B, blocks)[0].mean()
