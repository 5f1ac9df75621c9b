"""What layers are made of, and stacks of them: one after the other, or as a loop over stacked
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.kernels.gelu import gelu
from nas_jax.kernels.matmuls import matmul
from nas_jax.parallel.mesh import BATCH, pin
from nas_jax.typing import Array, PyTree

POLICIES = ("none", "dots", "full")


def rematerialised(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """The layer class, computing in the backward pass what it does not keep.

    none: keeps everything. dots: keeps the results of its projections, computes attention and what
    is elementwise again. full: keeps its input only.
    """
    if policy == "none":
        return layer
    if policy == "dots":
        return nn.remat(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return nn.remat(layer)


class Dense(nn.Module):
    """x W + b over the last axis; kernel (D, F), bias (F,)."""

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x_BxTxD: Array) -> Array:
        """(B, T, D) -> (B, T, F)."""
        shape = (x_BxTxD.shape[-1], self.features)
        kernel_DxF = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias_F = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        # Cast at each use, so that the gradients of several uses add up in float32.
        x_BxTxF = matmul(x_BxTxD.astype(self.dtype), kernel_DxF.astype(self.dtype))
        return x_BxTxF + bias_F.astype(self.dtype)


def feed_forward(x_BxTxD: Array, mlp_in: Dense, mlp_out: Dense) -> Array:
    """Two projections with GELU between them: (B, T, D) -> (B, T, D)."""
    return mlp_out(pin(gelu(mlp_in(x_BxTxD)), BATCH, None, "tensor"))


def run_layers(
    layers: Sequence[nn.Module], scan: bool, first: int, x: PyTree, *inputs: PyTree
) -> PyTree:
    """Calls layer(x, number, *inputs) for each layer in turn; numbers count from `first`.

    scan: as one loop, which compiles several times faster and runs slower. The parameters stay
    those of the single layers, and are stacked inside the step: both ways read the same
    checkpoints.
    """
    if not scan or len(layers) < 2 or layers[0].is_initializing():
        for number, layer in enumerate(layers, first):
            x = layer(x, number, *inputs)
        return x
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(layer.variables["params"] for layer in layers)
    )
    alone = layers[0].clone(parent=None, name=None)

    def body(x: PyTree, one: tuple[PyTree, jax.Array]) -> tuple[PyTree, None]:
        params, number = one
        return alone.apply({"params": params}, x, number, *inputs), None

    return jax.lax.scan(body, x, (stacked, first + jnp.arange(len(layers), dtype=jnp.uint32)))[0]
