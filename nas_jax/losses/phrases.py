"""What a part of a caption sees of a picture (C2LIP, CVPR 2026; its code, C2LIP_Loss)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array


def attended_cosines(patches_BxNxE: Array, text_JxCxE: Array) -> Array:
    """Cosines (B, J, C) of each text with what it sees of each picture.

    A text sees the sum of the patches, weighted by a softmax over patches of their dot products
    with it: pooling without parameters. One text of each sample at a time, so that the weights of
    all never stand in memory together.
    """
    patches_BxNxE = patches_BxNxE.astype(jnp.float32)

    @jax.checkpoint
    def one(text_JxE: Array) -> Array:
        weight_BxJxN = jax.nn.softmax(jnp.einsum("je,bne->bjn", text_JxE, patches_BxNxE))
        seen_BxJxE = jnp.einsum("bjn,bne->bje", pin_rows(weight_BxJxN), patches_BxNxE)
        norm_BxJ = jnp.sqrt(jnp.maximum(jnp.sum(seen_BxJxE**2, -1), 1e-16))
        return pin_rows(jnp.einsum("bje,je->bj", seen_BxJxE, text_JxE) / norm_BxJ)

    return jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(text_JxCxE, 1, 0)), 0, 2)
