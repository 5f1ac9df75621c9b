"""What a run leaves in its work directory, and what a second start in the same place may find
there.

config.json      the config of the run
metrics.jsonl    one object a line, each with `step`; the same bytes if the run was interrupted
timings.jsonl    the same steps, with what depends on the machine and the hour
starts.jsonl     one object each time the run was started: where it goes on, and on which machine
evals/           one file an evaluation, with chance and blind values (written by the runner)
checkpoints/     the state, by step
weights.txt      of a run that began from other weights: what became of each tensor
tokenizer/       of the first start; later ones read it
tensorboard/     the metrics once more
profile/         of the steps in train.profile_steps
hang-0.txt       stacks of process 0, if no step was done for train.hang_seconds

In a bucket (gs://...) the growing files are copied there now and then, and always before a
checkpoint.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nas_jax.checkpoint.stored import complete_steps
from nas_jax.methods import upgraded
from nas_jax.storage.files import check_writable, make_folder, read_text, write_whole
from nas_jax.storage.growing import GrowingText, Mirror
from nas_jax.storage.paths import check_bucket, failures, in_words, is_bucket
from nas_jax.train.config import RESUMABLE
from nas_jax.train.watch import Trackers
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import diff, with_defaults

CONFIG, METRICS, TIMINGS, TOKENIZER = "config.json", "metrics.jsonl", "timings.jsonl", "tokenizer"
STARTS, WEIGHTS = "starts.jsonl", "weights.txt"
CHECKPOINTS, EVALS, TENSORBOARD, PROFILE = "checkpoints", "evals", "tensorboard", "profile"
FLUSH_SECONDS = 30  # between two writes of TensorBoard's file


@contextmanager
def writing(
    path: Path,
    expected: str = "a writable --workdir with room",
    remedy: str = "make room or allow writing, and start again: it goes on from the newest "
    "checkpoint",
) -> Iterator[None]:
    """A context that writes to `path`: a full disk, a read-only directory and the like raise
    CheckpointError, with what is `expected` and the `remedy`.
    """
    try:
        yield
    except failures() as error:
        raise CheckpointError(
            f"writing to {getattr(error, 'filename', None) or path} failed ({in_words(error)})",
            expected,
            remedy,
        ) from error


def writing_out(folder: Path) -> AbstractContextManager[None]:
    """`writing` to the folder of a command's --out."""
    return writing(folder, "a writable --out with room", "make room, or pass another --out")


def check_out(folder: Path) -> Path:
    """`folder`, where a command may write: to be asked before anything is computed.

    Raises CheckpointError if it cannot be written.
    """
    if is_bucket(folder):
        check_bucket(folder)
    else:
        with writing_out(folder):
            check_writable(folder)
    return folder


