"""A folder that passed the gate, and what may be written beside the model in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_jax.convert.gate import GateReport
from nas_jax.train.trained import Trained

WRITERS: dict[str, str] = {}
"""Name for `--also` -> module with `write(export) -> str`, a paragraph for the card.

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


def write_more(export: Export, names: Sequence[str]) -> list[str]:
    """Runs the writers of that name; returns their paragraphs. Raises their UserErrors."""
    notes = []
    for name in dict.fromkeys(names):
        notes.append(importlib.import_module(WRITERS[name]).write(export))
        export.say(f"{name}: written")
    return notes
