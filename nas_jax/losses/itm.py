"""Image-text matching: is this picture the one the text speaks of?

(ALBEF, section 3.2; FGITM: NAS, AAAI 2025).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.typing import Array


class MatchRows(NamedTuple):
    """One kind of rows of the matching loss."""

    logits_Bx2: Array  # class 1 = match
    label: int  # 1 for the pairs of the data, 0 for negatives
    valid_B: Array  # bool; False where a negative equals its positive or could not be made


def cross_entropy(rows: MatchRows) -> tuple[Array, Array]:
    """Sum of the cross-entropy over valid rows, and their number."""
    valid_B = rows.valid_B.astype(jnp.float32)
    log_p_B = jax.nn.log_softmax(rows.logits_Bx2.astype(jnp.float32))[:, rows.label]
    return -jnp.sum(jnp.where(rows.valid_B, log_p_B, 0.0)), valid_B.sum()


def accuracy(rows: MatchRows) -> Array:
    """Share of valid rows whose larger logit is the label's; 0 without valid rows."""
    right_B = (rows.logits_Bx2.argmax(-1) == rows.label) & rows.valid_B
    return right_B.sum() / jnp.maximum(rows.valid_B.sum(), 1)


def itm_loss(groups: dict[str, MatchRows], weights: dict[str, float] | None = None) -> Array:
    """Mean cross-entropy over the valid rows of all groups.

    `weights` takes groups out of that common mean and adds each one's own mean times its weight
    (`method.itm.form=weighted`, which is ours). A mean over no valid row is 0.
    """
    weights = weights or {}

    def mean(names: list[str]) -> Array:
        sums, counts = zip(*(cross_entropy(groups[name]) for name in names), strict=True)
        return sum(sums) / jnp.maximum(sum(counts), 1.0)

    loss = mean([name for name in groups if name not in weights])
    for name, weight in weights.items():
        if name in groups:
            loss = loss + weight * mean([name])
    return loss
