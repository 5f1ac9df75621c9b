"""What is kept of a run: small enough to be checked in, and all that the page needs."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkout import commit
from benchmarks.study.plan import Job, decisive, method_of, same_run
from nas_jax.evals.results import read as read_results
from nas_jax.inspect.negatives_found import NEGATIVES
from nas_jax.methods import METHODS
from nas_jax.methods.method import Method
from nas_jax.storage.files import write_whole
from nas_jax.train.workdir import CONFIG, EVALS, STARTS, TIMINGS
from nas_jax.utils.errors import DataError

FORMAT = 1
QUANTITY = "accuracy"  # of foils
NO_DIAGNOSIS = {"kinds": (), "truth": None}
DIAGNOSED = ("name", "rows", "valid", "changed", "match", "auc", "auc_alone")


@dataclass(frozen=True)
class Record:
    """A finished run."""

    name: str
    setting: str
    variant: str
    seed: int
    config: str
    flags: tuple[str, ...]
    fields: Mapping[str, Any]  # of the config that these give, see `plan.decisive`
    pairs: int
    metrics: Mapping[str, float]  # key of an evaluation -> percent
    blind: Mapping[str, float]  # the same of the text alone
    chance: Mapping[str, float]
    count: Mapping[str, int]  # answers that the value is a mean over
    # benchmark/scorer -> category -> "1" for each right answer and "0" for each wrong one; all runs
    # of a seed have the same questions in the same order
    hits: Mapping[str, Mapping[str, str]]
    units: Mapping[str, Mapping[str, tuple[int, ...]]]  # the unit of each question
    negatives: tuple[Mapping[str, Any], ...]  # of the diagnosis, a kind each
    truth: Mapping[str, float] | None  # what the scenes say of changed pictures
    seconds: float  # of the training alone
    hardware: str
    date: str
    code: str  # the commit; ends in "+" where files were changed

    @property
    def pairs_per_second(self) -> float:
        """Of the training alone."""
        return self.pairs / self.seconds if self.seconds else float("nan")


def of_run(job: Job, workdir: Path, place: int | None) -> Record:
    """Reads a finished work directory."""
    evaluation = json.loads((workdir / EVALS / f"{job.steps}.json").read_text())
    # a method that does not match has none (running.of_job)
    diagnosed = (workdir / NEGATIVES).exists()
    diagnosis = json.loads((workdir / NEGATIVES).read_text()) if diagnosed else NO_DIAGNOSIS
    _, results = read_results(workdir / EVALS / str(job.steps))
    hits, units = {}, {}
    for result in (one for one in results if one.form == "foil" or one.name.endswith(":foils")):
        for scorer, found in result.hits.items():
            key = f"{result.name}/{scorer}"
            hits[key], units[key] = _by_category(found[QUANTITY], result.categories, result.units)
    timings = [json.loads(line) for line in (workdir / TIMINGS).read_text().splitlines()]
    rows = evaluation["metrics"]
    return Record(
        job.name,
        job.setting,
        job.variant,
        job.seed,
        job.config,
        job.flags,
        decisive(json.loads((workdir / CONFIG).read_text())),
        job.pairs,
        {row["key"]: row["value"] for row in rows},
        {row["key"]: row["blind"] for row in rows if row["blind"] is not None},
        {row["key"]: row["chance"] for row in rows},
        {row["key"]: row["count"] for row in rows},
        hits,
        units,
        tuple({name: kind[name] for name in DIAGNOSED} for kind in diagnosis["kinds"]),
        diagnosis["truth"],
        round(_seconds(timings, job.batch_size), 1),
        hardware(workdir, place),
        datetime.date.today().isoformat(),
        commit(),
    )


def _by_category(
    hits: Sequence[bool | None], categories: Sequence[str], units: Sequence[int]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    names = dict.fromkeys(categories)
    rows = {name: [k for k, one in enumerate(categories) if one == name] for name in names}
    return (
        {name: "".join("1" if hits[k] else "0" for k in which) for name, which in rows.items()},
        {name: tuple(units[k] for k in which) for name, which in rows.items()},
    )


def _seconds(timings: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Of the steps that were timed, which leaves out compilation and evaluations."""
    total, before = 0.0, 0
    for entry in timings:
        pairs = (entry["step"] - before) * batch_size
        total, before = total + pairs / entry["pairs_per_second"], entry["step"]
    return total


def hardware(workdir: Path, place: int | None) -> str:
    """The device of the last start."""
    starts = [json.loads(line) for line in (workdir / STARTS).read_text().splitlines()]
    device = str(starts[-1].get("device", "")) or platform.processor() or platform.machine()
    return f"one core of {processor()}" if place is not None else device


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(folder: Path, record: Record) -> None:
    """NAME.json in the folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **asdict(record)}) + "\n"
    write_whole(folder / f"{record.name}.json", text)


def read(folder: Path) -> list[Record]:
    """All records of a folder, by name. Raises DataError on a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            fields |= {"flags": tuple(fields["flags"]), "negatives": tuple(fields["negatives"])}
            found.append(Record(**fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            got = f"{path}: {error!r}"
            raise DataError(
                got, "a record of a study", "delete it: its run is done again"
            ) from error
    return found


def is_of(record: Record, job: Job) -> bool:
    """Whether the record is of this very run, with the config that the job has today."""
    return same_run(record.fields, job)


def check_keys(record: Record, keys: Iterable[str]) -> None:
    """Raises DataError on keys that the evaluation should have given.

    A key may be missing whose score the method does not give, where the same number is there by
    another score.
    """
    wrong = [key for key in keys if key not in record.metrics and not _of_others(record, key)]
    if wrong:
        got = f"no {', '.join(sorted(wrong))} in its evaluation"
        raise DataError(got, "them", "mend the preset")


def _of_others(record: Record, key: str) -> bool:
    """Whether a key is of a score that other methods give."""
    parts = key.split("/")
    if len(parts) != 4:
        return False
    benchmark, part, scorer, quantity = parts
    others = {name for method in METHODS.values() for name in _scores(method)}
    twins = {f"{benchmark}/{part}/{name}/{quantity}" for name in others}
    own = _scores(method_of(record.fields))
    return scorer in others - set(own) and not twins.isdisjoint(record.metrics)


def _scores(method: type[Method]) -> tuple[str, ...]:
    return (*method.feature_scores, *method.pair_scores, *method.summed_scores)
