"""From inputs to a finished folder, going on where an earlier run stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_jax.data.prepare.folder import (
    OVERLAPS,
    RUN,
    check_owner,
    is_whole,
    locked,
    make_folder,
    read_unit_file,
    write_durably,
)
from nas_jax.data.prepare.inputs import list_inputs, plan, stat_inputs
from nas_jax.data.prepare.items import Unit, overlap_reason
from nas_jax.data.prepare.manifest import Labels, by_reason, merge, relabel
from nas_jax.data.prepare.summary import loss_table, say_summary
from nas_jax.data.prepare.units import Options, unit_fingerprint
from nas_jax.data.prepare.workers import Progress, TooMuchLost, run_units
from nas_jax.data.prepared_files import FORMAT, MANIFEST, UNITS, is_prepared
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.logging import Console


def prepare(
    inputs: Sequence[str],
    out: str | os.PathLike,
    options: Options = Options(),  # noqa: B008 (frozen)
    labels: Labels = Labels(),  # noqa: B008
    workers: int | None = None,
    max_lost: float = 0.05,
    console: Console | None = None,
) -> dict[str, Any]:
    """Prepares the folder `out`, or finishes what an earlier call began. Returns the manifest.

    Args:
      workers: processes; None takes one a core, 0 works in this process.
      max_lost: a larger share of lost pictures is an error. It ends the work early where the rest
      of the input cannot make up for it.

    Raises:
      ConfigError: options out of range, or a folder that belongs to other inputs or options.
      DataError: inputs that cannot be used, or too many losses. What is finished stays.
    """
    console = console or Console()
    options.validate()
    if not 0 <= max_lost <= 1:
        raise ConfigError(f"--max-lost {max_lost}", "a share in [0, 1]", "0.05 is usual")
    out = Path(out)
    listed = list_inputs(inputs, options.groups)
    run = {"format": FORMAT, "inputs": stat_inputs(listed), "options": options.fingerprint()}
    check_owner(out, run)
    whole = is_prepared(out) and is_whole(out)
    # Planned before anything is written: most mistakes show here.
    units = (
        []
        if whole
        else list(
            plan(
                listed,
                options.image_root,
                options.splits,
                options.tfds_captions,
                strip=options.strip,
            )
        )
    )
    make_folder(out)
    with locked(out):
        if whole:
            manifest = relabel(out, labels)
            console.say(f"{out} is prepared already, id {manifest['id']}: nothing to do")
            return manifest
        for stale in (*out.glob("*.tmp-*"), *Path(out, UNITS).glob("*.tmp-*")):
            stale.unlink()
        Path(out, MANIFEST).unlink(missing_ok=True)
        write_durably(Path(out, UNITS, RUN), json.dumps(run))
        finish_units(units, out, options, workers, max_lost, console)
        described = {"inputs": list(inputs), "files": len(listed)}
        manifest = merge(out, len(units), described, options, labels)
        say_summary(manifest, out, console)
        return manifest


def finish_units(
    units: Sequence[Unit],
    out: Path,
    options: Options,
    workers: int | None,
    max_lost: float,
    console: Console,
    store: bool = True,
) -> None:
    """Prepares those that are not finished. Raises UserError."""
    made = {number: read_unit_file(out, number) for number in range(len(units))}
    finished = {
        number: found
        for number, found in made.items()
        if found and found["fingerprint"] == unit_fingerprint(units[number], options)
    }
    todo = [(number, unit) for number, unit in enumerate(units) if number not in finished]
    if finished and todo:
        console.say(f"{len(finished)} of {len(units)} shards are finished already")
    seen, lost = (
        sum(column) for column in zip((0, 0), *map(_seen_and_lost, finished.values()), strict=True)
    )
    progress = Progress(units, max_lost, console, seen, lost)
    for number, found in finished.items():
        progress.skip(number, found["images_in"])
    if todo:
        Path(out, UNITS, OVERLAPS).unlink(missing_ok=True)
    if workers is None:
        workers = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if todo and not progress.beyond:
        with contextlib.suppress(TooMuchLost), contextlib.closing(console):
            run_units(todo, out, options, workers, store, progress)
    if progress.too_much or not progress.seen:
        done = [
            unit for unit in (read_unit_file(out, number) for number in range(len(units))) if unit
        ]
        if lost := by_reason(loss for unit in done for loss in unit["losses"]):
            console.say(loss_table(lost, sum(unit["images_in"] for unit in done)))
        raise DataError(
            f"{progress.lost} of {progress.seen} images lost",
            f"at most a share of {max_lost:g} (--max-lost)"
            if progress.seen
            else "pictures with captions",
            "mend the input, or run the same command with a larger --max-lost; finished shards "
            "are kept"
            if progress.seen
            else "check the inputs",
        )


def _seen_and_lost(unit: dict[str, Any]) -> tuple[int, int]:
    """Pictures of a unit, and losses but for those that --leave-out asked for."""
    return unit["images_in"], sum(
        not loss.reason.startswith(overlap_reason("")) for loss in unit["losses"]
    )
