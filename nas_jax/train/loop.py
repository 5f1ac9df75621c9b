"""The one training loop.

It knows steps, batches, checkpoints and clocks; what is learned is in `train_step`, what is
measured in the evaluators. A start in the work directory of an interrupted run goes on where the
newest checkpoint stands, and ends with the same numbers as a run that never stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.parallel.mesh import everywhere, replicated
from nas_jax.parallel.prefetch import DevicePrefetch
from nas_jax.storage.files import write_whole
from nas_jax.storage.paths import as_path
from nas_jax.train.config import TrainConfig
from nas_jax.train.going_on import Course
from nas_jax.train.machine import describe, matmul_flops
from nas_jax.train.pace import Pace
from nas_jax.train.profiling import StepProfile
from nas_jax.train.start import Copies, StartFrom, begin, go_on
from nas_jax.train.step import sharded_step
from nas_jax.train.watch import open_trackers
from nas_jax.train.watchdog import Watchdog
from nas_jax.train.workdir import CHECKPOINTS, PROFILE, WEIGHTS, Records, open_workdir, writing
from nas_jax.typing import Batch, HostBatch, Metrics, PyTree
from nas_jax.utils.errors import CheckpointError, DataError, DivergedError
from nas_jax.utils.logging import Console, format_losses, format_seconds
from nas_jax.utils.signals import SIGNALS, StopSignals
from nas_jax.utils.trees import all_finite

HOST_FIELDS = ("skipped_B", "record_B")  # of a batch: not for the devices
OVER_BUDGET = -1  # a reason to stop, beside the signal numbers, which are positive


class Measurement(Protocol):
    """What an evaluator returns a list of."""

    @property
    def key(self) -> str:
        """Its name."""
        ...

    @property
    def value(self) -> float:
        """The number."""
        ...


Measured = TypeVar("Measured", bound=Measurement)
Evaluator = Callable[[PyTree, PyTree, int], Sequence[Measured]]
"""(params, method_state, step) -> metrics."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    state: PyTree  # the TrainState after `step`
    step: int  # steps done, over all starts
    signal: int = 0  # the number of the signal that stopped it, 0 if none

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number, as a shell reports it."""
        return 128 + self.signal if self.signal else 0


@dataclass(frozen=True)
class Training(Generic[Measured]):
    """What is trained, on what, and what is measured: all that the loop does not know itself."""

    # Pure `(state, batch, stage) -> (state, metrics)`; metrics are fp32 scalars and include `loss`.
    train_step: Callable[[PyTree, Batch, Hashable], tuple[PyTree, Metrics]]
    # The state before step 1; must be traceable by `jax.jit`.
    init_state: Callable[[], PyTree]
    # `batches(n)` iterates over the batches from step n on (step n + 1 trains on its first one).
    # Each is a dict of arrays with the batch as first axis; `skipped_B` and `record_B`, if there,
    # stay on the host, and the former is counted. Read in a thread, a few batches ahead.
    batches: Callable[[int], Iterator[HostBatch]]
    total_steps: int
    mesh: Mesh
    evaluators: Sequence[Evaluator[Measured]] = ()  # called at intervals and at the end
    # Which parts of the method are on after that many steps; each value is compiled once.
    stage: Callable[[int], Hashable] = lambda step: None
    # More metrics of the state after a step that is recorded; traceable by `jax.jit`.
    observe: Callable[[PyTree], Metrics] = lambda state: {}
    # Where the arrays of the state live, `(abstract state, mesh) -> tree of NamedSharding`; None:
    # all of it on every device.
    shardings: Callable[[PyTree, Mesh], PyTree] | None = None
    start_from: StartFrom | None = None  # see train/start.py
    copies: Copies = ()  # `Method.copies`
    # A digest of the records that are read; a checkpoint of a run on others is refused.
    data_id: str = ""
    course: Course | None = None  # see train/going_on.py; None: the config is not compared
    # On the first process: (step, metrics of an evaluation) -> what is printed.
    report: Callable[[int, Sequence[Measured]], str] | None = None


def run(
    training: Training,
    config: TrainConfig,
    workdir: str | Path,
    record: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RunResult:
    """Trains to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
      training: what is trained.
      config: how long, and what is left behind.
      workdir: the directory of the run.
      record: the nested config, written to config.json.
      defaults: of all its fields, for a run in `workdir` that is older than one of them.
      console: takes what is told to the user; None: the terminal, on the first process.
      clock: seconds.

    Raises:
      CheckpointError: the work directory belongs to another config, or a checkpoint cannot be read
        or written.
      DivergedError: a loss, gradient or parameter is not finite; that state is not saved.
      DataError: the batches ended early.
    """
    console = console or Console(enabled=jax.process_index() == 0, clock=clock)
    return _Run(training, config, as_path(workdir), record, defaults, console, clock).start()


@dataclass
class _Run:
    """One start of the loop: its arguments, and the host-side variables its parts share."""

    training: Training
    config: TrainConfig
    workdir: Path
    record: Mapping[str, Any]
    defaults: Mapping[str, Any] | None
    console: Console
    clock: Callable[[], float]

    def start(self) -> RunResult:
        training, config, process = self.training, self.config, jax.process_index()
        primary = process == 0
        open_workdir(self.workdir, self.record, primary, self.defaults)
        self.pace = Pace(config, training.total_steps, self.clock)
        with (
            self._open_checkpoints() as self.manager,
            # With several processes SIGTERM is jax's: its service tells all of them of a preemption
            # of one.
            StopSignals((signal.SIGINT,) if jax.process_count() > 1 else SIGNALS) as self.signals,
            open_trackers(config, self.workdir, self.record, primary) as trackers,
            Watchdog(config.hang_seconds, self.workdir, process) as self.watchdog,
            StepProfile(config.profile_steps, self.workdir / PROFILE) as self.profile,
        ):
            state, self.skipped = self._first_state()
            start = int(state.step)
            self.watchdog.beat(start)
            self.records = Records(self.workdir, start, primary, trackers)
            self.records.add_start(describe(state.params, training.total_steps))
            batches = training.batches(start) if start < training.total_steps else ()
            iterator = DevicePrefetch(iter(batches), training.mesh, HOST_FIELDS)
            try:
                return self._steps(state, start, iterator)
            finally:
                self.console.close()
                iterator.close()
                self.records.close()  # last: it may fail, on a full disk

    def _open_checkpoints(self) -> CheckpointManager:
        config = self.config
        return CheckpointManager(
            self.workdir / CHECKPOINTS,
            config.keep_checkpoints,
            keep_every=config.keep_every,
            keep_best=config.keep_best,
            best_metric=config.best_metric,
            best_mode=config.best_mode,
            say=self.console.say,
        )

    def _first_state(self) -> tuple[PyTree, int]:
        """The state to go on from, on the devices, and how many pairs were skipped until then."""
        training, say = self.training, self.console.say
        abstract = jax.eval_shape(training.init_state)
        if training.shardings:
            shardings = training.shardings(abstract, training.mesh)
        else:
            shardings = jax.tree.map(lambda leaf: replicated(training.mesh), abstract)
        if self.manager.latest_step() is not None:  # case 1 of train/start.py
            state, position = go_on(self.manager, abstract, shardings, say, training.course)
            say(f"going on from step {position['next_step']} of {self.workdir}")
        else:
            own = training.start_from, training.course, training.copies, self._keep_account
            state, position = begin(self.config, training.init_state, shardings, say, *own)
        trained_on = position.get("data", training.data_id)
        if trained_on != training.data_id:
            raise CheckpointError(
                f"{self.workdir} was trained on other records (digest {trained_on}, here "
                f"{training.data_id})",
                "the same files in the same order, so that no sample is repeated or left out",
                "restore them, or start in another --workdir",
            )
        return state, position["skipped"]

    def _keep_account(self, text: str) -> None:
        """What became of each tensor of other weights, in a file."""
        if jax.process_index() == 0:
            with writing(self.workdir / WEIGHTS):
                write_whole(self.workdir / WEIGHTS, text + "\n")
            self.console.say(f"every tensor: {self.workdir / WEIGHTS}")

    # --------------------------------------------------------------------------------- the steps

    def _steps(self, state: PyTree, start: int, iterator: DevicePrefetch) -> RunResult:
        self._get_ready(state)
        if self._evaluation_due(start) and start and not _agreed(self.records.evaluated):
            self._evaluate(state, start)  # killed between this checkpoint and its evaluation
        total, stop, step = self.training.total_steps, 0, start
        while step < total and not stop:
            step += 1
            if self.profile.wanted(step - 1) != self.profile.wanted(step):
                self._finish_pending()  # what is begun by now ends here
                self._end_profile()
            state = self._step(state, step, iterator)
            stop = self._stop_asked(step)
            self._save_and_evaluate(state, step, stop)
            if step < total and not stop:
                self._record_speed()
        if step == total:
            stop = 0  # asked to stop, but done
        self._finish(step, start, stop)
        return RunResult(state, step, max(stop, 0))

    def _get_ready(self, state: PyTree) -> None:
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        self.step_fn = sharded_step(self.training.train_step, self.training.mesh, places)
        self.observe_fn, self.params_finite = jax.jit(self.training.observe), jax.jit(all_finite)
        self.flops_of: dict[Hashable, float] = {}  # operations of a step, by compiled program
        # The step whose metrics are still being computed.
        self.pending: _Pending | None = None

    def _step(self, state: PyTree, step: int, iterator: DevicePrefetch) -> PyTree:
        """The state after the step; its metrics wait in `pending`."""
        stage = self.training.stage(step - 1)
        with self._in("next", "input"):
            batch = self._next_batch(iterator, step)
        program = (stage, *(value.shape for value in batch.values()))
        known = program in self.flops_of
        self.pace.read(len(next(iter(batch.values()))), compiles=not known)
        if known:
            flops = self.flops_of[program]
            with self._in("step", "compute"), self.profile.step(step):
                state, metrics = self.step_fn(state, batch, stage)
                # Waiting for the step before, while this one runs, keeps the device busy.
                jax.block_until_ready(self.pending)
            self._check_and_record()
        else:
            self._check_and_record()
            self._record_speed()
            state, metrics = self._compile_and_step(state, batch, stage, step)
            flops, self.flops_of[program] = 0.0, self._flops(state, batch, stage)
        if self._recorded(step):
            with self._in("step", "compute"), jax.set_mesh(self.training.mesh):
                metrics = metrics | self.observe_fn(state)
        self.pending = _Pending(step, metrics, self.skipped, flops)
        return state

    def _compile_and_step(
        self, state: PyTree, batch: Batch, stage: Hashable, step: int
    ) -> tuple[PyTree, Metrics]:
        self.console.say(f"step {step}: compiling" + (f" for {stage}" if stage is not None else ""))
        began = self.clock()
        with self._in("start", "compile"), self.profile.step(step):
            state, metrics = jax.block_until_ready(self.step_fn(state, batch, stage))
        took = format_seconds(self.clock() - began)
        self.console.say(f"step {step}: compiled and done in {took}")
        self.pace.leave_out()
        return state, metrics

    def _flops(self, state: PyTree, batch: Batch, stage: Hashable) -> float:
        """Operations of a step on one device."""
        # As it was traced before, so that it is not traced again.
        with jax.set_mesh(self.training.mesh):
            traced = self.step_fn.jitted.trace(state, batch, stage)
        return matmul_flops(traced.jaxpr.jaxpr) / self.training.mesh.size

    def _next_batch(self, iterator: DevicePrefetch, step: int) -> Batch:
        item = next(iterator, None)
        if item is None:
            raise DataError(
                f"the data ended before step {step}",
                f"{self.training.total_steps} batches",
                "lower train.steps",
            )
        batch, host = item
        self.skipped += int(np.sum(host.get("skipped_B", 0)))
        return batch

    def _finish_pending(self) -> None:
        """Waits for the last step, and records it."""
        with self._in("step", "compute"):
            jax.block_until_ready(self.pending)
        self._check_and_record()

    def _check_and_record(self) -> None:
        """Checks, shows and records the metrics of the step that is done, if there is one."""
        if self.pending is None:
            return
        (step, metrics, skipped, flops), self.pending = self.pending, None
        self.watchdog.beat(step)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.pace.done(flops)
        watched = {
            name: value for name, value in values.items() if name.split("/")[0] in ("loss", "optim")
        }
        if not all(math.isfinite(value) for value in watched.values()):
            raise self._diverged(step, watched)
        due = self._recorded(step)
        line = f"step {step}/{self.training.total_steps}  {format_losses(values)}"
        self.console.progress(line + self.pace.line(step), due)
        if due:
            self.records.add(step, "train", values | {"data/skipped": skipped})
            self.pace.record(step)

    def _record_speed(self) -> None:
        """Records the speed since the last entry, if one is due."""
        if entry := self.pace.entry():
            self.records.add_timing(*entry)

    @contextmanager
    def _in(self, section: str, waits_for: str) -> Iterator[None]:
        """Seconds inside are counted under `section`; the watchdog says what is waited for."""
        with self.watchdog.waiting(waits_for), self.pace.timer(section):
            yield

    def _end_profile(self) -> None:
        if self.profile.stop():
            self.console.say(f"profile: {self.workdir / PROFILE}")

    # ------------------------------------------------------------------------- what is due when

    def _recorded(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.training.total_steps

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.eval_every
        return step == self.training.total_steps or bool(every and step % every == 0)

    def _stop_asked(self, step: int) -> int:
        """0, a signal's number, or OVER_BUDGET; the same on every process."""
        with self.watchdog.waiting("barrier"):
            asked = self.signals.received or (OVER_BUDGET if self.pace.over_budget else 0)
            if jax.process_count() > 1:
                # the same step on every process
                if multihost_utils.reached_preemption_sync_point(step):
                    return signal.SIGTERM
                if step % self.config.log_every:  # asking the others waits for the device
                    return 0
            return _agreed(asked)

    # ----------------------------------------------------------------- checkpoint and evaluation

    def _save_and_evaluate(self, state: PyTree, step: int, stop: int) -> None:
        """What is due after a step."""
        last = step == self.training.total_steps
        save = step % self.config.checkpoint_every == 0 or last or bool(stop)
        evaluate = self._evaluation_due(step) or stop == OVER_BUDGET
        if save or evaluate:
            self._record_speed()
            self._finish_pending()
        if save:
            self._save(state, step)
        if evaluate:
            self._evaluate(state, step)

    def _save(self, state: PyTree, step: int) -> None:
        with self._in("checkpoint", "checkpoint"):
            if not self.params_finite(state.params):
                raise self._diverged(step, {"params": math.nan})
            position = {"next_step": step, "skipped": self.skipped, "data": self.training.data_id}
            self.records.sync()
            self.manager.save(step, state, position, {"config": dict(self.record)})

    def _evaluate(self, state: PyTree, step: int) -> None:
        with self._in("evaluation", "evaluation"):
            metrics = self._metrics(state, step)
            if not metrics:
                return
            values = {metric.key: metric.value for metric in metrics}
            if self.training.report and jax.process_index() == 0:
                with writing(self.workdir):
                    text = self.training.report(step, metrics)
                self.console.say(text)
            self.manager.record_metrics(step, values)
            # last: a start that finds this entry does not evaluate again
            self.records.add(step, "eval", values)

    def _metrics(self, state: PyTree, step: int) -> list[Measurement]:
        evaluators = self.training.evaluators
        if not evaluators:
            return []
        trained = everywhere((state.params, state.method_state), self.training.mesh)
        params, method_state = trained
        return [one for evaluator in evaluators for one in evaluator(params, method_state, step)]

    # ------------------------------------------------------------------------------------ the end

    def _finish(self, step: int, start: int, stop: int) -> None:
        with self._in("checkpoint", "checkpoint"):
            self.manager.wait()
        self._record_speed()
        self._end_profile()
        at = f"step {step}/{self.training.total_steps}, saved in {self.workdir / CHECKPOINTS}"
        if step == start:
            self.console.say(f"nothing left to train: {at}")
        elif stop > 0:
            again = "the same command goes on from here"
            self.console.say(f"stopped by signal {stop} at {at}; {again}")
        else:
            reason = "time budget used up after" if stop else "finished in"
            self.console.say(f"{reason} {format_seconds(self.pace.elapsed)} at {at}")

    def _diverged(self, step: int, values: Mapping[str, float]) -> DivergedError:
        self.manager.wait()
        good, where = self.manager.latest_step(), "there is none yet"
        if good is not None:
            where = f"step {good} in {self.workdir / CHECKPOINTS}"
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        return DivergedError(
            f"not finite at step {step} ({parts})",
            "finite losses, gradients and parameters",
            "lower the learning rate or raise the warm-up, in another --workdir; last good "
            f"checkpoint: {where}",
        )


class _Pending(NamedTuple):
    """A step that the devices may still be working on."""

    step: int
    metrics: Metrics
    skipped: int  # pairs, until then
    flops: float  # on one device; 0 for a step that compiled


def _agreed(value: int) -> int:
    """The same on every process: a value other than 0 that some process has, else 0."""
    if jax.process_count() == 1:
        return int(value)
    votes = multihost_utils.process_allgather(np.int32(value))
    return int(votes.max() or votes.min())
