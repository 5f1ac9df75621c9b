"""Shared settings and the smallest model that has every part."""

from __future__ import annotations

import os
import tempfile

from quick_compile import QUICK

# Before jax is imported: a few simulated devices, and shapes that never broadcast by accident.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = (
    "--xla_force_host_platform_device_count=4",
    *QUICK,
    # A simulated device that waits long for another is a busy machine, and no reason to abort the
    # process.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))

# Steps that several tests compile are compiled once by each process of a session: entries are not
# written atomically.
if "PYTEST_XDIST_WORKER" in os.environ or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nas_jax-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
