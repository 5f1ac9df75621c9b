"""The device mesh and what lives where on it.

Axes: `data` and `fsdp` split the batch; `fsdp` also splits parameters, teacher and optimizer state;
`tensor` splits heads and the hidden layers of the feed-forward nets. The numbers of a step are the
same on any mesh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from nas_jax.typing import Array, Batch, HostBatch, PyTree
from nas_jax.utils.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
"""The axes over which rows are split."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis."""

    data: int = 0  # copies of the model; 0 = as many as the devices allow
    fsdp: int = 1  # devices that share one copy of the state, and split the batch too
    tensor: int = 1  # devices that share the heads and hidden units of each layer

    def validate(self) -> None:
        """Raises ConfigError on sizes that make no mesh."""
        if self.data < 0 or self.fsdp < 1 or self.tensor < 1:
            raise ConfigError(
                f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}",
                "at least 1 device an axis (0 for data: the rest)",
                "raise it",
            )


def make_mesh(config: MeshConfig | None = None, devices: list | None = None) -> Mesh:
    """Mesh (data, fsdp, tensor) over the first devices, or those given.

    Raises ConfigError if they do not suffice.
    """
    config = config or MeshConfig()
    config.validate()
    devices = jax.devices() if devices is None else devices
    inner = config.fsdp * config.tensor
    shape = (config.data or max(1, len(devices) // inner), config.fsdp, config.tensor)
    used = math.prod(shape)
    if used > len(devices) or (not config.data and used != len(devices)):
        raise ConfigError(
            f"a mesh of data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}",
            f"sizes whose product {'divides' if not config.data else 'is at most'} the "
            f"{len(devices)} devices",
            "change data, fsdp or tensor",
        )
    if used < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"a mesh of {used} of {len(devices)} devices",
            "all where several processes run",
            "leave data at 0",
        )
    # The axis name of the first argument changed between releases, so it is positional. Auto: Linen
    # modules do not run under explicit sharding, which is the default of make_mesh.
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:used]
    )


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over the devices that take rows."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(
    batch_size: int, mesh: Mesh, pieces: int = 1, field: str = "batch_size"
) -> None:
    """Raises ConfigError unless the batch splits evenly over the mesh, and each part into `pieces`.

    field: where the user wrote the batch size.
    """
    parts = num_row_shards(mesh) * pieces
    if batch_size % parts:
        nearest = max(parts, batch_size // parts * parts)
        pieced = f", {pieces} pieces each" if pieces > 1 else ""
        raise ConfigError(
            f"{field}={batch_size}",
            f"a multiple of {parts} ({num_row_shards(mesh)} devices with rows{pieced})",
            f"use {nearest}",
        )


def put_batch(batch: HostBatch, mesh: Mesh) -> Batch:
    """Moves the rows this process loaded to its devices; the result is the global batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
    """The arrays of a tree whole, for this process alone. All processes must call it.

    With one process the arrays stay as they are.
    """
    if jax.process_count() == 1:
        return tree
    copied = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), copied)


def pin(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Fixes where an activation lives: a mesh axis (or axes, or None) for each leading dimension.

    Does nothing unless a mesh is set (`jax.set_mesh`), so that models also run alone. Without it
    the partitioner may choose to gather a whole batch in the middle of a layer.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def row_devices() -> int:
    """Devices that the rows of a batch are split over, in the mesh that is set; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_row_shards(mesh)


def pin_rows(x: Array) -> Array:
    """An activation with rows first, whole in all other dimensions."""
    return pin(x, BATCH, *(None,) * (x.ndim - 1))


def take_rows(x: Array, index_B: Array, shards: int = 1) -> Array:
    """x[index_B]; no row leaves its device.

    Each index must be in the row's own block of B / shards rows.
    """
    if shards == 1 and row_devices() > 1:
        return pin_rows(x[index_B])
    block = x.shape[0] // shards
    blocks = pin_rows(x.reshape(shards, block, *x.shape[1:]))
    local = pin_rows(index_B.reshape(shards, block) % block)
    return pin_rows(pin_rows(_take(blocks, local)).reshape(x.shape))


def gather_positions(x_BxLxD: Array, positions_BxM: Array) -> Array:
    """Rows of the middle axis: (B, L, D) at (B, M) -> (B, M, D); also (B, L) -> (B, M)."""
    if x_BxLxD.ndim == 2:
        return jnp.take_along_axis(x_BxLxD, positions_BxM, axis=1)
    return jnp.take_along_axis(x_BxLxD, positions_BxM[..., None], axis=1)


@jax.custom_vjp
def _take(blocks: Array, index: Array) -> Array:
    """blocks (S, N, ...) -> (S, M, ...), index (S, M).

    The gradient is a matmul with the index as 0 and 1, which on TPUs is faster than adding rows
    where they belong, and on GPUs adds in the same order each time.
    """
    return jax.vmap(lambda rows, index: rows[index])(blocks, index)


def _take_backward(saved: tuple[Array, int], grad: Array) -> tuple[Array, None]:
    index, size = saved
    chosen_SxMxN = (index[..., None] == jnp.arange(size, dtype=index.dtype)).astype(grad.dtype)
    return jnp.einsum(
        "smn,sm...->sn...", chosen_SxMxN, grad, precision=jax.lax.Precision.HIGHEST
    ), None


_take.defvjp(lambda blocks, index: (_take(blocks, index), (index, blocks.shape[1])), _take_backward)
