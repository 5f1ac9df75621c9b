"""What a run is on, and how much of it the step uses: devices, memory, operations."""

from __future__ import annotations

import math
import platform
import resource
import socket
import time
from typing import Any

import jax

from nas_jax import __version__
from nas_jax.parallel.topology import CHIPS
from nas_jax.typing import PyTree
from nas_jax.utils.trees import num_params

GIB = 2**30
PEAKS = {
    "H100 PCIe": None,
    "H100 NVL": None,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v5 lite": CHIPS["v5e"].peak_flops,
    "TPU v5e": CHIPS["v5e"].peak_flops,
    "TPU v5": CHIPS["v5p"].peak_flops,
    "TPU v6": CHIPS["v6e"].peak_flops,
}
"""Published dense bfloat16 operations a second by a part of `device_kind`, the first that fits
(data sheets of NVIDIA and Google); None: several variants go by that name."""


def describe(params: PyTree, total_steps: int) -> dict[str, Any]:
    """What a start of a run should leave on record, as plain values."""
    device = jax.devices()[0]
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "devices": jax.device_count(),
        "device": device.device_kind,
        "platform": device.platform,
        "processes": jax.process_count(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "nas_jax": __version__,
        "parameters": num_params(params),
        "total_steps": total_steps,
    }


def memory() -> dict[str, float]:
    """Most memory so far in GiB: of this process, and of its fullest device where devices say so
    (CPUs do not).
    """
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    found = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()
    ]
    return found | ({"device_gib": max(peaks) / GIB} if max(peaks) else {})


def peak_flops(device_kind: str, given_tflops: float = 0.0) -> float | None:
    """Operations a second that a device can do: as given, else as published, else None."""
    if given_tflops:
        return given_tflops * 1e12
    return next((peak for part, peak in PEAKS.items() if part in device_kind), None)


def matmul_flops(jaxpr: Any) -> float:
    """Operations of all matmuls in a traced program; loops by their length, conditions by their
    costliest branch.

    What the backward pass computes again counts again. The count is the program's before it is
    split over devices.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += (
                2
                * math.prod(eqn.outvars[0].aval.shape)
                * math.prod(shape[axis] for axis in contracted)
            )
            continue
        inside = [
            getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(list(eqn.params.values()))
        ]
        counts = [matmul_flops(inner) for inner in inside if hasattr(inner, "eqns")]
        if counts:
            total += (
                max(counts)
                if eqn.primitive.name == "cond"
                else sum(counts) * eqn.params.get("length", 1)
            )
    return total
