"""The neck of the visual dictionary: all around the codebook that is trained by gradient.

Source: NAS (Wang et al., AAAI 2025; NAS_ALBEF code, models/sohonecks.py).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.kernels.image_tokens import PositionTerms, Replacement
from nas_jax.models.layers import Dense
from nas_jax.models.sizes import ModelConfig
from nas_jax.typing import Array

LAYER_NORM_EPS = 1e-5


def sine_position_code(side: int, dim: int) -> np.ndarray:
    """Fixed 2-D sine code (side * side, dim) in row-major order: y half, then x half (DETR, Carion
    et al. 2020).
    """
    row_SxD, column_SxD = sine_row_and_column_codes(side, dim)
    return (row_SxD[:, None] + column_SxD[None]).reshape(side * side, dim)


def sine_row_and_column_codes(side: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes (side, dim) of rows and of columns, whose sum is that of a patch."""
    half = dim // 2
    coordinate_S = (np.arange(side) + 1) / (side + 1e-6) * 2 * np.pi
    frequency = 10000.0 ** (2 * (np.arange(half) // 2) / half)
    angle_SxF = coordinate_S[:, None] / frequency
    code_SxF = np.where(np.arange(half) % 2 == 0, np.sin(angle_SxF), np.cos(angle_SxF)).astype(
        np.float32
    )
    nothing_SxF = np.zeros_like(code_SxF)
    return np.concatenate([code_SxF, nothing_SxF], axis=-1), np.concatenate(
        [nothing_SxF, code_SxF], axis=-1
    )


class DictionaryNeck(nn.Module):
    """Everything around the quantizer that is trained by gradient."""

    config: ModelConfig
    literal_gate: bool = False

    def setup(self):
        dim, dtype = self.config.dim, jnp.dtype(self.config.dtype)
        init = nn.initializers.xavier_normal()
        self.linear = Dense(dim, dtype, init)
        self.linear_norm = nn.LayerNorm(LAYER_NORM_EPS)
        self.align_linear = Dense(dim, dtype, init)
        self.gate = nn.Dense(2, kernel_init=init if self.literal_gate else nn.initializers.zeros)
        if self.literal_gate:
            # Two values only: E[x^2] - E[x]^2 would lose their variance to rounding.
            self.gate_norm = nn.LayerNorm(LAYER_NORM_EPS, use_fast_variance=False)
        self.norm = nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype)

    def features(self, patches_BxNxD: Array) -> Array:
        """x = ReLU(LN(W v)) in float32: what is quantized."""
        return nn.relu(self.linear_norm(self.linear(patches_BxNxD).astype(jnp.float32)))

    def align(self, quantized: Array) -> Array:
        """a = W' q, any leading shape."""
        return self.align_linear(
            quantized.reshape(len(quantized), -1, quantized.shape[-1])
        ).reshape(quantized.shape)

    def mix(self, features_BxNxD: Array, quantized_BxNxD: Array) -> Array:
        """u = g0 a + g1 x with a softmax gate on [a ; x]."""
        aligned_BxNxD = self.align(quantized_BxNxD).astype(jnp.float32)
        gate_BxNx2 = self.gate(jnp.concatenate([aligned_BxNxD, features_BxNxD], axis=-1))
        if self.literal_gate:
            gate_BxNx2 = nn.relu(self.gate_norm(gate_BxNx2))
        gate_BxNx2 = jax.nn.softmax(gate_BxNx2)
        return gate_BxNx2[..., :1] * aligned_BxNxD + gate_BxNx2[..., 1:] * features_BxNxD

    def finish(self, mixed_BxNxD: Array) -> Array:
        """h = LN(u + p) with the fixed position code p."""
        return self.norm(mixed_BxNxD + self._position(mixed_BxNxD.shape[1])[None])

    def replacement(self, where_BxN: Array, new_BxD: Array) -> Replacement:
        """`finish` of the token new_BxD at the patches `where`, in the terms of a replacement."""
        new_BxD, dim = new_BxD.astype(jnp.float32), new_BxD.shape[-1]
        base_BxD, position_NxD = _centred(new_BxD), _centred(self._position(where_BxN.shape[1]))
        variance_BxN = jnp.mean(base_BxD**2, -1)[:, None] + jnp.mean(position_NxD**2, -1)[None]
        variance_BxN += (
            2
            / dim
            * jnp.einsum("bd,nd->bn", base_BxD, position_NxD, precision=jax.lax.Precision.HIGHEST)
        )
        scale_BxN = jax.lax.rsqrt(jnp.maximum(variance_BxN, 0.0) + LAYER_NORM_EPS)
        return Replacement(where_BxN, base_BxD * self.norm.variables["params"]["scale"], scale_BxN)

    def position_terms(self) -> PositionTerms:
        """What replaced tokens have in common."""
        norm = self.norm.variables["params"]
        codes = sine_row_and_column_codes(math.isqrt(self.config.num_patches), self.config.dim)
        row_SxD, column_SxD = (
            _centred(jnp.asarray(code_SxD)) * norm["scale"] for code_SxD in codes
        )
        return PositionTerms(row_SxD, column_SxD, norm["bias"])

    def _position(self, patches: int) -> Array:
        return jnp.asarray(sine_position_code(math.isqrt(patches), self.config.dim))


def _centred(x: Array) -> Array:
    return x - x.mean(-1, keepdims=True)
