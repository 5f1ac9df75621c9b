"""Masked visual modelling: which code of a dictionary does a masked patch have (SOHO, Huang et al.,
CVPR 2021; SOHO code, MVM).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import gather_positions
from nas_jax.typing import Array


class MaskedPatches(NamedTuple):
    """The patches of each picture that are masked, and those of them that are asked for."""

    where_BxN: Array  # bool, True on all patches with the drawn code
    positions_BxM: Array  # of masked patches
    real_BxM: Array  # bool, False on filler
    code_B: Array  # which they all have


def mask_patches(key: Array, code_ids_BxN: Array, most: int) -> MaskedPatches:
    """Draws a patch of each picture, and masks all patches that share its code: one alone could be
    read off its neighbours.

    most: patches that are asked for; of more, some are drawn.
    """
    batch, patches = code_ids_BxN.shape
    patch_key, rank_key = jax.random.split(key)
    patch_Bx1 = jax.random.randint(patch_key, (batch, 1), 0, patches)
    code_Bx1 = gather_positions(code_ids_BxN, patch_Bx1)
    where_BxN = code_ids_BxN == code_Bx1
    rank_BxN = jnp.where(where_BxN, jax.random.uniform(rank_key, where_BxN.shape), -1.0)
    rank_BxM, positions_BxM = jax.lax.top_k(rank_BxN, min(most, patches))
    return MaskedPatches(where_BxN, positions_BxM, rank_BxM >= 0, code_Bx1[:, 0])


def code_rows(fused_BxMxD: Array, codes_KxD: Array, masked: MaskedPatches, temp: float) -> Array:
    """Cross-entropy of the masked code under softmax(cosine(fused, codes) / temp), summed over the
    real positions of each row, (B,), float32. No gradient goes to the codes.
    """

    def unit(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))

    codes_KxD = unit(jax.lax.stop_gradient(codes_KxD))
    logits_BxMxK = jnp.einsum("bmd,kd->bmk", unit(fused_BxMxD), codes_KxD) / temp
    log_p_BxMxK = jax.nn.log_softmax(logits_BxMxK)
    right_BxM = jnp.take_along_axis(log_p_BxMxK, masked.code_B[:, None, None], axis=-1)[..., 0]
    return -jnp.where(masked.real_BxM, right_BxM, 0.0).sum(-1)
