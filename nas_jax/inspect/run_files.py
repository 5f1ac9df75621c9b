"""What a work directory says about its run, without a model and whatever state the run is in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_jax.checkpoint.manager import DAMAGED
from nas_jax.checkpoint.stored import Damage, complete_steps, read_record
from nas_jax.inspect.negatives_found import NEGATIVES, Found, NotFound, from_json
from nas_jax.storage.files import entries, read_text, total_bytes
from nas_jax.train.workdir import CHECKPOINTS, EVALS, METRICS, PROFILE, STARTS, TIMINGS, read_config

Entry = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """One directory in checkpoints/."""

    name: str  # a step, or damaged-STEP
    bytes: int
    damage: str = ""  # what is wrong with it, as far as its record tells


@dataclass(frozen=True)
class Evaluation:
    """One file in evals/."""

    step: int
    metrics: tuple[Entry, ...]  # key, value, chance, blind, count


@dataclass(frozen=True)
class RunFiles:
    """What was found; empty where the run has not come that far."""

    workdir: Path
    config: Mapping[str, Any]
    train: tuple[Entry, ...] = ()  # of metrics.jsonl, by step
    timings: tuple[Entry, ...] = ()
    starts: tuple[Entry, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    pictures: tuple[Path, ...] = ()
    hangs: Mapping[str, str] = field(default_factory=dict)  # hang-0.txt -> its text
    profile: bool = False
    negatives: Found | None = None  # the diagnosis, if it was made
    # a line about each file, or line of a file, that could not be used
    unreadable: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The last step that anything tells of."""
        steps = [entry["step"] for entry in self.train]
        steps += [int(one.name) for one in self.checkpoints if one.name.isdecimal()]
        return max(steps, default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None if it is counted in epochs and no start recorded them."""
        said = [start["total_steps"] for start in self.starts if "total_steps" in start]
        return (said[-1] if said else None) or self.config.get("train", {}).get("steps") or None

    @property
    def finished(self) -> bool:
        """All steps are done and saved."""
        return any(one.name == str(self.total_steps) for one in self.checkpoints)

    def value(self, dotted: str, default: Any = None) -> Any:
        """A field of the config."""
        found: Any = self.config
        for name in dotted.split("."):
            if not isinstance(found, Mapping) or name not in found:
                return default
            found = found[name]
        return found


def read_run(workdir: Path) -> RunFiles:
    """Reads `workdir`. Raises CheckpointError if there is no config.json, so no run."""
    config = read_config(workdir)
    unreadable: list[str] = []
    metrics, there = list(read_entries(workdir / METRICS, unreadable)), entries(workdir)
    return RunFiles(
        workdir,
        config,
        train=by_step(entry for entry in metrics if entry.get("kind") == "train"),
        timings=by_step(read_entries(workdir / TIMINGS, unreadable)),
        starts=tuple(read_entries(workdir / STARTS, unreadable)),
        evaluations=read_evaluations(workdir / EVALS, unreadable),
        checkpoints=_checkpoints(workdir / CHECKPOINTS),
        pictures=tuple(path for path in there if path.match("*.png")),
        hangs={path.name: read_text(path, "replace") for path in there if path.match("hang-*.txt")},
        profile=(workdir / PROFILE).is_dir(),
        negatives=read_negatives(workdir, unreadable),
        unreadable=tuple(unreadable),
    )


def read_entries(path: Path, unreadable: list[str]) -> Iterator[Entry]:
    """The objects of a JSONL file, each with an integer `step`; a line that is none adds a line to
    `unreadable`. The last one may be half written: the run may be going on.
    """
    if not path.exists():
        return
    lines = read_text(path, "replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line.strip() else None
            if entry is not None:
                yield {**entry, "step": int(entry["step"])}
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                unreadable.append(f"{path.name}, line {number}, is not an entry: left out")


def by_step(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """In order; of a step that was done twice, the last."""
    known = {entry["step"]: entry for entry in entries}
    return tuple(known[step] for step in sorted(known))


def read_evaluations(folder: Path, unreadable: list[str]) -> tuple[Evaluation, ...]:
    """The evaluations in a folder, by step; a file that is none adds a line to `unreadable`."""
    found = []
    for path in entries(folder):
        if path.suffix != ".json" or not path.stem.isdecimal():
            continue
        try:
            metrics = tuple(json.loads(read_text(path))["metrics"])
            if not all(
                {"key", "value", "chance", "blind", "count"} <= metric.keys() for metric in metrics
            ):
                raise KeyError
            found.append(Evaluation(int(path.stem), metrics))
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable.append(f"{EVALS}/{path.name} is not an evaluation: left out")
    return tuple(sorted(found, key=lambda one: one.step))


def read_negatives(workdir: Path, unreadable: list[str]) -> Found | None:
    """The diagnosis of negatives in a work directory; a file that is none adds a line."""
    path = workdir / NEGATIVES
    try:
        return from_json(read_text(path)) if path.exists() else None
    except NotFound:
        unreadable.append(f"{path.name} is not a diagnosis of negatives: left out")
        return None


def _checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    wanted, complete = (
        re.compile(rf"(?:{re.escape(DAMAGED)})?(\d+)(?:-\d+)?$"),
        complete_steps(folder),
    )
    matches = [(wanted.match(path.name), path) for path in entries(folder)]
    found = [(int(match[1]), path) for match, path in matches if match]
    return tuple(
        _checkpoint(path)
        for step, path in sorted(found)
        if not path.name.isdecimal() or step in complete
    )


def _checkpoint(path: Path) -> Checkpoint:
    size = total_bytes(path)
    if not path.name.isdecimal():
        return Checkpoint(path.name, size, "set aside by a start that could not read it")
    try:
        read_record(path)
    except Damage as error:
        return Checkpoint(path.name, size, str(error))
    return Checkpoint(path.name, size)
