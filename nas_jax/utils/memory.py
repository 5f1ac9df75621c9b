"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import glob
import os

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Of mallopt(3), glibc:
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def cpu_only() -> bool:
    """Whether JAX will compute on the CPU: JAX_PLATFORMS says so, or there is no device file of an accelerator."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(map(glob.glob, ACCELERATORS))


def keep_freed_memory() -> bool:
    """Lets this process keep memory that it frees, for its next allocation; returns whether the system can.

    On CPUs a step takes its temporary arrays from malloc and gives them back. glibc returns arrays of that size to the
    system at once, which hands out empty pages again, one fault each 4 kB (`benchmarks.step --return-memory`). Must be
    called before there are other threads, as each would get a heap of its own, which cannot hold large arrays.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return all([mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1)])  # -1: never
