"""Dropout whose mask depends on a seed for each row and the place in the row, on nothing else.

So a row gets the same mask on any mesh, in any piece of an accumulated batch and when it is computed again. The mask
is a hash of the place, a few integer operations that fuse with what surrounds them; there is no random number generator
whose output would be stored.
"""

from __future__ import annotations

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.typing import Array

GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads neighbouring places


def mix(x: Array) -> Array:
    """MurmurHash3's finaliser on uint32: each bit of the input changes each bit of the output with probability 1/2."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def row_bits(seeds_R: Array, shape: tuple[int, ...], salt: int) -> Array:
    """uint32 noise (R, *shape)."""
    place = jnp.zeros((1, *shape), jnp.uint32)
    stride = 1
    for axis in range(len(shape), 0, -1):
        place += jax.lax.broadcasted_iota(jnp.uint32, place.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis - 1]
    start_R = mix(seeds_R ^ jnp.uint32(salt))
    return mix(start_R.reshape(-1, *(1,) * len(shape)) + place * jnp.uint32(GOLDEN))


def sub_seeds(seeds_R: Array, count: int) -> Array:
    """Seeds (R, count) for several uses of a row."""
    return row_bits(seeds_R, (count,), GOLDEN)


class Dropout(nn.Module):
    """Zeroes a share `rate` of the entries and scales the others by 1 / (1 - rate)."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, seeds_R: Array | None) -> Array:
        """x (R, ...); seeds (R,) uint32, or None for evaluation."""
        if seeds_R is None or self.rate == 0:
            return x
        salt = zlib.crc32("/".join(self.path).encode())  # each place in the network has its own masks
        keep = row_bits(seeds_R, x.shape[1:], salt) >= jnp.uint32(round(self.rate * 2**32))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))
