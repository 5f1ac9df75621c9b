"""With how many threads XLA computes on a CPU."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

NARROW = 10_000_000
"""Multiply-adds of a projection from D to D over the patches of a batch. Below, one thread is
faster: each operation is so short that handing parts of it to other threads costs more than they
save (docs/performance.md, Threads on a CPU)."""
SAID_BEFORE = ("NPROC", "PJRT_NPROC", "JAX_NUM_CPU_DEVICES")
"""Environment variables with which somebody has chosen. XLA reads NPROC when it starts."""


def is_narrow(batch: int, patches: int, dim: int) -> bool:
    """Whether one thread trains a model faster than several do.

    batch: pictures of a step. patches: of a picture. dim: the width D of the encoders.
    """
    return batch * patches * dim**2 < NARROW


def take_one_thread(environment: MutableMapping[str, str], cores: int) -> bool:
    """Has XLA compute with one thread; False where there is one core or somebody has chosen.

    environment: os.environ, before JAX knows its devices. Several devices on one CPU wait for each
    other, each in a thread of its own, so they keep what they have.
    """
    several = "xla_force_host_platform_device_count" in environment.get("XLA_FLAGS", "")
    if cores < 2 or several or any(name in environment for name in SAID_BEFORE):
        return False
    environment["NPROC"] = "1"
    return True


def usable_cores() -> int:
    """Of this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
