"""`--mode=compile`: the training step compiled for hardware that need not be there, and what the
compiler says of it.

Outermost layer, beside `runner.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from nas_jax.config import RunConfig, to_dict
from nas_jax.rehearsal.compiled import rehearse
from nas_jax.rehearsal.report import format_report
from nas_jax.utils.logging import Console


def compile_step(
    run: RunConfig, topology: str, workdir: Path | None = None, effort: str = "full"
) -> int:
    """Compiles, prints the report and writes it to WORKDIR/compile-TOPOLOGY.json.

    Returns 0 if it fits, else 1.
    """
    console = Console()
    wait = {"full": "tens of minutes for a base model", "quick": "minutes for a base model"}[effort]
    console.say(f"compiling the step of {run.name} for {topology}: {wait}")
    result = rehearse(run, topology, effort)
    console.say(format_report(run, result))
    if workdir:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / f"compile-{topology.replace(':', '-')}.json"
        path.write_text(json.dumps(result.summary() | {"config": to_dict(run)}, indent=1) + "\n")
        console.say(f"written to {path}")
    return 0 if result.fits else 1
