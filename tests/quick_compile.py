"""Flags of XLA with which tests, which compile much and compute little, take less time."""

from __future__ import annotations

from importlib.metadata import version

QUICK: tuple[str, ...] = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
if version("jaxlib").startswith("0.10."):  # later ones end at a flag that they do not know
    QUICK += ("--xla_cpu_use_fusion_emitters=false",)  # compiles in half of the time