def open_workdir(
    workdir: Path,
    run_record: Mapping[str, Any],
    write: bool = True,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Creates `workdir` and, unless `write` is off, puts `run_record` (the nested config) into its
    config.json.

    Raises CheckpointError if another config is there and has a checkpoint: only the fields in
    `RESUMABLE` may change between two starts. Before the first checkpoint there is nothing to
    protect, and the new config takes over.
    """
    path = workdir / CONFIG
    if has_checkpoint(workdir):
        check_config(workdir, run_record, RESUMABLE, defaults)
    if write:
        with writing(path):
            make_folder(workdir)
            write_whole(path, json.dumps(run_record, indent=2) + "\n")


def has_checkpoint(workdir: Path) -> bool:
    """Whether the run in `workdir` has a complete checkpoint."""
    return bool(complete_steps(workdir / CHECKPOINTS))


def check_config(
    workdir: Path,
    run_record: Mapping[str, Any],
    ignore: tuple[str, ...],
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Raises CheckpointError if the run in `workdir` differs in fields or sections that are not in
    `ignore`.

    defaults: of all fields; what the run in `workdir` did where it is older than a field.
    """
    changed = diff(with_defaults(read_config(workdir), defaults or {}), run_record, ignore)
    if changed:
        raise CheckpointError(
            f"{workdir} holds a run with another config, (there, here): {', '.join(changed)}",
            "the config that run was started with",
            "pass another --workdir, or set these fields back",
        )


def read_config(workdir: Path) -> dict[str, Any]:
    """The nested config of the run in `workdir`. Raises CheckpointError if there is none."""
    path = workdir / CONFIG
    try:
        config = json.loads(read_text(path))
        return config | ({"method": upgraded(config["method"])} if "method" in config else {})
    except FileNotFoundError:
        check_bucket(workdir)
        raise CheckpointError(
            f"no {CONFIG} in {workdir}", "the --workdir of a run", "pass another, or train"
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON ({error})", "the file the run wrote", "pass another --workdir"
        ) from error


class Records:
    """The growing files. `enabled=False` (all processes but the first) writes nothing."""

    def __init__(
        self, workdir: Path, start: int, enabled: bool = True, trackers: Trackers | None = None
    ):
        """start: the step of the restored state; what a former start wrote beyond it is cut off.

        trackers: get all numbers too. They are not closed here.
        """
        self._enabled, self._workdir, self._start, self._trackers = (
            enabled,
            workdir,
            start,
            trackers or Trackers(()),
        )
        self.evaluated = False  # an evaluation of the state at `start` is on file
        if not enabled:
            return
        for name in (METRICS, TIMINGS):
            kept = _truncate(workdir / name, start)
            self.evaluated |= any(
                entry["step"] == start and entry.get("kind") == "eval" for entry in kept
            )
        with writing(workdir):
            self._metrics = GrowingText(workdir / METRICS)
            self._timings = GrowingText(workdir / TIMINGS)
            self._board = _Board(workdir / TENSORBOARD, purge_step=start + 1)

    def add(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """kind: `train` or `eval`. Raises CheckpointError if it cannot be written."""
        if self._enabled:
            _append(self._metrics, {"step": step, "kind": kind} | dict(metrics))
            self._board.add(step, metrics)
            self._trackers.add(step, metrics)

    def add_timing(self, step: int, timings: Mapping[str, float]) -> None:
        """Raises CheckpointError if it cannot be written."""
        if self._enabled:
            _append(self._timings, {"step": step} | dict(timings))
            named = {f"time/{name}": value for name, value in timings.items()}
            self._board.add(step, named)
            self._trackers.add(step, named)

    def add_start(self, machine: Mapping[str, Any]) -> None:
        """What this start runs on. Raises CheckpointError if it cannot be written."""
        if self._enabled:
            with writing(self._workdir), GrowingText(self._workdir / STARTS) as file:
                _append(file, {"step": self._start} | dict(machine))

    def sync(self) -> None:
        """For the moment before a checkpoint: what is on record must not begin behind it after a
        kill.

        Raises CheckpointError if it cannot be written.
        """
        for file in (self._metrics, self._timings) if self._enabled else ():
            with writing(file.name):
                file.sync()

    def close(self) -> None:
        """Closes all files. Raises CheckpointError if what is left cannot be written."""
        if self._enabled:
            with ExitStack() as stack:  # all of them, whichever fails
                for file in (self._metrics, self._timings, self._board):
                    stack.enter_context(writing(file.name))
                    stack.callback(file.close)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """A context in which a module that is not imported yet cannot be."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # typeshed: no None; Python allows it
    try:
        yield
    finally:
        del sys.modules[module]


class _Board:
    """TensorBoard's file of scalars, written by the thread that calls.

    tensorboardX's own writer has a thread that dies on a full disk, whereupon the run waits for it
    without end.
    """

    def __init__(self, folder: Path, purge_step: int):
        """purge_step: what former files hold from this step on is not shown."""
        # Here: imports of seconds that reading a config does not need.
        with _without("torch"):  # of seconds too, and for nothing, where it is installed
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import RecordWriter
            from tensorboardX.summary import scalar

        make_folder(folder)
        self.name = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._event, self._scalar, self._flushed = Event, scalar, time.monotonic()
        self._mirror = Mirror(self.name)
        self._file = RecordWriter(str(self._mirror.local))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        with writing(self.name):
            for name, value in scalars.items():
                self._write(step=step, summary=self._scalar(name, value))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._file.flush()
                self._mirror.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()
        self._mirror.close()

    def _write(self, **fields: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def _append(file: GrowingText, entry: Mapping[str, Any]) -> None:
    with writing(file.name):
        file.write(json.dumps(entry) + "\n")


def _truncate(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Drops the entries of later steps, and a last line cut short by a kill; returns the entries
    that stay.
    """
    if not path.exists():
        return []
    whole = [line for line in read_text(path).splitlines(keepends=True) if line.endswith("\n")]
    try:
        entries = [json.loads(line) for line in whole]
        kept = [entry for entry in entries if entry["step"] <= last_step]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error})", "one JSON object a line", "repair or move it"
        ) from error
    with writing(path):
        write_whole(
            path,
            "".join(
                line
                for line, entry in zip(whole, entries, strict=True)
                if entry["step"] <= last_step
            ),
        )
    return kept
