"""A folder that passed the gate, and what may be written beside the model in it."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert import gate, gate_dual
from nas_jax.convert.gate_rows import GateReport
from nas_jax.train.trained import Trained

WRITERS: dict[str, str] = {
    "onnx": "nas_jax.convert.onnx_out",
    "sentence-transformers": "nas_jax.convert.sentence_out",
}
"""Name for `--also` -> module with `write(export) -> str`, a paragraph for the card, and
`check(kind, python)`, which raises ConfigError where that cannot be.

A writer adds files to `export.folder` and compares what it can compute from them with the model.
It raises a UserError (GateRefused where numbers differ); then nothing of the export is left.
"""


@dataclass(frozen=True)
class Export:
    """All files but those of `WRITERS` and the card, as the gate has passed them."""

    folder: Path
    trained: Trained
    kind: str  # nas, clip or siglip
    facts: Mapping[str, Any]  # nas: config.json; clip, siglip: `hf_dual.facts_of`
    report: GateReport
    plain: str  # subfolder with the dual encoder, "" = none
    python: str  # interpreter of a PyTorch process without nas_jax
    say: Callable[[str], None]


def check_more(names: Sequence[str], kind: str, python: str) -> None:
    """Before anything is written. kind, python: as in `Export`. Raises ConfigError."""
    for name in names:
        importlib.import_module(WRITERS[name]).check(kind, python)


def missing(packages: Sequence[str], python: str) -> list[str]:
    """Those of the packages that an interpreter does not find."""
    code = f"import importlib.util as i; print(*(n for n in {packages!r} if not i.find_spec(n)))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.split()


def jax_side(export: Export) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inputs of the gate, and what JAX computes from the checkpoint, both by `case/name`."""
    trained, facts = export.trained, export.facts
    if export.kind == "nas":
        given = gate.make_inputs(facts, trained.tokenizer)
        return given, gate.run_jax(trained, facts, given)
    given = gate_dual.dual_inputs(facts, trained.tokenizer)
    return given, gate_dual.run_jax(trained, facts, given)


def write_more(export: Export, names: Sequence[str]) -> list[str]:
    """Runs the writers of that name; returns their paragraphs. Raises their UserErrors."""
    notes = []
    for name in dict.fromkeys(names):
        notes.append(importlib.import_module(WRITERS[name]).write(export))
        export.say(f"{name}: written")
    return notes
