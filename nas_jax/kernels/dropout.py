"""Dropout whose mask depends on a seed for each row and the place in the row, on nothing else.

So a row gets the same mask on any mesh, in any piece of an accumulated batch, when it is computed
again, when only some of its tokens are computed, and at any padded length. The mask is a hash of
the place, a few integer operations that fuse with what surrounds them; there is no random number
generator whose output would be stored.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp

from nas_jax.typing import Array

GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads neighbouring places
# of the axes of a place; odd, so that no two axes walk in step
STRIDES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)


def mix(x: Array) -> Array:
    """MurmurHash3's finaliser on uint32: each bit of the input changes each bit of the output with
    probability 1/2.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def token_seeds(seeds_R: Array | None, length: int) -> Array | None:
    """A seed for each token (R, L) from one for each row; None stays None."""
    if seeds_R is None:
        return None
    seeds_RxL = mix(
        mix(seeds_R)[:, None] + jnp.arange(length, dtype=jnp.uint32)[None] * jnp.uint32(GOLDEN)
    )
    # Hashes in hashes would be computed again for every entry that they are fused with, and compile
    # for minutes.
    return jax.lax.optimization_barrier(seeds_RxL)


def layer_seeds(seeds: Array | None, layer: Array | int) -> Array | None:
    """Other seeds for each layer."""
    return (
        None if seeds is None else seeds + (jnp.asarray(layer, jnp.uint32) + 1) * jnp.uint32(GOLDEN)
    )


def noise(
    seeds: Array, salt: str, shape: tuple[int, ...], axes: tuple[int, ...], first: int = 0
) -> Array:
    """uint32 noise of a shape. `seeds` broadcast to it and tell the rows; `axes` are those along
    which places count.

    first: place of the first entry along the last of the axes, where the array is a part of a
    longer one.
    """
    place = jnp.uint32(first * STRIDES[len(axes) - 1] % 2**32)
    for axis, stride in zip(axes, STRIDES, strict=False):
        ones = [1] * len(shape)
        ones[axis] = shape[axis]
        place += jax.lax.broadcasted_iota(jnp.uint32, ones, axis) * jnp.uint32(stride)
    return mix((seeds ^ jnp.uint32(zlib.crc32(salt.encode()))) + place)


def dropout(
    x: Array, rate: float, seeds: Array | None, salt: str, axes: tuple[int, ...], first: int = 0
) -> Array:
    """Zeroes a share `rate` of the entries and scales the others by 1 / (1 - rate); see `noise`.

    Without seeds it does nothing (evaluation). Each place in a layer needs a salt of its own.
    """
    if seeds is None or rate == 0:
        return x
    keep = noise(seeds, salt, x.shape, axes, first) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))
