"""Regions of a picture: clusters of its patches, with a fixed number and fixed shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.models.towers import unit
from nas_jax.typing import Array


def cluster_patches(patches_BxNxE: Array, regions: int, iterations: int) -> Array:
    """The region of each patch, (B, N) int32, by k-means with cosines; no gradient, no chance.

    Patches are unit vectors. It starts at the patch least like their mean, then takes, one after
    the other, the patch least like all those taken (farthest first). A region may become empty.
    """

    def one(patch_NxE: Array) -> Array:
        centres = [patch_NxE[jnp.argmin(patch_NxE @ patch_NxE.mean(0))]]
        for _ in range(regions - 1):
            like_N = (patch_NxE @ jnp.stack(centres).T).max(-1)
            centres.append(patch_NxE[jnp.argmin(like_N)])
        centre_RxE = jnp.stack(centres)
        for _ in range(iterations):
            total_RxE = in_region(patch_NxE, centre_RxE).T @ patch_NxE
            taken_Rx1 = (total_RxE != 0).any(-1, keepdims=True)
            centre_RxE = jnp.where(taken_Rx1, unit(total_RxE), centre_RxE)
        return jnp.argmax(patch_NxE @ centre_RxE.T, axis=-1)

    def in_region(patch_NxE: Array, centre_RxE: Array) -> Array:
        return jax.nn.one_hot(jnp.argmax(patch_NxE @ centre_RxE.T, axis=-1), regions)

    return jax.vmap(one)(jax.lax.stop_gradient(patches_BxNxE))


def region_features(patches_BxNxE: Array, regions: int, iterations: int) -> tuple[Array, Array]:
    """Unit features (B, R, E) of regions, which are means of their patches, and whether a region
    has any (B, R). The gradient goes to the patches, not to who is in which region.
    """
    region_BxN = cluster_patches(unit(patches_BxNxE), regions, iterations)
    in_region_BxNxR = jax.nn.one_hot(region_BxN, regions)
    total_BxRxE = jnp.einsum("bnr,bne->bre", in_region_BxNxR, patches_BxNxE)
    return unit(total_BxRxE), in_region_BxNxR.any(1)
