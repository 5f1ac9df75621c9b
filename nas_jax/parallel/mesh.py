"""The device mesh, with one axis, `data`: batches are split over it, the state is on every device."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nas_jax.typing import Batch, PyTree
from nas_jax.utils.errors import ConfigError

DATA = "data"


def make_mesh(num_devices: int = 0) -> Mesh:
    """Mesh over the first `num_devices` devices; 0 takes all. Raises ConfigError if there are not that many."""
    devices = jax.devices()
    if not 0 <= num_devices <= len(devices):
        raise ConfigError(
            f"train.num_devices={num_devices}", f"0 (all) to {len(devices)}, the devices there are", "lower it"
        )
    if num_devices and jax.process_count() > 1:
        raise ConfigError(f"train.num_devices={num_devices}", "0 where several processes run", "leave it at 0")
    devices = devices[: num_devices or len(devices)]
    # The axis name of the first argument changed between releases, so it is positional. Auto: Linen modules do not run
    # under explicit sharding, which is the default of make_mesh.
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(batch_size: int, mesh: Mesh, field: str = "data.batch_size") -> None:
    """Raises ConfigError unless the batch of the config field splits evenly over the mesh."""
    if batch_size % mesh.size:
        nearest = max(mesh.size, batch_size // mesh.size * mesh.size)
        raise ConfigError(f"{field}={batch_size}", f"a multiple of the {mesh.size} devices", f"use {nearest}")


def put_batch(batch: Batch, mesh: Mesh) -> PyTree:
    """Moves the rows this process loaded to its devices; the result is the global batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
