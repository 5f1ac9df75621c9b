"""Contrast of pictures with parts of captions (C2LIP, CVPR 2026; its code, C2LIP_Loss)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import pin, pin_rows
from nas_jax.typing import Array


def sigmoid_contrast(logits_BxBxC: Array, real_BxC: Array) -> Array:
    """-sum log sigmoid(z logits) / number of real texts, float32 (SigLIP, Zhai et al. 2023).

    logits: of picture b with text c of sample j; z is 1 where j = b and -1 elsewhere.
    """
    own_BxB = jnp.eye(len(logits_BxBxC), dtype=bool)
    sign_BxBx1 = jnp.where(own_BxB, 1.0, -1.0)[..., None]
    loss_BxBxC = -jax.nn.log_sigmoid(sign_BxBx1 * logits_BxBxC.astype(jnp.float32))
    return jnp.where(real_BxC[None], loss_BxBxC, 0.0).sum() / jnp.maximum(real_BxC.sum(), 1)


def cosines(image_BxE: Array, text_BxCxE: Array) -> Array:
    """Dot products (B, B, C) of each picture with the texts of each sample."""
    return pin_rows(jnp.einsum("be,jce->bjc", image_BxE, pin(text_BxCxE, None, None, None)))


def attended_cosines(patches_BxNxE: Array, text_BxCxE: Array) -> Array:
    """Cosines (B, B, C) of each text with what it sees of each picture.

    A text sees the sum of the patches, weighted by a softmax over patches of their dot products
    with it: pooling without parameters. One text of each sample at a time, so that the weights of
    all never stand in memory together.
    """
    patches_BxNxE = patches_BxNxE.astype(jnp.float32)

    @jax.checkpoint
    def one(text_JxE: Array) -> Array:
        text_JxE = pin(text_JxE, None, None)
        weight_BxJxN = jax.nn.softmax(jnp.einsum("je,bne->bjn", text_JxE, patches_BxNxE))
        seen_BxJxE = jnp.einsum("bjn,bne->bje", pin_rows(weight_BxJxN), patches_BxNxE)
        norm_BxJ = jnp.sqrt(jnp.maximum(jnp.sum(seen_BxJxE**2, -1), 1e-16))
        return pin_rows(jnp.einsum("bje,je->bj", seen_BxJxE, text_JxE) / norm_BxJ)

    return jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(text_BxCxE, 1, 0)), 0, 2)
