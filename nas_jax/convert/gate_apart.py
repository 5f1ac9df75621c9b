"""The PyTorch side of a gate: files that run in processes of their own, without this package."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from nas_jax.convert import gate_torch
from nas_jax.convert.gate_rows import GateRefused


def run_torch(arguments: list[str], python: str = sys.executable) -> None:
    """Runs `gate_torch.py` in a process of its own. Raises GateRefused where it fails."""
    run_apart(
        gate_torch.__file__,
        arguments,
        python,
        "PyTorch cannot run the export",
        "torch and transformers, and an export that they load",
        "pip install 'nas_jax[convert]'; if they are there, report this",
    )


def run_apart(
    script: str, arguments: list[str], python: str, got: str, expected: str, remedy: str
) -> None:
    """Runs a file in a process of its own, without network and without this package.

    Raises GateRefused with these words where it fails.
    """
    # not the user's cache of remote code
    with tempfile.TemporaryDirectory(prefix="nas_jax-modules-") as modules:
        offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [python, "-I", script, *arguments],
            env=os.environ
            | offline
            | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
            stdin=subprocess.DEVNULL,  # transformers asks there where it has a question
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise GateRefused(f"{got} ({lines[-1][:300]})", expected, remedy)
