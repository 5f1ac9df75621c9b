"""The gate of an export: PyTorch must compute from it what JAX computes from the checkpoint.

Both sides run in float32 on the same inputs, random ones and pictures with captions. Compared are
all outputs and what stands between the layers; a difference above `TOLERANCE` of the scale of an
array refuses the export, with a table that begins with the first layer that differs. There is no
way around it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert.gate_apart import run_torch
from nas_jax.convert.gate_inputs import CASES, channels_first, make_inputs
from nas_jax.convert.gate_jax import run_jax
from nas_jax.convert.gate_rows import GateReport, compare, judge
from nas_jax.train.trained import Trained


def check(
    export: Path,
    trained: Trained,
    config: Mapping[str, Any],
    plain: str = "",
    python: str = sys.executable,
    say: Callable[[str], None] = print,
) -> GateReport:
    """Compares an export with its checkpoint, one side after the other. Raises GateRefused where
    they differ.

    plain: subfolder with the dual encoder as BLIP. python: the interpreter with torch and
    transformers.
    """
    with tempfile.TemporaryDirectory(prefix="nas_jax-gate-") as folder:
        inputs, ours, theirs = (Path(folder, f"{name}.npz") for name in ("inputs", "jax", "torch"))
        given = make_inputs(config, trained.tokenizer)
        say("the gate: JAX")
        outputs = run_jax(trained, config, given)
        given |= {name: array for name, array in outputs.items() if name.endswith("/code_ids")}
        given |= {
            f"{case}/plain_pixel_values": channels_first(given[f"{case}/pixels"]) for case in CASES
        }
        sent = {name: array for name, array in given.items() if not name.endswith("/pixels")}
        np.savez(inputs, **sent)  # type: ignore[arg-type]  # stub of allow_pickle
        np.savez(ours, **outputs)  # type: ignore[arg-type]  # stub of allow_pickle
        del given, sent, outputs
        say("the gate: PyTorch")
        run_torch(
            [str(export), str(inputs), str(theirs), *([str(export / plain)] if plain else [])],
            python,
        )
        with np.load(ours) as left, np.load(theirs) as right:
            rows = tuple(compare(left, right, bool(plain)))
            facts = json.loads(str(right["facts"]))
            ties = sum(int(right[f"{case}/ties"]) for case in CASES if f"{case}/ties" in right)
    report = GateReport(rows, facts["transformers"], ties, facts["peak_bytes"])
    judge(report, say)
    return report
