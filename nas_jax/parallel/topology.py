"""Chips that need not be there: names, sizes, and the devices that the compiler takes for them."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import jax

from nas_jax.utils.errors import ConfigError

LOCAL = "local"


@dataclass(frozen=True)
class Chip:
    """One accelerator. Memory and peak as Google's Cloud TPU documentation gives them; the clock
    follows from the peak and the size of the matrix units."""

    hbm_bytes: float  # a chip
    peak_flops: float  # dense bfloat16, a second
    clock_hz: float


CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 1.5e9),
    "v5p": Chip(95 * 2**30, 459e12, 1.75e9),
    "v6e": Chip(32 * 2**30, 918e12, 1.75e9),
}


def topology_devices(topology: str) -> tuple[list[Any], Chip | None]:
    """Devices to compile for: those of this machine for "local", else e.g. "v5e:16x16"; and what is
    known of the chip.

    Raises ConfigError on a name that libtpu does not know, or where libtpu is not installed.
    """
    if topology == LOCAL:
        return jax.devices(), None
    name = topology.split(":")[0]
    if name not in CHIPS or ":" not in topology:
        raise ConfigError(
            f"--topology={topology}",
            f"local, or one of {', '.join(CHIPS)} and its shape",
            "use v5e:16x16",
        )
    if "TPU_LIBRARY_PATH" not in os.environ and not importlib.util.find_spec("libtpu"):
        raise ConfigError(
            f"--topology={topology} without libtpu",
            "libtpu, which needs no TPU",
            "pip install libtpu",
        )
    # libtpu would ask for the metadata of a TPU machine, and lock itself for one process.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "none",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # jaxlib's own error classes, by version
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"--topology={topology} ({reason})", "a shape that exists", "use v5e:4x4 or v5p:4x4x4"
        ) from error
    return list(described.devices), CHIPS[name]
