"""Masked image modelling: the pixels of patches that the encoder did not see (MAE, He et al. 2022;
with a caption: SyCoCa, Ma et al. 2024).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.typing import Array

EPS = 1e-6  # of the variance of a patch, in squares of normalised pixel values


def most_relevant(relevance_BxN: Array, share: float) -> tuple[Array, Array]:
    """The round(share * N) patches of each picture with the highest relevance, at least one:
    positions (B, M), and True where they are (B, N).
    """
    batch, patches = relevance_BxN.shape
    _, positions_BxM = jax.lax.top_k(relevance_BxN, max(1, round(share * patches)))
    where_BxN = jnp.zeros((batch, patches), bool)
    return positions_BxM, where_BxN.at[jnp.arange(batch)[:, None], positions_BxM].set(True)


def pixel_rows(predicted_BxMxP: Array, pixels_BxMxP: Array) -> Array:
    """Mean squared error against the pixels of each patch with mean 0 and variance 1, (B,),
    float32.
    """
    pixels_BxMxP = pixels_BxMxP.astype(jnp.float32)
    mean_BxMx1 = pixels_BxMxP.mean(-1, keepdims=True)
    variance_BxMx1 = jnp.square(pixels_BxMxP - mean_BxMx1).mean(-1, keepdims=True)
    target_BxMxP = (pixels_BxMxP - mean_BxMx1) * jax.lax.rsqrt(variance_BxMx1 + EPS)
    return jnp.square(predicted_BxMxP.astype(jnp.float32) - target_BxMxP).mean((1, 2))
