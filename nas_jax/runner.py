"""Assembles a run from its config: data, tokenizer, method, optimizer, evaluators; then trains or
evaluates.

Outermost layer: the only place that knows every room. `main.py` calls `main`.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.config import (
    RunConfig,
    check_vocabulary,
    defaults_of,
    from_config_dict,
    mesh_of,
    to_dict,
)
from nas_jax.data import pipeline, text_check
from nas_jax.data.corpus import Corpus
from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.given_report import check_given, given_report
from nas_jax.data.tokenizer import TextTokenizer, load_tokenizer
from nas_jax.evals import results as evaluation_results
from nas_jax.evals import run as benchmarks
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.keys import check_key, metric_keys
from nas_jax.evals.metrics import Metric, format_table
from nas_jax.evals.results import Result
from nas_jax.evals.suite import Evaluator, Measured, make_evaluator, write_results
from nas_jax.inspect.negatives_found import warnings_of
from nas_jax.inspect.report import draw_nva_examples
from nas_jax.inspect.run_files import read_negatives
from nas_jax.methods import make_method
from nas_jax.methods.method import Method, Setting
from nas_jax.parallel.mesh import everywhere, make_mesh
from nas_jax.parallel.processes import Processes, start
from nas_jax.parallel.rules import format_placements, placements, state_shardings, with_shardings
from nas_jax.preflight import preflight
from nas_jax.rehearsal import compile_step
from nas_jax.storage.files import write_whole
from nas_jax.storage.paths import absolute, as_path, check_bucket, is_bucket, reaching
from nas_jax.tasks import Task, task_of
from nas_jax.tasks.evaluation import make_task_evaluator
from nas_jax.tasks.task import Asker, TestSet
from nas_jax.train import loop
from nas_jax.train.config import EVALUABLE
from nas_jax.train.going_on import Course, beginning, known_tokenizer
from nas_jax.train.optimizer import make_optimizer
from nas_jax.train.state import TrainState, init_state
from nas_jax.train.step import make_train_step
from nas_jax.train.watch import check_trackers
from nas_jax.train.workdir import (
    CHECKPOINTS,
    EVALS,
    TOKENIZER,
    check_config,
    has_checkpoint,
    open_workdir,
    writing,
)
from nas_jax.utils.logging import Console, set_up_logging
from nas_jax.utils.trees import num_params

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    from nas_jax.train.schedules import Schedule

COMPILE_CACHE = "compile_cache"
NEGATIVES_PICTURE = "nva.png"


def main(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | None,
    mode: str,
    topology: str = "local",
    compile_effort: str = "full",
    processes: Processes = Processes(),  # noqa: B008 (frozen)
) -> int:
    """Runs `mode` in `workdir`; returns the exit code. Raises UserError.

    workdir: None is for the mode `compile` alone. topology, compile_effort: for the mode `compile`.
    """
    set_up_logging()
    run = from_config_dict(config)
    folder = as_path(workdir or "")
    if mode == "check":
        start(processes)
        return preflight(run, folder)
    check_bucket(folder)
    with reaching(folder):
        if mode == "compile":
            return compile_step(run, topology, folder if workdir else None, compile_effort)
        start(processes)
        jax.config.update("jax_compilation_cache_dir", str(compile_cache(folder)))
        # the many small ones add up to seconds
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        return {"train": train, "eval": evaluate}[mode](run, folder)


def compile_cache(workdir: Path) -> Path | str:
    """Where compiled programs are kept: a restart finds the step of the run it continues.

    JAX's own variable comes first, so that runs of one study share them. Not in a bucket: it would
    be asked for hundreds of small programs, one by one.
    """
    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return named
    if not is_bucket(workdir):
        return absolute(workdir) / COMPILE_CACHE
    return Path(tempfile.gettempdir(), f"nas_jax-{os.getuid()}", COMPILE_CACHE)


def train(run: RunConfig, workdir: Path) -> int:
    """Trains to the end of the config, from the newest checkpoint in `workdir` if there is one."""
    console = Console(enabled=jax.process_index() == 0)
    check_trackers(run.train, workdir)
    if line := beginning(run.train, workdir):
        console.say(line)
    # Before the tokenizer, which must not come from another config's run.
    open_workdir(workdir, to_dict(run), write=jax.process_index() == 0, defaults=defaults_of(run))
    mesh = mesh_of(run)
    parts = assemble(run, workdir, learn=True, mesh=mesh)
    report = text_check.caption_report(parts.source, parts.tokenizer, run.data)
    console.say(parts.summary(run, mesh.size))
    console.say(f"captions: {report.line()}")
    stops = not has_checkpoint(workdir)
    for line in text_check.judge(
        report, parts.tokenizer, run.data, run.method.has_generator, stops
    ):
        console.say(f"warning: {line}")
    given = given_report(parts.source, parts.tokenizer, run.data)
    for line in check_given(parts.source, given, parts.method.wants):
        console.say(f"warning: {line}")
    if given.line():
        console.say(f"given negatives: {given.line()}")
    if mesh.size > 1:
        abstract = jax.eval_shape(parts.init_state)
        console.say(format_placements(placements(abstract, mesh, parts.method.sharding), mesh))
    training = _training(run, workdir, parts, mesh)
    record, defaults = to_dict(run), defaults_of(run)
    result = loop.run(training, run.train, workdir, record, defaults=defaults, console=console)
    if not result.signal:
        _show(run, workdir, parts, result.state, mesh, console)
    return result.exit_code


def _training(run: RunConfig, workdir: Path, parts: Parts, mesh: Mesh) -> loop.Training:
    """The parts of a run as the loop takes them."""
    method = parts.method

    def batches(start: int) -> pipeline.Batches:
        rows = jax.process_index(), jax.process_count()
        return pipeline.train_batches(
            run.data, parts.tokenizer, run.seed, start, *rows, parts.source, method.wants
        )

    return loop.Training(
        train_step=make_train_step(method, parts.optimizer, parts.schedule),
        init_state=parts.init_state,
        batches=batches,
        total_steps=parts.total_steps,
        mesh=mesh,
        evaluators=parts.evaluators,
        stage=method.stage,
        observe=lambda state: method.observe(state.params, state.method_state),
        shardings=functools.partial(state_shardings, own=method.sharding),
        start_from=method.start_from,
        copies=method.copies,
        course=Course(to_dict(run), len(parts.source), method.renumbered),
        data_id=parts.source.identity(),
        report=lambda step, metrics: _report(run, workdir, step, metrics),
    )


def _show(
    run: RunConfig, workdir: Path, parts: Parts, state: TrainState, mesh: Mesh, console: Console
) -> None:
    """What a person wants to see at the end: a picture of the negatives, and the checkpoint."""
    params, method_state = everywhere((state.params, state.method_state), mesh)
    if parts.eval_sets and jax.process_index() == 0:
        path = workdir / NEGATIVES_PICTURE
        source = parts.eval_sets[0], parts.tokenizer, run.data.text_length
        if draw_nva_examples(path, parts.method, params, method_state, *source):
            console.say(f"negatives of four pictures: {path}")
    console.say(f"checkpoint: {workdir / CHECKPOINTS / str(int(state.step))}")


def evaluate(run: RunConfig, workdir: Path) -> int:
    """Measures the newest checkpoint in `workdir`, prints the table and writes
    evals/<step>.json.
    """
    console = Console(enabled=jax.process_index() == 0)
    check_config(workdir, to_dict(run), EVALUABLE, defaults_of(run))
    mesh = make_mesh(run.mesh)
    with CheckpointManager(workdir / CHECKPOINTS, read_only=True, say=console.say) as manager:
        parts = assemble(run, workdir, learn=False, mesh=mesh)
        abstract = jax.eval_shape(parts.init_state)
        places = state_shardings(abstract, mesh, parts.method.sharding)
        state, position = manager.restore(with_shardings(abstract, places))
    step = position["next_step"]
    params, method_state = everywhere((state.params, state.method_state), mesh)
    evaluators = parts.evaluators
    metrics = [one for evaluator in evaluators for one in evaluator(params, method_state, step)]
    if jax.process_index() == 0:
        console.say(_report(run, workdir, step, metrics))
        _warn_of_negatives(workdir, console)
    return 0


def _warn_of_negatives(workdir: Path, console: Console) -> None:
    """Says the warnings of the run's diagnosis, if it was made (inspect/negatives.py)."""
    unreadable: list[str] = []
    found = read_negatives(workdir, unreadable)
    for line in unreadable:
        console.say(line)
    if found is not None:
        for text, remedy in warnings_of(found):
            console.say(f"warning: at step {found.step} {text}; {remedy}")


