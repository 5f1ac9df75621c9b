"""Local mutual information: global features against local ones of the same modality (LMI of
TCL, Yang et al., CVPR 2022; after Deep InfoMax, Hjelm et al. 2019).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from nas_jax.parallel.mesh import pin, pin_rows
from nas_jax.typing import Array

NONE = -1e9  # the logit of what does not count


def pooled_patches(patches_BxNxE: Array) -> Array:
    """Means of squares of patches, (B, M, E); the squares are floor(sqrt(s)) wide on a grid of s.

    Patches at the edge that fill no square are left out, as average pooling does.
    """
    batch, patches, width = patches_BxNxE.shape
    side = math.isqrt(patches)
    step = math.isqrt(side)
    kept = side // step
    grid = patches_BxNxE.reshape(batch, side, side, width)[:, : kept * step, : kept * step]
    grid = grid.reshape(batch, kept, step, kept, step, width)
    return grid.mean((2, 4)).reshape(batch, kept * kept, width)


def local_information(global_BxE: Array, local_BxMxE: Array, real_BxM: Array, temp: Array) -> Array:
    """-log e^(g_i.l_ik) / (e^(g_i.l_ik) + sum over j != i, r of e^(g_i.l_jr)), all / temp.

    The mean over the real locals k of each sample, (B,), float32; 0 for a sample without any. The
    other locals of the sample itself are neither positives nor negatives.

    real: bool, False on padding.
    """
    batch, count, width = local_BxMxE.shape
    local_RxE, real_R = (
        pin(x, *(None,) * x.ndim)
        for x in (local_BxMxE.reshape(-1, width).astype(jnp.float32), real_BxM.reshape(-1))
    )
    rows_BxE = global_BxE.astype(jnp.float32) / temp
    own_BxM = jnp.einsum("be,bme->bm", rows_BxE, local_BxMxE.astype(jnp.float32))
    logits_BxR = pin_rows(rows_BxE @ local_RxE.T)
    other_BxR = jnp.arange(batch)[:, None] != jnp.arange(batch * count)[None] // count
    others_B = jax.nn.logsumexp(jnp.where(other_BxR & real_R[None], logits_BxR, NONE), axis=-1)
    loss_BxM = jax.nn.softplus(others_B[:, None] - own_BxM)
    return jnp.where(real_BxM, loss_BxM, 0.0).sum(-1) / jnp.maximum(real_BxM.sum(-1), 1)
