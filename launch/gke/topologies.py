"""Slices and nodes as GKE names them.

TPUs: "Plan TPUs in GKE" (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus). GPUs: "GPU
machine types" (cloud.google.com/compute/docs/gpus) and "About GPUs in GKE". Compared with the
tables of xpk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nas_jax.utils.errors import ConfigError

TPU_RESOURCE, GPU_RESOURCE = "google.com/tpu", "nvidia.com/gpu"


@dataclass(frozen=True)
class Nodes:
    """The machines of one run."""

    hardware: str  # what launch/worker.sh calls it
    selector: tuple[tuple[str, str], ...]  # labels of the nodes
    resource: str  # name of the accelerator as a resource
    chips: int  # of a node
    count: int  # nodes
    xpk: tuple[str, ...]  # the flag of xpk and its value


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x12",
    "8x8x16",
    "8x16x16",
)
# name -> (label, xpk's name, xpk counts cores and there are so many a chip, shapes); four chips a
# machine
_TPUS = {
    "v5e": ("tpu-v5-lite-podslice", "v5litepod", 1, _FLAT[1:]),
    "v5p": ("tpu-v5p-slice", "v5p", 2, _DEEP),
    "v6e": ("tpu-v6e-slice", "v6e", 1, _FLAT),
}
CHIPS_A_HOST = 4
# name -> (label, xpk's name, GPUs of a machine, machine type)
_GPUS = {
    "l4": ("nvidia-l4", "l4-8", 8, "g2-standard-96"),
    "a100": ("nvidia-tesla-a100", "a100-40gb-8", 8, "a2-highgpu-8g"),
    "h100": ("nvidia-h100-80gb", "h100-80gb-8", 8, "a3-highgpu-8g"),
    "h100-mega": ("nvidia-h100-mega-80gb", "h100-mega-80gb-8", 8, "a3-megagpu-8g"),
    "h200": ("nvidia-h200-141gb", "h200-141gb-8", 8, "a3-ultragpu-8g"),
    "b200": ("nvidia-b200", "b200-8", 8, "a4-highgpu-8g"),
}


def names() -> tuple[str, ...]:
    """Every TPU slice there is, and the GPUs with N for a number of nodes."""
    slices = (f"{name}:{shape}" for name, (*_, shapes) in _TPUS.items() for shape in shapes)
    return (*slices, *(f"{name}:N" for name in _GPUS))


def nodes(accelerator: str) -> Nodes:
    """accelerator: a TPU slice like v5e:4x4, or GPU nodes like h100:4.

    Raises ConfigError on others.
    """
    name, _, size = accelerator.partition(":")
    if name in _TPUS and size in _TPUS[name][-1]:
        label, xpk, cores, _ = _TPUS[name]
        chips = math.prod(int(length) for length in size.split("x"))
        selector = (
            ("cloud.google.com/gke-tpu-accelerator", label),
            ("cloud.google.com/gke-tpu-topology", size),
        )
        count = chips // CHIPS_A_HOST
        return Nodes(
            name,
            selector,
            TPU_RESOURCE,
            CHIPS_A_HOST,
            count,
            (f"--tpu-type={xpk}-{chips * cores}",),
        )
    if name in _GPUS and size.isdecimal() and int(size) > 0:
        label, xpk, chips, machine = _GPUS[name]
        selector = (
            ("cloud.google.com/gke-accelerator", label),
            ("node.kubernetes.io/instance-type", machine),
        )
        return Nodes(
            "gpu",
            selector,
            GPU_RESOURCE,
            chips,
            int(size),
            (f"--device-type={xpk}", f"--num-nodes={size}"),
        )
    raise ConfigError(
        f"--accelerator={accelerator}", f"one of {', '.join(names())}", "use v5e:4x4 or h100:2"
    )
