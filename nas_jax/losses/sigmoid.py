"""A sigmoid for each picture with each text of a batch (SigLIP, Zhai et al. 2023; its code
in big_vision).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nas_jax.losses.blocks import in_blocks, scan_blocks
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array


def sigmoid_loss(
    image_BxE: Array, text_BxE: Array, temp: Array, bias: Array, block: int = 0
) -> Array:
    """-1/B sum_i sum_j log sigmoid(z_ij (x_i y_j / temp + bias)), z = 1 on the diagonal, else -1.

    image, text: unit features, float32. block: captions at a time, a divisor of B; 0 = all.
    """

    def logits(text_Jx1xE: Array) -> Array:
        return cosines(image_BxE, text_Jx1xE) / temp + bias

    return sigmoid_contrast(logits, text_BxE[:, None], jnp.ones((len(text_BxE), 1), bool), block)


def sigmoid_contrast(
    logits: Callable[[Array], Array], text_BxCxE: Array, real_BxC: Array, block: int = 0
) -> Array:
    """-sum log sigmoid(z logits) / number of real texts, float32, for C texts of each sample.

    logits: texts (J, C, E) of J samples -> (B, J, C), those of all pictures with them. z is 1
    where text and picture are of one sample, else -1. block: J, a divisor of B; 0 = B.
    """
    rows_Bx1 = jnp.arange(len(text_BxCxE))[:, None]

    def add(loss_B: Array, keys: tuple[Array, Array, Array]) -> tuple[Array, None]:
        text_JxCxE, real_JxC, number_J = keys
        sign_BxJx1 = jnp.where(rows_Bx1 == number_J, 1.0, -1.0)[..., None]
        logits_BxJxC = pin_rows(logits(text_JxCxE)).astype(jnp.float32)
        loss_BxJxC = -jax.nn.log_sigmoid(sign_BxJx1 * logits_BxJxC)
        return loss_B + jnp.where(real_JxC, loss_BxJxC, 0.0).sum((1, 2)), None

    blocks = in_blocks((text_BxCxE, real_BxC, rows_Bx1[:, 0]), block)
    start_B = pin_rows(jnp.zeros(len(text_BxCxE), jnp.float32))
    return scan_blocks(add, start_B, blocks)[0].sum() / jnp.maximum(real_BxC.sum(), 1)


def cosines(image_BxE: Array, text_JxCxE: Array) -> Array:
    """Dot products (B, J, C) of each picture with C texts of each of J samples."""
    return pin_rows(jnp.einsum("be,jce->bjc", pin_rows(image_BxE), text_JxCxE))
