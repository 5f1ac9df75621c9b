"""Symmetric margin on two pairs that differ in little (S-VCO; here on scores of pictures and
texts).

Each text prefers its own picture to the other one, and each picture its own text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.typing import Array


def partners(size: int) -> Array:
    """The other row of each row's pair, (B,): rows 2k and 2k + 1 are a pair. The size is even."""
    return jnp.arange(size) ^ 1


def symmetric_margin(
    own_B: Array, cross_B: Array, valid_B: Array, margin: float, form: str = "hinge"
) -> tuple[Array, Array]:
    """The mean over valid rows of both preferences, 0 without any; and the share that holds.

    own: the score of each text with its own picture; cross: with the picture of its partner. What
    is left of the four scores of a pair are those of the partner's row. form: "hinge",
    max(0, margin - difference), is 0 where the margin holds; "logistic", log(1 + exp(margin -
    difference)), never is.
    """
    other_B = partners(len(own_B))
    # the text prefers its picture; the picture prefers its text
    difference_2xB = jnp.stack([own_B - cross_B, own_B - cross_B[other_B]]).astype(jnp.float32)
    penalty = {"hinge": jax.nn.relu, "logistic": jax.nn.softplus}[form]
    count = jnp.maximum(2 * valid_B.sum(), 1)
    loss = jnp.where(valid_B, penalty(margin - difference_2xB), 0.0).sum() / count
    return loss, ((difference_2xB > 0) & valid_B).sum() / count
