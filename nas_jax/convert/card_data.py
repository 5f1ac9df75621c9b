"""What the hub reads of an export: the front matter of its card, and files in `.eval_results/`.

huggingface_hub's own classes write both: `ModelCardData` with `EvalResult` for the front matter
(huggingface.co/docs/hub/model-cards), `EvalResultEntry` for leaderboards
(huggingface.co/docs/hub/eval-results). Numbers come from results.json files of the checkpoint that
is exported, and from nowhere else.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_jax.convert.export import Export
from nas_jax.evals.metrics import Metric
from nas_jax.evals.results import Result, digest, flat, read
from nas_jax.train.trained import Trained
from nas_jax.train.workdir import CHECKPOINTS
from nas_jax.utils.errors import ConfigError, DataError

EVAL_RESULTS = ".eval_results"
UNTRAINED = "untrained"  # scorer of a probe on random weights: a number of no model
_ID = r"(?:[\w-]+/)?[\w.-]+"  # of a model or data set on the hub
_PATTERNS = {
    "license": (r"[a-z0-9.+-]+", "a license id of the hub, such as apache-2.0 or other"),
    "base_model": (_ID, "OWNER/NAME of a model on the hub"),
    "datasets": (_ID, "OWNER/NAME of a data set on the hub"),
    "language": (r"[a-z]{2,3}|code|multilingual", "an ISO 639 code, such as en"),
}


@dataclass(frozen=True)
class Labels:
    """What the command line says for the hub."""

    license: str = ""
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    results: tuple[str, ...] = ()  # results.json files, or folders with one
    # key of a metric -> benchmark on the hub and its task
    leaderboards: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `Labels`."""
    parser.add_argument("--license", default="", help="license id of the hub for these weights")
    for name, what in (
        ("base_model", "model on the hub that training began with"),
        ("datasets", "data set on the hub that it was trained on"),
        ("language", "language code of the texts"),
        ("results", "results.json of this checkpoint, or its folder: into the card"),
    ):
        parser.add_argument(
            f"--{name}", nargs="+", action="extend", default=[], metavar=name.upper(), help=what
        )
    parser.add_argument(
        "--leaderboard",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=DATASET:TASK",
        help="metric of --results as an entry of that benchmark on the hub",
    )


def labels_of(args: argparse.Namespace) -> Labels:
    """Raises ConfigError on a value of another form than the hub takes."""
    given = {name: getattr(args, name) for name in (*_PATTERNS, "results")}
    for name, (pattern, expected) in _PATTERNS.items():
        values = given[name] if isinstance(given[name], list) else [given[name]]
        for value in filter(None, values):
            if not re.fullmatch(pattern, value):
                raise ConfigError(f"--{name} {value}", expected, "write it as the hub does")
    boards = {}
    for text in args.leaderboard:
        found = re.fullmatch(rf"(.+)=({_ID}):([\w.-]+)", text)
        if not found:
            expected = "KEY=DATASET:TASK, such as winoground/all/itm/group=OWNER/winoground:default"
            raise ConfigError(f"--leaderboard {text}", expected, "write it so")
        boards[found[1]] = (found[2], found[3])
    many = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Labels(license=given["license"], leaderboards=boards, **many)


@dataclass(frozen=True)
class Measured:
    """A benchmark of a results.json, with the protocol of that file."""

    protocol: Mapping[str, Any]
    result: Result


def read_results(labels: Labels, trained: Trained) -> list[Measured]:
    """The benchmarks of all files of `--results`.

    Raises DataError where a file is of other weights or none, or two of them have the same metric;
    ConfigError where `--leaderboard` names a metric that none of them has.
    """
    folder = trained.workdir / CHECKPOINTS / str(trained.step)
    name = trained.config.get("name", trained.workdir.name)
    about_own = [name, trained.step, digest(folder, trained.method.scoring_state)]
    measured: list[Measured] = []
    keys: dict[str, str] = {}
    for path in dict.fromkeys(labels.results):
        protocol, results = read(path)
        about = protocol.get("checkpoint") or {}
        if [about.get(part) for part in ("name", "step", "digest")] != about_own:
            raise DataError(
                f"--results {path}, measured on {about.get('path', 'no checkpoint of a run')}",
                f"results of checkpoint {trained.step}, whose arrays are exported",
                "evaluate that checkpoint with python -m nas_jax.evals, or leave the file out",
            )
        for result in results:
            for row in result.rows:
                if keys.setdefault(row.key, path) != path:
                    got = f"{row.key} in {keys[row.key]} and in {path}"
                    raise DataError(got, "each metric once", "leave one of the files out")
            measured.append(Measured(protocol, result))
    known = [key for key in sorted(keys) if f"/{UNTRAINED}/" not in key]
    missing = [key for key in labels.leaderboards if key not in known]
    if missing:
        expected = f"one of {', '.join(known[:6])}, ..." if known else "--results with it"
        raise ConfigError(f"--leaderboard {missing[0]}", expected, "take a key of results.json")
    return measured


