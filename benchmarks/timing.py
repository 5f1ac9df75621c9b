"""CPU and wall time of what runs on a device, beside a dense matmul, and the memory it took."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.utils.errors import ConfigError


class Timing(NamedTuple):
    """Seconds and page faults of each repetition."""

    cpu: list[float]
    wall: list[float]
    faults: list[int]


def measure(run: Callable[[], Any], times: int) -> Timing:
    """CPU time of the process and wall time of each call; `run` returns arrays, for which this
    waits.
    """
    timing = Timing([], [], [])
    for _ in range(times):
        faults, cpu, wall = page_faults(), time.process_time(), time.perf_counter()
        jax.block_until_ready(run())
        timing.cpu.append(time.process_time() - cpu)
        timing.wall.append(time.perf_counter() - wall)
        timing.faults.append(page_faults() - faults)
    return timing


def page_faults() -> int:
    """How often the system has given this process a page that it did not have to read."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def dense_matmul(dtype: str, platform: str) -> Callable[[float], float]:
    """A function that multiplies for so many seconds at least: GFLOP a second; on CPUs a second of
    CPU time.
    """
    side, together = (2048, 1) if platform == "cpu" else (8192, 10)
    left, right = (
        jax.random.normal(jax.random.key(seed), (side, side), jnp.dtype(dtype)) for seed in range(2)
    )

    @jax.jit
    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        # Several at a time where one is short: what is measured is the device, not the way to it.
        for _ in range(together):
            left = left @ right
        return left

    right = right * side**-0.5  # the product stays as large as it was
    measure(lambda: multiply(left, right), 1)  # compiles

    def rate(seconds: float) -> float:
        spent: list[float] = []
        while sum(spent) < seconds or not spent:
            timing = measure(lambda: multiply(left, right), 1)
            spent += timing.cpu if platform == "cpu" else timing.wall
        return together * 2 * side**3 / 1e9 * len(spent) / sum(spent)

    return rate


def peak_memory() -> dict[str, Any]:
    """Megabytes that were in use at most: on the device where it says so, else by this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_MB": stats["peak_bytes_in_use"] / 1e6, "peak_memory_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_MB": used / 1e6, "peak_memory_of": "process"}


def limit_threads(count: int) -> None:
    """Leaves this process `count` of its CPUs.

    Must come before the first use of a device: it counts them then.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--threads on this system", "Linux", "leave it out")
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(allowed):
        raise ConfigError(
            f"--threads={count}", f"1 to {len(allowed)}, the CPUs of this process", "change it"
        )
    os.sched_setaffinity(0, allowed[:count])
