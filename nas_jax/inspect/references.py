"""Reference runs: a small JSON with the averaged curves of one seed or more, and what made them.

{"format": 1, "config": {...}, "runs": [{"seed", "code", "hardware", "date", "command", "steps",
"ends", "train": {metric: [values, errors]}, "evaluations": {key: [steps, values, errors]}}]}

`steps` is the mean step of each window, `ends` its last one; null is a window without a value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.inspect.curves import Curve, Entries, read_run_entries, window_ends, windowed
from nas_jax.methods import METHODS
from nas_jax.methods.nas_config import NasConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.mesh import MeshConfig
from nas_jax.storage.files import read_text
from nas_jax.storage.paths import as_path
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import DataError
from nas_jax.utils.trees import diff, with_defaults

FORMAT = 1
EVALUATIONS = 12  # of a run that are kept, the last among them
STEP_DIGITS, VALUE_DIGITS, ERROR_DIGITS = 7, 4, 2
SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "mesh": MeshConfig,
}
EITHER = ("seed",)  # fields in which the runs of one file may differ


@dataclass(frozen=True)
class Reference:
    """The averaged curves of one run."""

    name: str
    config: Mapping[str, Any]  # empty where it is not known
    about: Mapping[str, Any]  # seed, code, hardware, date, command
    ends_K: np.ndarray  # last step of each window
    train: Mapping[str, Curve]
    evaluations: Mapping[str, Curve]


def averaged(run: Entries, command: str = "", code: str = "") -> Reference:
    """A run as a reference. command, code: what made it, where starts.jsonl does not say it."""
    ends_K, start = window_ends(run.steps_N), run.start
    versions = ", ".join(f"{name} {start[name]}" for name in ("nas_jax", "jax") if name in start)
    about = {
        "seed": run.config.get("seed"),
        "code": ", ".join(filter(None, (versions, code))),
        "hardware": f"{start['devices']} x {start['device']}" if "device" in start else "",
        "date": str(start.get("time", "")).split(" ")[0],
        "command": command,
    }
    train = {name: windowed(run.steps_N, column, ends_K) for name, column in run.train.items()}
    train = {name: _finite(curve) for name, curve in train.items()}
    evaluations = {key: _thinned(_finite(curve)) for key, curve in run.evaluations.items()}
    return Reference(run.name, run.config, about, ends_K, train, evaluations)


def _finite(curve: Curve) -> Curve:
    return _rows(curve, np.isfinite(curve.values_P))


def _thinned(curve: Curve) -> Curve:
    count = len(curve.steps_P)
    kept = np.unique(np.linspace(0, count - 1, min(count, EVALUATIONS)).round().astype(int))
    return _rows(curve, kept)


def _rows(curve: Curve, which: np.ndarray) -> Curve:
    return Curve(*(column[which] for column in vars(curve).values()))


def read_references(paths: Sequence[str]) -> list[Reference]:
    """All runs of reference files, work directories and metrics.jsonl.

    Raises DataError if they have not one config, the seed apart.
    """
    found = [one for path in paths for one in _read(path)]
    check_alike(found)
    return found


def check_alike(references: Sequence[Reference]) -> None:
    """Raises DataError on the first reference with another config than the first one's."""
    first = references[0]
    for other in references[1:]:
        both = first.config and other.config
        changed = changes(first.config, other.config, EITHER) if both else []
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise DataError(
                f"{first.name} and {other.name} differ in {', '.join(changed[:3])}{more}",
                "references of one config with other seeds",
                "compare with each by itself",
            )


def changes(
    config: Mapping[str, Any], other: Mapping[str, Any], ignore: Sequence[str] = ()
) -> list[str]:
    """A line for each field in which two configs differ, as `utils.trees.diff` gives them.

    A field that is newer than one of the configs has its default there.
    """
    name = config.get("method", {}).get("name", NasConfig.name)
    sections = SECTIONS | ({"method": METHODS[name].Config} if name in METHODS else {})
    defaults = {section: asdict(kind()) for section, kind in sections.items()}
    return diff(with_defaults(config, defaults), with_defaults(other, defaults), ignore)


def _read(path: str) -> list[Reference]:
    if as_path(path).suffix == ".json":
        try:
            text = read_text(as_path(path))
        except FileNotFoundError:
            raise DataError(f"no {path}", "a reference", "name one, see --help") from None
        return from_json(text, path)
    return [averaged(read_run_entries(path))]


# -------------------------------------------------------------------------------------------- file


def to_json(references: Sequence[Reference]) -> str:
    """The file: strict JSON, a list of numbers a line."""
    tree = {
        "format": FORMAT,
        "config": references[0].config,
        "runs": [_run_to_json(one) for one in references],
    }
    text = json.dumps(tree, indent=1, allow_nan=False)
    flat = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")
    return flat.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _run_to_json(one: Reference) -> dict[str, Any]:
    ends_K, steps_K = one.ends_K, np.full(len(one.ends_K), math.nan)
    for curve in one.train.values():
        steps_K[np.searchsorted(ends_K, curve.last_P)] = curve.steps_P
    return {
        **one.about,
        "ends": [int(end) for end in ends_K],
        "steps": _rounded(steps_K, STEP_DIGITS),
        "train": {name: _on(curve, ends_K) for name, curve in one.train.items()},
        "evaluations": {
            key: [
                [int(step) for step in curve.steps_P],
                _rounded(curve.values_P, VALUE_DIGITS),
                _rounded(curve.errors_P, ERROR_DIGITS),
            ]
            for key, curve in one.evaluations.items()
        },
    }


def _on(curve: Curve, ends_K: np.ndarray) -> list[list[float | None]]:
    """Values and errors in the windows of the run; a metric that begins later has nulls first."""
    places = np.searchsorted(ends_K, curve.last_P)
    columns = []
    for column, digits in ((curve.values_P, VALUE_DIGITS), (curve.errors_P, ERROR_DIGITS)):
        whole_K = np.full(len(ends_K), math.nan)
        whole_K[places] = column
        columns.append(_rounded(whole_K, digits))
    return columns


def _rounded(values: np.ndarray, digits: int) -> list[float | None]:
    """null for what is not finite."""
    return [float(f"{x:.{digits}g}") if math.isfinite(x) else None for x in values]


def from_json(text: str, name: str) -> list[Reference]:
    """Reads what `to_json` wrote. Raises DataError if it is something else."""
    try:
        tree = json.loads(text)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']}")
        found = [_run_from_json(run, tree["config"], name) for run in tree["runs"]]
        if not found:
            raise ValueError("no runs")
        return found
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{name}: {error!r}",
            "a reference",
            "make one: python -m nas_jax.inspect.compare --write FILE RUN",
        ) from error


def _run_from_json(run: Mapping[str, Any], config: Mapping[str, Any], name: str) -> Reference:
    about = {key: run.get(key) for key in ("seed", "code", "hardware", "date", "command")}
    config = {**config, "seed": about["seed"]} if "seed" in config else config
    train = {metric: _curve(run["steps"], *columns) for metric, columns in run["train"].items()}
    evaluations = {key: _curve(*columns) for key, columns in run["evaluations"].items()}
    return Reference(name, config, about, np.array(run["ends"], float), train, evaluations)


def _curve(steps: Sequence[float], values: Sequence, errors: Sequence) -> Curve:
    columns = np.array([steps, values, errors], float)  # None becomes nan
    steps_P, values_P, errors_P = columns[:, ~np.isnan(columns[1])]
    return Curve(steps_P, values_P, errors_P, steps_P, steps_P)
