"""Shared settings and the smallest model that has every part."""

from __future__ import annotations

import os

# Before jax is imported: a few simulated devices, and shapes that never broadcast by accident.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
