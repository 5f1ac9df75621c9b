"""Trains variants on equal data with several seeds, and writes the page that compares them.

    python -m benchmarks.study --preset scenes --seeds 3 --budget 3600

Each run is a process of its own: one a core, or one after the other on an accelerator. The same
command goes on where it stopped: what has a record is not run again, and an interrupted run
continues from its checkpoint. The page is written after every run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.checkout import commit
from benchmarks.study import page, records
from benchmarks.study.plan import Job, Preset, chosen, jobs, named
from benchmarks.study.presets import PRESETS
from benchmarks.study.running import Running, last_line, of_job, places
from benchmarks.study.table import as_text
from nas_jax.inspect.compare import write as write_reference
from nas_jax.train.workdir import METRICS
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError, UserError

EVERY = 60.0  # seconds between two lines about the runs


def parser() -> Parser:
    """The flags."""
    found = Parser(
        prog="python -m benchmarks.study", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add = found.add_argument
    add("--preset", required=True, help=f"one of {', '.join(PRESETS)}")
    add("--seeds", type=int, default=0, help="default: the preset's")
    add(
        "--budget",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="then runs are stopped, to be continued; default: until all are done",
    )
    add(
        "--out",
        default="docs/results",
        metavar="DIR",
        help="of the page and the records (default docs/results)",
    )
    add(
        "--runs",
        default="",
        metavar="DIR",
        help="of the work directories (default runs/study/PRESET)",
    )
    add(
        "--jobs",
        type=int,
        default=0,
        help="runs at a time (default: one a core; one on an accelerator)",
    )
    add(
        "--only",
        default="",
        metavar="TEXT[,TEXT]",
        help="runs whose name contains one of the texts",
    )
    add("--steps", type=int, default=0, help="of each run (default: the preset's)")
    add("--list", action="store_true", help="print the runs and stop")
    return found


def run(argv: Sequence[str]) -> int:
    """What the command line does; 1 where a run failed, or is left to do. Raises UserError."""
    args = parser().parse_args(argv)
    preset = named(PRESETS, args.preset)
    for name in ("seeds", "budget", "jobs", "steps"):
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name} {getattr(args, name)}", "0 or more", "0 is the default")
    if args.steps:
        preset = dataclasses.replace(preset, steps=args.steps)
    planned = chosen(jobs(preset, args.seeds or preset.seeds), args.only)
    out, folder = Path(args.out), Path(args.runs or Path("runs", "study", args.preset)).absolute()
    study = Study(args.preset, preset, out, folder)
    done = {one.name for one in study.records()}
    waiting = [job for job in planned if job.name not in done]
    if args.list:
        for job in planned:
            say(f"{'to do' if job in waiting else 'done':<6} {job.name:<24} {job.pairs:,} pairs")
        return 0
    say(f"{len(planned)} runs, {len(planned) - len(waiting)} of them done; page in {out}")
    if waiting:
        study.run(waiting, args.jobs, args.budget)
    found = study.records()
    if found:
        say(f"page: {study.write()}\n\n{as_text(preset, found)}")
    if preset.report:
        for job in planned:
            say(f"{job.name}: {folder / job.name / 'report.html'}")
    left = [job.name for job in waiting if job.name not in {one.name for one in found}]
    for name in left:
        say(f"left to do: {name}")
    return 1 if left else 0


class Study:
    """A preset, with the folders of its records and runs."""

    def __init__(self, name: str, preset: Preset, out: Path, folder: Path):
        self.name, self.preset, self.out, self.folder = name, preset, out, folder
        self.kept = out / (preset.page or name)  # records, pictures, curves

    def records(self) -> list[records.Record]:
        """Those of runs with today's configs; others are left where they are."""
        found = records.read(self.kept)
        seeds = 1 + max((one.seed for one in found), default=0)
        today = {job.name: job for job in jobs(self.preset, max(seeds, self.preset.seeds))}
        return [one for one in found if one.name in today and records.is_of(one, today[one.name])]

    def write(self) -> Path:
        """The page."""
        return page.write_page(self.out, self.name, self.preset, self.records())

    def write_curves(self, job: Job) -> None:
        """The curves of a variant, all seeds in one file, as `nas_jax.inspect.compare` reads them;
        as it is where a work directory of theirs is gone, or where they cannot be joined, which is
        said.
        """
        alike = [
            one
            for one in self.records()
            if (one.setting, one.variant) == (job.setting, job.variant)
        ]
        workdirs = [self.folder / one.name for one in alike]
        if all((workdir / METRICS).exists() for workdir in workdirs):
            label = "-".join(filter(None, (job.setting, job.variant)))
            path = self.kept / "curves" / f"{label}.json"
            path.parent.mkdir(exist_ok=True)
            command = f"python -m benchmarks.study --preset {self.name}"
            try:
                write_reference(str(path), [str(one) for one in workdirs], command, commit())
            except UserError as error:
                say(f"{label}: no new reference curves: {error}")

    def run(self, waiting: Sequence[Job], at_a_time: int, budget: float) -> None:
        """Runs the jobs; each that comes to its end leaves a record and a new page."""
        began = time.monotonic()
        where = places(at_a_time)

        def finished(job: Job, place: int | None) -> None:
            record = records.of_run(job, self.folder / job.name, place)
            records.check_keys(record, self.preset.metrics)
            records.write(self.kept, record)
            self.write()
            self.write_curves(job)
            say(
                f"{job.name}: done in {clock(record.seconds)} {record.pairs_per_second:.0f} pairs/s"
            )

        deadline = began + budget if budget else float("inf")

        def commands(job: Job, workdir: Path) -> list[list[str]]:
            return of_job(job, workdir, self.preset.report)

        say(f"{len(waiting)} to run, {min(len(where), len(waiting))} at a time")
        running = Running(where, self.folder, deadline, finished, say, commands)
        told = time.monotonic()

        def watch() -> None:
            nonlocal told
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                for job, log in list(running.now.values()):
                    say(f"  {clock(told - began)}  {job.name}: {last_line(log)[:80]}")

        with interrupted_by(signal.SIGINT, signal.SIGTERM):
            running.run(waiting, watch)


@contextlib.contextmanager
def interrupted_by(*signals: int) -> Iterator[None]:
    """Each of the signals raises KeyboardInterrupt, also where a shell had it ignored."""
    before = {one: signal.signal(one, signal.default_int_handler) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def clock(seconds: float) -> str:
    """3725 -> "1h02m"; 65 -> "1m05s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    stopped = "interrupted: the runs were saved, and the same command goes on from there"
    return exit_code(run, argv, stopped)


if __name__ == "__main__":
    sys.exit(main())
