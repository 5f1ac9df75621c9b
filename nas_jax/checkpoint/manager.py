"""Checkpoints of a run: state, data position and metadata, saved together, verified when read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from nas_jax.checkpoint.quiet import Quiet
from nas_jax.checkpoint.retention import Retention
from nas_jax.checkpoint.stored import (
    Damage,
    Shapes,
    complete_steps,
    is_damage,
    is_read_error,
    make_record,
    other_bits,
    read_arrays,
    read_record,
    reason,
    saved_shapes,
    shapes_of,
)
from nas_jax.storage.files import rename_folder, write_whole
from nas_jax.storage.paths import absolute, check_bucket, failures, in_words, reaching
from nas_jax.typing import PyTree
from nas_jax.utils.errors import CheckpointError, ConfigError, MissingPart

METRICS = "metrics.json"  # beside the steps: {step: {metric: value}}
DAMAGED = "damaged-"  # before the step in the new name of a damaged checkpoint
_WRITE_ERRORS = (ValueError, OSError, RuntimeError)
_FINE, _DAMAGED, _REFUSED = range(3)  # how reading went on a process; the greatest one decides


class CheckpointManager:
    """The checkpoints in one directory, named by their step.

    Saving runs in the background; a checkpoint appears under its name only when it is complete, so
    a run killed while saving leaves a temporary directory that the next start ignores and removes.
    With several processes, all of them call every method, in the same order.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int = 2,
        read_only: bool = False,
        *,
        keep_every: int = 0,
        keep_best: int = 1,
        best_metric: str = "",
        best_mode: str = "max",
        say: Callable[[str], None] = logging.warning,
    ):
        """Opens `directory`, creates it if need be, and has what a kill left removed; read_only:
        changes nothing there.

        keep, keep_every, keep_best, best_metric, best_mode: see `Retention`. say: takes one line
        for each checkpoint that is damaged or cannot be verified; called on every process.
        """
        self.directory = absolute(directory)  # Orbax takes nothing else
        self._read_only, self._say = read_only, say
        self._retention = Retention(keep, keep_every, keep_best, best_metric, best_mode)
        self._retention.validate()
        check_bucket(self.directory, described=True)
        if read_only and not self.directory.is_dir():
            raise CheckpointError(
                f"no checkpoints in {directory}",
                "the directory of a run that has saved",
                "pass its --workdir",
            )
        with ExitStack() as stack:
            stack.enter_context(Quiet())
            try:
                with reaching(self.directory):
                    self._manager = _orbax(self.directory, self._retention, read_only)
            except failures() as error:
                raise CheckpointError(
                    f"{directory}: {in_words(error)}", "a writable directory", "mend it"
                ) from error
            stack.callback(self._manager.close)
            if not read_only:
                self._retention.metrics.update(self._read_metrics())
            self._resources = stack.pop_all()

    def latest_step(self) -> int | None:
        """The newest checkpoint, complete or being saved; None if there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """All checkpoints, complete or being saved, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: PyTree, position: dict[str, Any], metadata: dict[str, Any]
    ) -> None:
        """Starts saving, unless `step` is there; returns when `state` may be overwritten.

        position: where the data iterator goes on, e.g. `{"next_step": step}`. position, metadata:
        plain JSON values. Raises CheckpointError if this or the save before could not be written;
        older checkpoints stay as they are.
        """
        if step == self.latest_step():
            return
        known = self._retention.metrics
        # of a checkpoint that this one replaces
        for stale in [other for other in known if other >= step]:
            del known[stale]
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave(make_record(state, position, metadata)),
        )
        try:
            self._manager.save(step, args=items, force=True)
        except failures(*_WRITE_ERRORS) as error:
            raise self._failed_write(error) from error

    def record_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells what an evaluation of checkpoint `step` gave; the next save decides by it which
        ones are the best.

        Does nothing if there is no such checkpoint. Raises ConfigError if `best_metric` is not
        among the metrics.
        """
        best = self._retention.best_metric
        if best and best not in metrics:
            raise ConfigError(
                f"best_metric={best!r}",
                f"a metric of the evaluation: {', '.join(sorted(metrics))}",
                "set one of them",
            )
        steps = set(self.all_steps())
        if step not in steps:
            return
        known = self._retention.metrics
        known[step] = {key: float(value) for key, value in metrics.items()}
        for gone in known.keys() - steps:
            del known[gone]
        if jax.process_index() == 0:
            text = json.dumps({str(step): known[step] for step in sorted(known)}, indent=1) + "\n"
            try:
                write_whole(self.directory / METRICS, text)
            except failures() as error:
                raise self._failed_write(error) from error

    def restore(
        self, abstract_state: PyTree, step: int | None = None
    ) -> tuple[PyTree, dict[str, Any]]:
        """The verified state and data position of `step`; default: the newest whole checkpoint.

        abstract_state: `jax.ShapeDtypeStruct` leaves; their shardings say where the arrays go
        (None: to the first device), on whatever mesh they were saved. Without `step`, damaged
        checkpoints newer than the one that is used are renamed to `damaged-STEP` (unless
        read_only), and one line is said about each.

        Raises CheckpointError if there is no such checkpoint, if `step` is damaged or all are, or
        if an array differs in name, shape or dtype, which means another config and no damage.
        Nothing is renamed then.
        """
        return self._first_whole(step, lambda step: self._read(step, "", abstract_state))

    def check_shapes(self, abstract_state: PyTree, step: int) -> None:
        """Raises CheckpointError unless `step` holds arrays of these names, shapes and dtypes.

        Reads no array.
        """
        checkpoint = self.directory / str(step)
        try:
            saved = saved_shapes(checkpoint, read_record(checkpoint))
        except Damage as error:
            raise self._all_damaged([(step, str(error))]) from error
        _check_shapes(checkpoint, saved, shapes_of(abstract_state, ""))

    def restore_part(
        self,
        part: str,
        abstract: PyTree | Callable[[Shapes], PyTree] | None = None,
        step: int | None = None,
    ) -> PyTree:
        """Only a part of the state, verified; nothing else is read.

        part: its path in the state, as "params" or "method_state/queue". abstract: as in `restore`;
        None gives nested dicts of NumPy arrays with the shapes that were saved. A function is given
        these shapes by name, as far as the part has them, and says where each array goes.
        Steps, damage and errors: as in `restore`; MissingPart where the state has no such part.
        """
        return self._first_whole(step, lambda step: self._read(step, part, abstract))[0]

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata saved with `step`. Raises CheckpointError if it is damaged."""
        self.wait()
        try:
            record = read_record(self.directory / str(step))
        except Damage as error:
            raise self._all_damaged([(step, str(error))]) from error
        return (
            record["metadata"]
            if "metadata" in record
            else dict(self._manager.metadata(step).custom_metadata)
        )

    def wait(self) -> None:
        """Returns when every started save is complete on disk.

        Raises CheckpointError if one failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except failures(*_WRITE_ERRORS) as error:
            raise self._failed_write(error) from error

    def close(self) -> None:
        """Waits and frees the threads."""
        try:
            self.wait()
        finally:
            self._resources.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def _first_whole(self, step: int | None, read: Callable[[int], Any]) -> Any:
        """`read` of `step`, or of the newest checkpoint that is not damaged."""
        self.wait()
        steps = self.all_steps()
        if not steps or step not in (None, *steps):
            raise CheckpointError(
                f"no checkpoint {'' if step is None else f'{step} '}in {self.directory}",
                f"one of {steps}" if steps else "a run that has saved",
                "train first, or pass another --workdir",
            )
        damaged = []
        for candidate in reversed(steps) if step is None else [step]:
            try:
                found = read(candidate)
            except Damage as error:
                damaged.append((candidate, str(error)))
                continue
            self._set_aside(damaged, candidate)
            return found
        # They stay where they are: in an empty directory the next start would begin from nothing.
        raise self._all_damaged(damaged)

    def _read(
        self, step: int, part: str, abstract: PyTree | Callable[[Shapes], PyTree] | None
    ) -> tuple[PyTree, dict[str, Any]]:
        """The tree under `part` ("" = all) and the position; all processes raise Damage or none."""
        checkpoint, prefix = self.directory / str(step), f"{part}/" if part else ""

        def read() -> tuple[PyTree, dict[str, Any]]:
            record = read_record(checkpoint)
            saved = {
                name: kind
                for name, kind in saved_shapes(checkpoint, record).items()
                if f"{name}/".startswith(prefix)
            }
            if not saved:
                raise MissingPart(
                    f"checkpoint {checkpoint} has no {part}", "a method with one", "take another"
                )
            wanted = abstract
            if callable(abstract):
                wanted = abstract({name.removeprefix(prefix): kind for name, kind in saved.items()})
            if wanted is not None:
                _check_shapes(checkpoint, saved, shapes_of(wanted, prefix))
            return read_arrays(checkpoint, part, wanted, saved), record

        tree, record = self._agree(checkpoint, read)
        if "arrays" not in record:
            self._say(
                f"checkpoint {checkpoint} has no checksums (it is older than they are): it is not "
                "verified"
            )
        elif wrong := other_bits(tree, record, prefix):
            raise Damage(wrong)
        return tree, record["position"]

    def _agree(self, checkpoint: Path, read: Callable[[], Any]) -> Any:
        """`read()` if it works on all processes; else the same kind of error on all of them."""
        found, outcome = None, _FINE
        failure: Exception | None = None
        try:
            found = read()
        except CheckpointError as error:
            failure, outcome = error, _REFUSED
        except Damage as error:
            failure, outcome = error, _DAMAGED
        except Exception as error:
            if not is_read_error(error):
                raise
            failure, outcome = error, _DAMAGED if is_damage(error) else _REFUSED
        worst = outcome
        if jax.process_count() > 1:
            worst = int(multihost_utils.process_allgather(np.int32(outcome)).max())
        if worst == _FINE:
            return found
        if isinstance(failure, CheckpointError):
            raise failure
        own = failure if outcome == worst else None
        why = reason(own, checkpoint) if own else "another process could not read it"
        if worst == _DAMAGED:
            where = "" if isinstance(failure, Damage | None) or "state/" in why else "state/: "
            raise Damage(where + why) from failure
        raise CheckpointError(
            f"checkpoint {checkpoint} cannot be read at the moment ({why})",
            "files that can be opened",
            "mend that and start again, nothing was changed",
        ) from failure

    def _set_aside(self, damaged: list[tuple[int, str]], used: int) -> None:
        """Renames the damaged checkpoints and says so."""
        if not damaged:
            return
        targets = {step: _free_name(self.directory / f"{DAMAGED}{step}") for step, _ in damaged}
        if not self._read_only:
            _barrier("names of damaged checkpoints")  # all have chosen the same ones
            for step, target in targets.items() if jax.process_index() == 0 else ():
                try:
                    rename_folder(self.directory / str(step), target)
                except failures() as error:
                    raise CheckpointError(
                        f"damaged checkpoint {self.directory / str(step)} cannot be renamed "
                        f"({in_words(error)})",
                        "a writable directory",
                        "move it away and start again",
                    ) from error
            _barrier("damaged checkpoints are renamed")
            self._manager.reload()
        for step, why in damaged:
            fate = (
                "it stays there (read-only)"
                if self._read_only
                else f"it is now {targets[step].name}"
            )
            self._say(
                f"checkpoint {self.directory / str(step)} is damaged ({why}); {fate}; {used} is "
                "used instead"
            )

    def _all_damaged(self, damaged: list[tuple[int, str]]) -> CheckpointError:
        (step, why), *older = damaged
        others = f", and so are {', '.join(str(step) for step, _ in older)}" if older else ""
        rest = [str(other) for other in self.all_steps() if other not in dict(damaged)]
        return CheckpointError(
            f"checkpoint {self.directory / str(step)} is damaged ({why}){others}",
            "the files as they were saved",
            f"take another step of {', '.join(rest)}"
            if rest
            else "copy a whole one there, or pass another --workdir",
        )

    def _read_metrics(self) -> dict[int, dict[str, float]]:
        path = self.directory / METRICS
        if not path.exists():
            return {}
        try:
            return {
                int(step): dict(metrics) for step, metrics in json.loads(path.read_bytes()).items()
            }
        except failures(ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({reason(error, self.directory)})",
                "the metrics of the checkpoints beside it",
                "delete it; which checkpoint is the best is then forgotten",
            ) from error

    def _failed_write(self, error: Exception) -> CheckpointError:
        # Orbax has already struck those off its list that the failed one would have replaced.
        try:
            newest = max(complete_steps(self.directory), default="none")
        except failures():  # a bucket that does not answer
            newest = "unknown"
        return CheckpointError(
            f"saving to {self.directory} failed ({reason(error, self.directory)}), "
            f"newest complete checkpoint: {newest}",
            "a writable directory with room",
            "make room or allow writing, and start again: it goes on from there",
        )


def _orbax(directory: Path, retention: Retention, read_only: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=retention,
        create=not read_only,
        # In the background, a directory that cannot be made leaves threads that hold up the exit
        # for five minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        cleanup_tmp_directories=not read_only,
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _check_shapes(checkpoint: Path, saved: Shapes, wanted: Shapes) -> None:
    # Orbax casts dtypes in silence and reports a wrong shape by pages, so the arrays are compared
    # by name first.
    wrong = [
        f"{name} is {_shape(saved.get(name))} there and {_shape(wanted.get(name))} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"checkpoint {checkpoint} holds another state: {wrong[0]}{more}",
            "the arrays of this config's model and optimizer",
            "use the config it was trained with, or another --workdir",
        )


def _shape(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if entry is None else f"{entry[1]}{list(entry[0])}"


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _free_name(path: Path) -> Path:
    copies, free = 1, path
    while free.exists():
        copies += 1
        free = path.with_name(f"{path.name}-{copies}")
    return free
