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
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.parallel.mesh import everywhere, replicated
from nas_jax.parallel.prefetch import DevicePrefetch
from nas_jax.parallel.rules import with_shardings
from nas_jax.storage.paths import as_path
from nas_jax.train.config import TrainConfig
from nas_jax.train.machine import describe, matmul_flops, memory, peak_flops
from nas_jax.train.profiling import StepProfile
from nas_jax.train.start import begin
from nas_jax.train.step import sharded_step
from nas_jax.train.watch import open_trackers
from nas_jax.train.watchdog import Watchdog
from nas_jax.train.workdir import CHECKPOINTS, PROFILE, Records, open_workdir, writing
from nas_jax.typing import Batch, Metrics, PyTree
from nas_jax.utils.errors import CheckpointError, DataError, DivergedError
from nas_jax.utils.logging import Console, Timer, format_losses, format_seconds
from nas_jax.utils.signals import SIGNALS, StopSignals
from nas_jax.utils.trees import all_finite

HOST_FIELDS = ("skipped_B", "record_B")  # of a batch: not for the devices
OVER_BUDGET = -1  # a reason to stop, beside the signal numbers, which are positive
SPLIT = {
    "input": "input",
    "compute": "step",
    "checkpoint": "checkpoint",
    "evaluation": "evaluation",
    "compile": "start",
}
"""What timings.jsonl calls the sections of the timer."""


class Metric(Protocol):
    """What an evaluator returns a list of."""

    key: str
    value: float


Evaluator = Callable[[PyTree, PyTree, int], Sequence[Metric]]
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