def front_matter(export: Export, labels: Labels, measured: Sequence[Measured]) -> str:
    """The YAML block that a card begins with, with its two lines of dashes."""
    from huggingface_hub import ModelCardData

    matching = ("image-text-matching",) if export.kind == "nas" else ()
    method = export.facts["method"]
    data = ModelCardData(
        license=labels.license or None,
        language=list(labels.language) or None,
        base_model=list(labels.base_model) or None,
        datasets=list(labels.datasets) or None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["vision-language", "image-text-retrieval", *matching, "nas_jax", method],
        model_name=export.trained.config.get("name", "model"),
        eval_results=_eval_results(labels, measured) or None,
    )
    if not measured:
        data.pop("model_name")
    return f"---\n{data.to_yaml()}\n---"


def _eval_results(labels: Labels, measured: Sequence[Measured]) -> list[Any]:
    """An EvalResult for each number that is no single category's."""
    from huggingface_hub import EvalResult

    boards = {key.split("/")[0]: board for key, (board, _) in labels.leaderboards.items()}
    out = []
    for one in measured:
        name, result = one.result.name, one.result
        protocol = {**flat(one.protocol), **result.protocol, "questions": _counts(result)}
        if result.dropped:
            protocol["dropped"] = dict(result.dropped)
        for row in result.rows:
            if row.part not in result.categories and row.scorer != UNTRAINED:
                out.append(
                    EvalResult(
                        task_type=_task(result, row.scorer),
                        dataset_type=boards.get(name, _slug(name)),
                        dataset_name=name,
                        dataset_args=_plain(protocol),
                        metric_type=row.quantity,
                        metric_name=f"{row.key}, percent",
                        metric_value=row.value,
                        metric_args=_around(row),
                    )
                )
    return out


def _task(result: Result, scorer: str) -> str:
    """The task of the hub that a number is of."""
    if result.form == "retrieval":
        return "image-text-retrieval"
    if "classes" not in result.protocol:  # see evals/zero_shot.py
        return "image-text-matching"
    return "image-classification" if scorer == "probe" else "zero-shot-image-classification"


def write_eval_results(folder: Path, labels: Labels, measured: Sequence[Measured]) -> None:
    """A file in `.eval_results/` for each metric of `--leaderboard`.

    Raises ConfigError where huggingface_hub is too old for it.
    """
    if not labels.leaderboards:
        return
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
        from huggingface_hub.utils import yaml_dump
    except ImportError as error:
        raise ConfigError(
            "--leaderboard with an older huggingface_hub",
            "one with EvalResultEntry",
            "pip install -U huggingface_hub, or leave --leaderboard out",
        ) from error
    (folder / EVAL_RESULTS).mkdir()
    rows = {row.key: (one, row) for one in measured for row in one.result.rows}
    for key, (board, task) in labels.leaderboards.items():
        one, row = rows[key]
        numbers = ", ".join(f"{name} {value}" for name, value in _around(row).items())
        rules = ", ".join(f"{name}: {value}" for name, value in one.result.protocol.items())
        notes = f"{key} in percent; {numbers}; {rules}"
        entry = EvalResultEntry(dataset_id=board, task_id=task, value=row.value, notes=notes)
        text = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        (folder / EVAL_RESULTS / f"{_slug(key)}.yaml").write_text(text, encoding="utf-8")


def metrics_table(measured: Sequence[Measured]) -> str:
    """All numbers of the results as Markdown, with what is needed to judge them."""
    lines = [
        "| metric, percent | value | 95 % interval | chance | blind | n |",
        "|---|---|---|---|---|---|",
    ]
    for row in (row for one in measured for row in one.result.rows):
        around = {name: f"{value:.1f}" for name, value in _around(row).items() if name != "n"}
        interval = f"{around['low']} to {around['high']}" if "low" in around else ""
        cells = (interval, around.get("chance", ""), around.get("blind", ""), str(row.count))
        lines.append(f"| {row.key} | {row.value:.1f} | {' | '.join(cells)} |")
    rules = {
        f"* {one.result.name}: {_counts(one.result)}"
        + "".join(f"; {name}: {value}" for name, value in one.result.protocol.items()): None
        for one in measured
    }
    return "\n".join([*lines, "", *rules])


def _around(row: Metric) -> dict[str, Any]:
    """What a number is judged by; without what there is not."""
    numbers = {name: getattr(row, name) for name in ("low", "high", "chance", "blind")}
    known = {name: x for name, x in numbers.items() if x is not None and not math.isnan(x)}
    return {"n": row.count} | {name: round(x, 4) for name, x in known.items()}


def _counts(result: Result) -> str:
    return ", ".join(f"{count} {what}" for what, count in result.counts.items())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty values and names of folders, which are the place on one machine."""
    return {
        name: x for name, x in values.items() if x not in ("", None) and not name.endswith("path")
    }


def _slug(name: str) -> str:
    """As an id on the hub may be written."""
    return re.sub(r"[^\w.-]+", "-", name)