@dataclass(frozen=True)
class Parts:
    """What a config stands for."""

    source: Corpus  # of the training pairs
    tokenizer: TextTokenizer
    method: Method
    optimizer: optax.GradientTransformation
    schedule: Schedule
    evaluators: tuple[Evaluator, ...]
    eval_sets: Sequence[EvalSet]
    total_steps: int
    steps_per_epoch: int
    seed: int

    def init_state(self) -> TrainState:
        """The state before the first step."""
        return init_state(self.method, self.optimizer, self.seed)

    def summary(self, run: RunConfig, devices: int) -> str:
        """What a reader wants to know before the first step."""
        params = num_params(jax.eval_shape(self.init_state).params)
        late = [step for step in self.method.stage_starts() if step >= self.total_steps]
        warning = late and (
            f"\nwarning: a part of {run.method.name} begins at step {min(late)}, after the last of "
            f"{self.total_steps}; lower its start_epoch, or train longer"
        )
        return (
            f"{run.name}: {run.method.name}, {params / 1e6:.1f} M parameters, vocabulary "
            f"{self.tokenizer.vocab_size}\n"
            f"{self.source.summary()}\n"
            f"{len(self.source)} training pictures in all, digest {self.source.identity()}\n"
            f"{self.total_steps} steps of {run.data.batch_size} pairs, {self.steps_per_epoch} an "
            f"epoch, on {devices} "
            f"{jax.devices()[0].platform} device{'s' if devices > 1 else ''}{warning or ''}"
        )