def run(
    train_step: Callable[[PyTree, Batch, Hashable], tuple[PyTree, Metrics]],
    init_state: Callable[[], PyTree],
    batches: Callable[[int], Iterator[Batch]],
    evaluators: Sequence[Evaluator],
    config: TrainConfig,
    workdir: str | Path,
    run_record: Mapping[str, Any],
    *,
    run_defaults: Mapping[str, Any] | None = None,
    total_steps: int,
    mesh: Mesh,
    stage: Callable[[int], Hashable] = lambda step: None,
    observe: Callable[[PyTree], Metrics] = lambda state: {},
    shardings: Callable[[PyTree, Mesh], PyTree] | None = None,
    data_id: str = "",
    report: Callable[[int, Sequence[Metric]], str] | None = None,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RunResult:
    """Trains up to `total_steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      train_step: pure `(state, batch, stage) -> (state, metrics)`; metrics are fp32 scalars and
      include `loss`.
      init_state: the state before step 1; must be traceable by `jax.jit`.
      batches: `batches(n)` iterates over the batches from step n on (step n + 1 trains on its first
        one). Each is a dict of arrays with the batch as first axis; `skipped_B` and `record_B`, if
        there, stay on the host, and the former is counted. It is read in a thread, a few batches
        ahead of the step.
      evaluators: called at intervals and at the end.
      run_record: the nested config, written to config.json.
      run_defaults: of all its fields, for a run in `workdir` that is older than one of them.
      stage: which parts of the method are on after that many steps; `train_step` is compiled once
      for each value.
      observe: more metrics of the state after a step that is recorded; must be traceable by
      `jax.jit`.
      shardings: where the arrays of the state live, `(abstract state, mesh) -> tree of
        NamedSharding`; None: all of it on every device.
      data_id: a digest of the records that are read; a checkpoint of a run on others is refused.
      report: called on the first process with the step and the metrics of an evaluation; returns
      what is printed.

    Raises:
      CheckpointError: the work directory belongs to another config, or a checkpoint cannot be read
      or written.
      DivergedError: a loss, gradient or parameter is not finite; that state is not saved.
      DataError: the batches ended early.
    """
    return _Run(
        train_step=train_step,
        init_state=init_state,
        batches=batches,
        evaluators=evaluators,
        config=config,
        workdir=as_path(workdir),
        run_record=run_record,
        run_defaults=run_defaults,
        total_steps=total_steps,
        mesh=mesh,
        stage=stage,
        observe=observe,
        shardings=shardings,
        data_id=data_id,
        report=report,
        console=console or Console(enabled=jax.process_index() == 0, clock=clock),
        clock=clock,
    ).start()


@dataclass
class _Run:
    """One start of the loop: its arguments, and the host-side variables its parts share."""

    train_step: Callable
    init_state: Callable
    batches: Callable
    evaluators: Sequence[Evaluator]
    config: TrainConfig
    workdir: Path
    run_record: Mapping[str, Any]
    run_defaults: Mapping[str, Any] | None
    total_steps: int
    mesh: Mesh
    stage: Callable
    observe: Callable
    shardings: Callable | None
    data_id: str
    report: Callable | None
    console: Console
    clock: Callable[[], float]

    def start(self) -> RunResult:
        primary = jax.process_index() == 0
        open_workdir(self.workdir, self.run_record, primary, self.run_defaults)
        self.began = self.clock()
        with (
            CheckpointManager(
                self.workdir / CHECKPOINTS,
                self.config.keep_checkpoints,
                keep_every=self.config.keep_every,
                keep_best=self.config.keep_best,
                best_metric=self.config.best_metric,
                best_mode=self.config.best_mode,
                say=self.console.say,
            ) as self.manager,
            # With several processes SIGTERM is jax's: its service tells all of them of a preemption
            # of one.
            StopSignals((signal.SIGINT,) if jax.process_count() > 1 else SIGNALS) as self.signals,
            open_trackers(self.config, self.workdir, self.run_record, primary) as trackers,
            Watchdog(self.config.hang_seconds, self.workdir, jax.process_index()) as self.watchdog,
            StepProfile(self.config.profile_steps, self.workdir / PROFILE) as self.profile,
        ):
            state, self.skipped = self._first_state()
            start = int(state.step)
            self.watchdog.beat(start)
            self.records = Records(self.workdir, start, primary, trackers)
            self.records.add_start(describe(state.params, self.total_steps))
            iterator = iter(self.batches(start)) if start < self.total_steps else iter(())
            iterator = DevicePrefetch(iterator, self.mesh, HOST_FIELDS)
            try:
                return self._steps(state, start, iterator)
            finally:
                self.console.close()
                iterator.close()
                self.records.close()  # last: it may fail, on a full disk

    def _first_state(self) -> tuple[PyTree, int]:
        """The state to go on from, on the devices, and how many pairs were skipped until then."""
        abstract = jax.eval_shape(self.init_state)
        whole = jax.tree.map(lambda leaf: replicated(self.mesh), abstract)
        shardings = self.shardings(abstract, self.mesh) if self.shardings else whole
        if self.manager.latest_step() is not None:  # case 1 of train/start.py
            state, position = self.manager.restore(with_shardings(abstract, shardings))
            self.console.say(f"going on from step {position['next_step']} of {self.workdir}")
        else:
            state, position = begin(self.config, self.init_state, shardings, self.console.say)
        trained_on = position.get("data", self.data_id)
        if trained_on != self.data_id:
            raise CheckpointError(
                f"{self.workdir} was trained on other records (digest {trained_on}, here "
                f"{self.data_id})",
                "the same files in the same order, so that no sample is repeated or left out",
                "restore them, or start in another --workdir",
            )
        return state, position["skipped"]

    def _steps(self, state: PyTree, start: int, iterator: DevicePrefetch) -> RunResult:
        step_fn = sharded_step(
            self.train_step, self.mesh, jax.tree.map(lambda leaf: leaf.sharding, state)
        )
        params_finite = jax.jit(all_finite)
        self.timer, self.window, self.timed_steps, self.train_seconds = Timer(self.clock), 0, 0, 0.0
        # the step whose timings are to be written; operations since the last ones
        self.due, self.flops = None, 0.0
        observe = jax.jit(self.observe)
        flops = {}  # of a step, by program
        compiled = set()  # stages, and lengths of texts
        stop, step = 0, start
        if self._evaluation_due(start) and start and not _agreed(self.records.evaluated):
            with self._in("evaluation", "evaluation"):
                self._evaluate(state, start)  # killed between this checkpoint and its evaluation
        pending = None  # the step whose metrics are still being computed
        while step < self.total_steps and not stop:
            step += 1
            stage = self.stage(step - 1)
            # what is begun by now ends here
            if self.profile.wanted(step - 1) != self.profile.wanted(step):
                with self._in("step", "compute"):
                    jax.block_until_ready(pending)
                self._settle(pending)
                pending = None
                self._end_profile()
            with self._in("next", "input"):
                batch = self._next_batch(iterator, step)
            program = (stage, *(value.shape for value in batch.values()))
            self.batch_size = len(next(iter(batch.values())))
            # A step that compiles tells nothing about the speed.
            self.timer.rename("next", "input" if program in compiled else "start")
            if program not in compiled:
                self._settle(pending)
                self._close_window()
                pending = None
                state, metrics = self._compile_and_step(step_fn, state, batch, stage, step)
                compiled.add(program)
                work, flops[program] = 0.0, self._flops(step_fn, state, batch, stage)
            else:
                work = flops[program]
                with self._in("step", "compute"), self.profile.step(step):
                    state, metrics = step_fn(state, batch, stage)
                    # Waiting for the step before, while this one runs, keeps the device busy.
                    jax.block_until_ready(pending)
                self._settle(pending)
            if self._recorded(step):
                with self._in("step", "compute"), jax.set_mesh(self.mesh):
                    metrics = metrics | observe(state)
            pending = (step, metrics, self.skipped, work)
            with self.watchdog.waiting("barrier"):
                stop = self._stop_asked(step)
            save = step % self.config.checkpoint_every == 0 or step == self.total_steps or stop
            evaluate = self._evaluation_due(step) or stop == OVER_BUDGET
            if save or evaluate:
                self._close_window()
                with self._in("step", "compute"):
                    jax.block_until_ready(pending)
                self._settle(pending)
                pending = None
            if save:
                with self._in("checkpoint", "checkpoint"):
                    if not params_finite(state.params):
                        raise self._diverged(step, {"params": math.nan})
                    self._save(state, step)
            if evaluate:
                with self._in("evaluation", "evaluation"):
                    self._evaluate(state, step)
            if step < self.total_steps and not stop:
                self._close_window()
        if step == self.total_steps:
            stop = 0  # asked to stop, but done
        self._finish(step, start, stop)
        return RunResult(state, step, max(stop, 0))

    def _compile_and_step(
        self, step_fn: Callable, state: PyTree, batch: Batch, stage: Hashable, step: int
    ):
        self.console.say(f"step {step}: compiling" + (f" for {stage}" if stage is not None else ""))
        began = self.clock()
        with self._in("start", "compile"), self.profile.step(step):
            state, metrics = jax.block_until_ready(step_fn(state, batch, stage))
        self.console.say(
            f"step {step}: compiled and done in {format_seconds(self.clock() - began)}"
        )
        self.window -= 1
        return state, metrics

    def _flops(self, step_fn: Callable, state: PyTree, batch: Batch, stage: Hashable) -> float:
        """Operations of a step on one device."""
        with jax.set_mesh(self.mesh):  # as it was traced before, so that it is not traced again
            traced = step_fn.jitted.trace(state, batch, stage)
        return matmul_flops(traced.jaxpr.jaxpr) / self.mesh.size

    def _end_profile(self) -> None:
        if self.profile.stop():
            self.console.say(f"profile: {self.workdir / PROFILE}")

    @contextmanager
    def _in(self, section: str, waits_for: str) -> Iterator[None]:
        """Seconds inside are counted under `section`; the watchdog says what is waited for."""
        with self.watchdog.waiting(waits_for), self.timer(section):
            yield

    def _next_batch(self, iterator: DevicePrefetch, step: int) -> Batch:
        item = next(iterator, None)
        if item is None:
            raise DataError(
                f"the data ended before step {step}",
                f"{self.total_steps} batches",
                "lower train.steps",
            )
        batch, host = item
        self.skipped += int(np.sum(host.get("skipped_B", 0)))
        return batch

    def _settle(self, pending: tuple[int, Metrics, int, float] | None) -> None:
        """Checks, shows and records the metrics of a step that is done."""
        if pending is None:
            return
        step, metrics, skipped, work = pending
        self.watchdog.beat(step)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.window, self.flops = self.window + 1, self.flops + work
        watched = {
            name: value for name, value in values.items() if name.split("/")[0] in ("loss", "optim")
        }
        if not all(math.isfinite(value) for value in watched.values()):
            raise self._diverged(step, watched)
        due = self._recorded(step)
        self.console.progress(self._line(step, values), due)
        if due:
            self.records.add(step, "train", values | {"data/skipped": skipped})
            self.due = step

    def _recorded(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.total_steps

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        seconds = self.timer.total("input", "step")
        line = f"step {step}/{self.total_steps}  {format_losses(values)}"
        steps, spent = self.timed_steps + max(self.window, 0), self.train_seconds + seconds
        if self.window > 0 and seconds > 0:
            share = self.timer.total("input") / seconds
            line += f"  {self.window * self.batch_size / seconds:.0f} pairs/s  input {share:.0%}"
        if steps > 0 and spent > 0:
            left = (self.total_steps - step) * spent / steps
            if self.config.stop_after_seconds:
                left = min(left, self.began + self.config.stop_after_seconds - self.clock())
            line += f"  left {format_seconds(left)}"
        return line

    def _close_window(self) -> None:
        """Records the speed since the last entry, if one is due."""
        if self.due is None:
            return
        seconds = self.timer.total("input", "step")
        if self.window > 0 and seconds > 0:
            elapsed, achieved = self.clock() - self.began, self.flops / seconds
            peak = peak_flops(jax.devices()[0].device_kind, self.config.peak_tflops)
            self.records.add_timing(
                self.due,
                {
                    "seconds_per_step": seconds / self.window,
                    "pairs_per_second": self.window * self.batch_size / seconds,
                    "input_share": self.timer.total("input") / seconds,
                    **{
                        f"{name}_seconds": self.timer.total(section)
                        for name, section in SPLIT.items()
                    },
                    "tflops_per_device": achieved / 1e12,
                    **({"mfu": achieved / peak} if peak else {}),
                    **memory(),
                    "elapsed": elapsed,
                },
            )
            self.timed_steps, self.train_seconds = (
                self.timed_steps + self.window,
                self.train_seconds + seconds,
            )
            self.timer.reset()
        else:
            # Nothing to divide by: what compiling, saving and evaluating took waits for the next
            # entry.
            for section in ("input", "step"):
                self.timer.seconds.pop(section, None)
        self.window, self.flops, self.due = 0, 0.0, None

    def _stop_asked(self, step: int) -> int:
        """0, a signal's number, or OVER_BUDGET; the same on every process."""
        over = (
            self.config.stop_after_seconds
            and self.clock() - self.began >= self.config.stop_after_seconds
        )
        asked = self.signals.received or (OVER_BUDGET if over else 0)
        if jax.process_count() > 1:
            # the same step on every process
            if multihost_utils.reached_preemption_sync_point(step):
                return signal.SIGTERM
            if step % self.config.log_every:  # asking the others waits for the device
                return 0
        return _agreed(asked)

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.eval_every
        return step == self.total_steps or bool(every and step % every == 0)

    def _save(self, state: PyTree, step: int) -> None:
        position = {"next_step": step, "skipped": self.skipped, "data": self.data_id}
        self.records.sync()
        self.manager.save(step, state, position, {"config": dict(self.run_record)})

    def _evaluate(self, state: PyTree, step: int) -> None:
        if not self.evaluators:
            return
        params, method_state = everywhere((state.params, state.method_state), self.mesh)
        metrics = [
            metric
            for evaluator in self.evaluators
            for metric in evaluator(params, method_state, step)
        ]
        if not metrics:
            return
        values = {metric.key: metric.value for metric in metrics}
        if self.report and jax.process_index() == 0:
            with writing(self.workdir):
                text = self.report(step, metrics)
            self.console.say(text)
        self.manager.record_metrics(step, values)
        # last: a start that finds this entry does not evaluate again
        self.records.add(step, "eval", values)

    def _finish(self, step: int, start: int, stop: int) -> None:
        with self._in("checkpoint", "checkpoint"):
            self.manager.wait()
        self._close_window()
        self._end_profile()
        at = f"step {step}/{self.total_steps}, saved in {self.workdir / CHECKPOINTS}"
        if step == start:
            self.console.say(f"nothing left to train: {at}")
        elif stop > 0:
            self.console.say(
                f"stopped by signal {stop} at {at}; the same command goes on from here"
            )
        else:
            reason = "time budget used up after" if stop else "finished in"
            self.console.say(f"{reason} {format_seconds(self.clock() - self.began)} at {at}")

    def _diverged(self, step: int, values: Mapping[str, float]) -> DivergedError:
        self.manager.wait()
        good = self.manager.latest_step()
        where = (
            f"step {good} in {self.workdir / CHECKPOINTS}"
            if good is not None
            else "there is none yet"
        )
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        return DivergedError(
            f"not finite at step {step} ({parts})",
            "finite losses, gradients and parameters",
            "lower the learning rate or raise the warm-up, in another --workdir; last good "
            f"checkpoint: {where}",
        )


def _agreed(value: int) -> int:
    """The same on every process: a value other than 0 that some process has, else 0."""
    if jax.process_count() == 1:
        return int(value)
    votes = multihost_utils.process_allgather(np.int32(value))
    return int(votes.max() or votes.min())
