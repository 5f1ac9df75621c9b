"""Assembles a run from its config: data, tokenizer, method, optimizer, evaluators; then trains or
evaluates.

Outermost layer: the only place that knows every room. `main.py` calls `main`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.config import RunConfig, from_config_dict, to_dict
from nas_jax.data import pipeline
from nas_jax.data.corpus import Corpus
from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.tokenizer import TextTokenizer, load_tokenizer, token_tables
from nas_jax.evals import results as evaluation_results
from nas_jax.evals import run as benchmarks
from nas_jax.evals.metrics import Metric, format_table
from nas_jax.evals.results import Result
from nas_jax.evals.suite import Evaluator, make_evaluator, write_results
from nas_jax.inspect.report import draw_nva_examples
from nas_jax.losses.mlm import SpecialTokens
from nas_jax.methods import Method, make_method
from nas_jax.negatives.nta import WordTables
from nas_jax.parallel.mesh import check_divisible, everywhere, make_mesh
from nas_jax.parallel.processes import Processes, start
from nas_jax.parallel.rules import format_placements, placements, state_shardings, with_shardings
from nas_jax.preflight import preflight
from nas_jax.rehearsal import compile_step
from nas_jax.storage.files import through_disk
from nas_jax.storage.paths import absolute, as_path, check_bucket, is_bucket, reaching
from nas_jax.train import loop
from nas_jax.train.config import EVALUABLE
from nas_jax.train.optimizer import make_optimizer
from nas_jax.train.state import TrainState, init_state
from nas_jax.train.step import make_train_step, observe
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
NVA_PICTURE = "nva.png"
DEFAULTS = to_dict(RunConfig())


def main(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | None,
    mode: str,
    topology: str = "local",
    compile_effort: str = "full",
    processes: Processes = Processes(),  # noqa: B008 (frozen)
) -> int:
    """Runs `mode` in `workdir`; returns the exit code. Raises UserError.

    topology, compile_effort: for the mode `compile`.
    """
    set_up_logging()
    run = from_config_dict(config)
    folder = as_path(workdir) if workdir else None
    if mode == "check":
        start(processes)
        return preflight(run, folder)
    check_bucket(folder or "")
    with reaching(folder or ""):
        if mode == "compile":
            return compile_step(run, topology, folder, compile_effort)
        start(processes)
        jax.config.update("jax_compilation_cache_dir", str(_compile_cache(folder)))
        # the many small ones add up to seconds
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        return {"train": train, "eval": evaluate}[mode](run, folder)


def _compile_cache(workdir: Path) -> Path | str:
    """Where compiled programs are kept: a restart finds the step of the run it continues.

    Not in a bucket: it would be asked for hundreds of small programs, one by one.
    """
    if not is_bucket(workdir):
        return absolute(workdir) / COMPILE_CACHE
    here = Path(tempfile.gettempdir(), f"nas_jax-{os.getuid()}", COMPILE_CACHE)
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or here


def train(run: RunConfig, workdir: Path) -> int:
    """Trains to the end of the config, from the newest checkpoint in `workdir` if there is one."""
    console = Console(enabled=jax.process_index() == 0)
    check_trackers(run.train, workdir)
    # Before the tokenizer, which must not come from another config's run.
    open_workdir(workdir, to_dict(run), write=jax.process_index() == 0, defaults=DEFAULTS)
    mesh = make_mesh(run.mesh)
    check_divisible(run.data.batch_size, mesh, run.train.accumulate)
    parts = assemble(run, workdir, learn=True, mesh=mesh)
    # warns of captions that are cut
    pipeline.caption_report(parts.source, parts.tokenizer, run.data)
    console.say(parts.summary(run, mesh.size))
    if mesh.size > 1:
        console.say(format_placements(placements(jax.eval_shape(parts.init_state), mesh), mesh))
    result = loop.run(
        make_train_step(parts.method, parts.optimizer, parts.schedule),
        parts.init_state,
        lambda start: pipeline.train_batches(
            run.data,
            parts.tokenizer,
            run.seed,
            start,
            jax.process_index(),
            jax.process_count(),
            parts.source,
        ),
        [parts.evaluator],
        run.train,
        workdir,
        to_dict(run),
        run_defaults=DEFAULTS,
        total_steps=parts.total_steps,
        mesh=mesh,
        stage=parts.method.stage,
        observe=observe,
        shardings=state_shardings,
        data_id=parts.source.identity(),
        report=lambda step, metrics: _report(run, workdir, step, metrics),
        console=console,
    )
    if not result.signal:
        _show(run, workdir, parts, result.state, mesh, console)
    return result.exit_code


def _show(
    run: RunConfig, workdir: Path, parts: Parts, state: TrainState, mesh: Mesh, console: Console
) -> None:
    """What a person wants to see at the end: a picture of the negatives, and where the checkpoint
    is.
    """
    if run.method.nva.enabled and parts.eval_sets:
        path = workdir / NVA_PICTURE
        params, method_state = everywhere((state.params, state.method_state), mesh)
        if jax.process_index() == 0:
            with writing(path), through_disk(path) as file:
                draw_nva_examples(
                    file,
                    parts.method,
                    params,
                    method_state,
                    parts.eval_sets[0],
                    parts.tokenizer,
                    run.data.text_length,
                )
        console.say(f"what NVA makes of four pictures: {path}")
    console.say(f"checkpoint: {workdir / CHECKPOINTS / str(int(state.step))}")


def evaluate(run: RunConfig, workdir: Path) -> int:
    """Measures the newest checkpoint in `workdir`, prints the table and writes
    evals/<step>.json.
    """
    console = Console(enabled=jax.process_index() == 0)
    check_config(workdir, to_dict(run), EVALUABLE, DEFAULTS)
    mesh = make_mesh(run.mesh)
    with CheckpointManager(workdir / CHECKPOINTS, read_only=True, say=console.say) as manager:
        parts = assemble(run, workdir, learn=False, mesh=mesh)
        abstract = jax.eval_shape(parts.init_state)
        state, position = manager.restore(with_shardings(abstract, state_shardings(abstract, mesh)))
    step = position["next_step"]
    metrics = parts.evaluator(*everywhere((state.params, state.method_state), mesh), step)
    if jax.process_index() == 0:
        console.say(_report(run, workdir, step, metrics))
    return 0


@dataclass(frozen=True)
class Parts:
    """What a config stands for."""

    source: Corpus  # of the training pairs
    tokenizer: TextTokenizer
    method: Method
    optimizer: optax.GradientTransformation
    schedule: Schedule
    evaluator: Evaluator
    eval_sets: tuple[EvalSet, ...]
    total_steps: int
    steps_per_epoch: int
    seed: int

    def init_state(self) -> TrainState:
        """The state before the first step."""
        return init_state(self.method, self.optimizer, self.seed)

    def summary(self, run: RunConfig, devices: int) -> str:
        """What a reader wants to know before the first step."""
        params = num_params(jax.eval_shape(self.init_state).params)
        return (
            f"{run.name}: {run.method.name}, {params / 1e6:.1f} M parameters, vocabulary "
            f"{self.tokenizer.vocab_size}\n"
            f"{self.source.summary()}\n"
            f"{len(self.source)} training pictures in all, digest {self.source.identity()}\n"
            f"{self.total_steps} steps of {run.data.batch_size} pairs, {self.steps_per_epoch} an "
            f"epoch, on {devices} "
            f"{jax.devices()[0].platform} device{'s' if devices > 1 else ''}"
        )


def assemble(run: RunConfig, workdir: Path, learn: bool, mesh: Mesh | None = None) -> Parts:
    """Builds all parts of a run. learn: learn the tokenizer if the run has none yet; else it must
    be in `workdir`.

    mesh: of the evaluations; None: the default device.
    """
    source = pipeline.open_source(run.data, "train", run.seed)
    tokenizer = _tokenizer(run, workdir, source, learn)
    steps_per_epoch = pipeline.steps_per_epoch(run.data, source)
    total_steps = run.train.total_steps(steps_per_epoch)
    method = make_method(
        run.method,
        run.model,
        WordTables(*token_tables(tokenizer)),
        SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id),
        total_steps,
        steps_per_epoch,
        run.train.accumulate,
    )
    optimizer, schedule = make_optimizer(run.optimizer, total_steps, steps_per_epoch)
    eval_sets = pipeline.open_eval_sets(run.data, run.seed)
    texts = benchmarks.Texts(tokenizer, run.data.clean_captions, run.model.max_text_length)
    evaluator = make_evaluator(
        run.eval,
        eval_sets,
        tokenizer,
        method,
        run.data.text_length,
        run.model.image_size,
        mesh,
        benchmarks.load_all(run.eval, run.model.image_size, texts),
        lambda step, results: _keep(run, workdir, step, results, texts),
        # an evaluation by itself keeps every score; those of a training run would fill the disk
        not learn,
        Console(enabled=not learn and jax.process_index() == 0),
    )
    return Parts(
        source,
        tokenizer,
        method,
        optimizer,
        schedule,
        evaluator,
        eval_sets,
        total_steps,
        steps_per_epoch,
        run.seed,
    )


def _tokenizer(run: RunConfig, workdir: Path, source: Corpus, learn: bool) -> TextTokenizer:
    """The run's tokenizer: of the work directory once there is a checkpoint, else as the config
    says.
    """
    saved = workdir / TOKENIZER
    if not learn or has_checkpoint(workdir):
        return load_tokenizer(str(saved))
    parent = run.train.continue_from or run.train.weights
    # the rows of its embedding table are the words of its tokenizer
    if parent and not run.data.tokenizer:
        tokenizer = load_tokenizer(str(as_path(parent) / TOKENIZER))
    else:
        tokenizer = pipeline.build_tokenizer(run.data, source)
    if jax.process_index() == 0:
        with writing(saved):
            tokenizer.save(saved)
    return tokenizer


def _keep(
    run: RunConfig, workdir: Path, step: int, results: Sequence[Result], texts: benchmarks.Texts
) -> None:
    """Writes every score to evals/<step>/results.json, with tables and the protocol beside it."""
    if jax.process_index() != 0:
        return
    path = workdir / EVALS / str(step)
    info = {
        "name": run.name,
        "method": run.method.name,
        "path": f"{workdir.name}/{CHECKPOINTS}/{step}",
        "step": step,
    }
    info["digest"] = evaluation_results.digest(workdir / CHECKPOINTS / str(step))
    with writing(path):
        evaluation_results.write(
            path, benchmarks.protocol(run.eval, texts, run.model.image_size, info), results
        )


def _report(run: RunConfig, workdir: Path, step: int, metrics: Sequence[Metric]) -> str:
    """Writes an evaluation to evals/<step>.json; returns its table."""
    path = workdir / EVALS / f"{step}.json"
    with writing(path):
        write_results(path, metrics, {"name": run.name, "step": step, "eval": to_dict(run.eval)})
    return f"evaluation at step {step} ({path}), in percent\n{format_table(metrics)}"