def assemble(run: RunConfig, workdir: Path, learn: bool, mesh: Mesh | None = None) -> Parts:
    """Builds all parts of a run. learn: learn the tokenizer if the run has none yet; else it must
    be in `workdir`.

    mesh: of the evaluations; None: the default device.
    """
    task = task_of(run.method.name)
    source = task.open_source(run.data, "train", run.seed)
    tokenizer = _tokenizer(run, workdir, source, learn)
    check_vocabulary(run.model, tokenizer.vocab_size, started=has_checkpoint(workdir))
    steps_per_epoch = pipeline.steps_per_epoch(run.data, source)
    total_steps = run.train.total_steps(steps_per_epoch)
    setting = Setting(tokenizer.vocabulary(), total_steps, steps_per_epoch, run.train.accumulate)
    method = make_method(run.method, run.model, setting)
    optimizer, schedule = make_optimizer(run.optimizer, total_steps, steps_per_epoch)
    # an evaluation by itself keeps every score, and so does the last one of a training run
    measured = _measured(run, task, tokenizer, detailed_from=total_steps if learn else 0)
    tests = task.tests(run.data, run.seed)
    if learn and run.train.best_metric:
        keys = metric_keys(run.eval, method, measured.eval_sets, measured.benchmarks)
        check_key(run.train.best_metric, keys + task.keys(tests))
    asker = Asker(method, tokenizer, run.data)
    evaluators = _evaluators(run, workdir, asker, measured, (task, tests), mesh)
    return Parts(
        source,
        tokenizer,
        method,
        optimizer,
        schedule,
        evaluators,
        measured.eval_sets,
        total_steps,
        steps_per_epoch,
        run.seed,
    )


def _measured(run: RunConfig, task: Task, tokenizer: TextTokenizer, detailed_from: int) -> Measured:
    """What an evaluation of the run measures."""
    texts = _texts(run, tokenizer)
    return Measured(
        task.open_eval_sets(run.data, run.seed, tokenizer.cased),
        tokenizer,
        run.data.text_length,
        run.model.image_size,
        benchmarks.load_all(run.eval, run.model.image_size, texts, run.data.image_range),
        detailed_from,
    )


def _texts(run: RunConfig, tokenizer: TextTokenizer) -> benchmarks.Texts:
    clean, positions = run.data.clean_captions, run.model.max_text_length
    return benchmarks.Texts(tokenizer, clean, positions, tokenizer.cased)


def _evaluators(
    run: RunConfig,
    workdir: Path,
    asker: Asker,
    measured: Measured,
    asked: tuple[Task, Sequence[TestSet]],
    mesh: Mesh | None,
) -> tuple[Evaluator, ...]:
    """The evaluators of a run; those that are no part of a training run show their progress.

    asked: the task of the run, and its tests.
    """

    def keep(
        step: int,
        results: Sequence[Result],
        config: EvalConfig,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Writes every score to evals/<step>/results.json, with tables and the protocol; and files
        of the task.
        """
        if jax.process_index() == 0:
            about = evaluation_results.about_checkpoint(workdir, step, run.name, asker.method)
            path = workdir / EVALS / str(step)
            with writing(path):
                texts = _texts(run, asker.tokenizer)
                protocol = benchmarks.protocol(config, texts, measured.image_size, about)
                evaluation_results.write(path, protocol, results)
                for name, text in (files or {}).items():
                    write_whole(path / name, text)

    console = Console(enabled=measured.detailed_from == 0 and jax.process_index() == 0)
    of_pairs = make_evaluator(run.eval, asker.method, measured, mesh, keep, console)
    task, tests = asked
    if not tests:
        return (of_pairs,)
    of_task = make_task_evaluator(task, asker, tests, run.eval, mesh, keep, console)
    return of_pairs, of_task


def _tokenizer(run: RunConfig, workdir: Path, source: Corpus, learn: bool) -> TextTokenizer:
    """The run's tokenizer: of the work directory once there is a checkpoint, else as the config
    says.
    """
    saved = workdir / TOKENIZER
    if not learn or has_checkpoint(workdir):
        return load_tokenizer(str(saved))
    tokenizer, _ = known_tokenizer(run.data, run.train, workdir)
    if tokenizer is None:
        tokenizer = pipeline.build_tokenizer(run.data, source)
    if jax.process_index() == 0:
        with writing(saved):
            tokenizer.save(saved)
    return tokenizer


def _report(run: RunConfig, workdir: Path, step: int, metrics: Sequence[Metric]) -> str:
    """Writes an evaluation to evals/<step>.json; returns its table."""
    path = workdir / EVALS / f"{step}.json"
    with writing(path):
        write_results(path, metrics, {"name": run.name, "step": step, "eval": to_dict(run.eval)})
    return f"evaluation at step {step} ({path}), in percent\n{format_table(metrics)}"
