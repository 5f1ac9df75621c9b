"""What the forward pass keeps for the backward pass."""

from __future__ import annotations

import flax.linen as nn
import jax

POLICIES = ("none", "dots", "full")


def rematerialised(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """The layer class, computing in the backward pass what it does not keep.

    none: keeps everything. dots: keeps the results of its projections, computes attention and what is elementwise
    again. full: keeps its input only.
    """
    if policy == "none":
        return layer
    if policy == "dots":
        return nn.remat(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return nn.remat(layer)
