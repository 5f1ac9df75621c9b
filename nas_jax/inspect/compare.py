"""At which step and in which metric a run departs from a reference run.

    python -m nas_jax.inspect.compare RUN REFERENCE [REFERENCE ...] [--picture FILE.png]
    python -m nas_jax.inspect.compare --write FILE.json RUN [RUN ...]

RUN is a work directory or a metrics.jsonl; REFERENCE also a file that --write made, which may hold
several seeds. Losses, accuracies, the norm of the gradient and evaluations are compared; what
counts as a departure is said in docs/watching.md. Exits 1 where the run departs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nas_jax.inspect.compare_picture import draw_comparison
from nas_jax.inspect.curves import Entries, read_run_entries
from nas_jax.inspect.departures import Verdict, compare
from nas_jax.inspect.references import (
    Reference,
    averaged,
    changes,
    check_alike,
    read_references,
    to_json,
)
from nas_jax.storage.files import make_folder, through_disk, write_whole
from nas_jax.storage.paths import as_path, reaching
from nas_jax.train.config import RESUMABLE
from nas_jax.train.workdir import writing
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.trees import ABSENT, flatten_dict

COLUMNS = ("metric", "departs", "at step", "run", "reference", "tolerance", "until step")
MOST_FIELDS = 20  # of the config that are listed


def config_lines(run: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """The fields that differ, as `path (in the reference, in the run)`.

    Those that both have come first, then those that one of the two lacks, then those that may
    change between two starts of one run.
    """
    if not run or not reference:
        return ["config: not known of both, and not compared"]
    if not (lines := changes(reference, run)):
        return ["config: the same"]
    both = flatten_dict(run).keys() & flatten_dict(reference).keys()

    def rank(line: str) -> tuple[bool, bool]:
        name = line.split(" ")[0]
        late = any(name == one or name.startswith(f"{one}.") for one in RESUMABLE)
        return late, name not in both

    lines = sorted(lines, key=rank)
    shown = [f"  {line}" for line in lines[:MOST_FIELDS]]
    more = [f"  and {len(lines) - MOST_FIELDS} more"] if len(lines) > MOST_FIELDS else []
    return [f"config, (in the reference, in the run), {ABSENT} where unknown:", *shown, *more]


def about_lines(references: Sequence[Reference]) -> list[str]:
    """What the references are."""
    lines = []
    for one in references:
        said = [f"{name} {value}" for name, value in one.about.items() if value not in (None, "")]
        lines.append(f"reference: {one.name}{''.join(f'; {text}' for text in said)}")
    return lines


def missing_lines(run: Entries, references: Sequence[Reference]) -> list[str]:
    """Metrics that only one side has."""
    ours = {*run.train, *run.evaluations}
    theirs = {name for one in references for name in (*one.train, *one.evaluations)}
    sides = (("the run", ours - theirs), ("the reference", theirs - ours))
    return [f"only in {side}: {', '.join(sorted(names))}" for side, names in sides if names]


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each metric; evaluations that agree to the same step share one."""
    full, short = [], []
    agreeing: dict[int, int] = {}
    for one in verdicts:
        if one.departure:
            full.append(_departure(one, one.departure[0]))
        elif one.evaluation:
            agreeing[one.compared_to] = agreeing.get(one.compared_to, 0) + 1
        else:
            short.append((one.metric, _agreement(one)))
    short += [(f"{count} evaluations", f"agree to step {step}") for step, count in agreeing.items()]
    full = [COLUMNS, *full] if full else []
    rows = [*full, *short]
    widths = [max(len(row[place]) for row in full) for place in range(len(COLUMNS))] if full else []
    first = max(len(row[0]) for row in rows)
    return ["  ".join(_padded(row, [first, *widths[1:]])) for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The last cell stays as it is."""
    return [*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]]


def _departure(one: Verdict, place: int) -> tuple[str, ...]:
    """place: of the first window of the departure."""
    value, centre = one.run.values_P[place], one.centre_P[place]
    side = "not finite" if math.isinf(value) else "above" if value > centre else "below"
    numbers = [
        "-" if math.isinf(x) else f"{x:.4g}" for x in (value, centre, one.tolerance_P[place])
    ]
    until = "the end" if one.last_step is None else str(one.last_step)
    return one.metric, side, str(one.first_step), *numbers, until


def _agreement(one: Verdict) -> str:
    if one.enough:
        return f"agrees to step {one.compared_to}"
    return f"too few entries to tell, up to step {one.compared_to}"


def summary(verdicts: Sequence[Verdict]) -> str:
    """The last line."""
    departed = [one for one in verdicts if one.departure]
    if not departed:
        return f"agrees to step {max(one.compared_to for one in verdicts)}"
    first = min(one.first_step for one in departed if one.first_step is not None)
    names = [one.metric for one in departed if one.first_step == first]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"departs at step {first}: {', '.join(names[:3])}{more}"


def judged(run: Entries, references: Sequence[Reference], share: float | None) -> list[Verdict]:
    """All verdicts. Raises DataError where nothing can be told."""
    verdicts = compare(run, references, share)
    if not any(one.enough for one in verdicts):
        last, end = int(run.steps_N[-1]), int(references[0].ends_K[-1])
        raise DataError(
            f"{len(run.steps_N)} entries of {run.name} up to step {last}, and the reference up to "
            f"step {end}, have too little in common",
            "three windows of steps with the same metrics",
            "train further, or name another reference",
        )
    return verdicts


def write(path: str, names: Sequence[str], command: str, code: str) -> str:
    """Makes a reference file of runs; returns a line about it. Raises DataError where these are
    not alike.
    """
    references = [averaged(read_run_entries(name), command, code) for name in names]
    check_alike(references)
    text = to_json(references)
    with writing(as_path(path)):
        make_folder(as_path(path).parent)
        write_whole(as_path(path), text)
    return f"written: {path} ({len(names)} runs, {len(text) / 1000:.1f} kB)"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = Parser(
        prog="python -m nas_jax.inspect.compare",
        description="At which step and in which metric a run departs from a reference run.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add("run", metavar="RUN", help="a work directory, or a metrics.jsonl")
    add("references", metavar="REFERENCE", nargs="*", help="the same, or a file made by --write")
    add("--picture", default="", metavar="FILE.png", help="also draw the curves")
    add(
        "--share",
        type=float,
        metavar="X",
        help="of a value that is tolerated (default 0.1 with one reference, 0.02 with several)",
    )
    add("--write", default="", metavar="FILE.json", help="make a reference of all runs named")
    add("--command", default="", metavar="TEXT", help="with --write: the command of the runs")
    add("--code", default="", metavar="TEXT", help="with --write: the code of the runs, a commit")
    return found


def run(argv: Sequence[str]) -> int:
    """What the command line does. Raises UserError."""
    args = parser().parse_args(argv)
    if args.write:
        with reaching(args.run):
            print(write(args.write, [args.run, *args.references], args.command, args.code))
        return 0
    if not args.references:
        raise ConfigError("no REFERENCE", "one or more", "name a file made by --write, or a run")
    if args.share is not None and not args.share >= 0:
        raise ConfigError(f"--share {args.share}", "0 or more", "leave it out for the default")
    with reaching(args.run):
        entries, references = read_run_entries(args.run), read_references(args.references)
        verdicts = judged(entries, references, args.share)
    lines = [*about_lines(references), *config_lines(entries.config, references[0].config)]
    lines += [*entries.unreadable, *missing_lines(entries, references), "", *table(verdicts), ""]
    print("\n".join([*lines, summary(verdicts)]))
    if args.picture:
        picture = as_path(args.picture)
        with writing(picture):
            make_folder(picture.parent)
            with through_disk(picture) as file:
                draw_comparison(file, entries, references, verdicts)
    return int(any(one.departure for one in verdicts))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
