"""`--mode=check`: what would stop a run, found in seconds and before a pod is rented.

Outermost layer, beside `runner.py`. Each check gives one line; none of them changes anything but a
probe file in the work directory, which is removed again.
"""

from __future__ import annotations

import functools
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.config import RunConfig, check_vocabulary, defaults_of, mesh_of, to_dict
from nas_jax.data import pipeline, text_check
from nas_jax.data.corpus import Corpus
from nas_jax.data.given import GivenCaptions, GivenImages
from nas_jax.data.given_report import check_given, given_report
from nas_jax.data.tokenizer import TextTokenizer, load_tokenizer
from nas_jax.evals.keys import check_key, metric_keys
from nas_jax.evals.run import Texts, load_all
from nas_jax.methods import method_class
from nas_jax.parallel.mesh import make_mesh, num_row_shards
from nas_jax.parallel.rules import placements
from nas_jax.rehearsal.compiled import abstract_step, planned_method
from nas_jax.storage.files import check_writable, write_whole
from nas_jax.storage.paths import as_path, check_bucket, failures, in_words, is_bucket, reaching
from nas_jax.tasks import task_of
from nas_jax.train.config import RESUMABLE
from nas_jax.train.going_on import Course, beginning, known_tokenizer
from nas_jax.train.watch import check_trackers
from nas_jax.train.workdir import CHECKPOINTS, TOKENIZER, check_config, has_checkpoint
from nas_jax.utils.errors import CheckpointError, DataError, UserError
from nas_jax.utils.logging import Console

OK, WARNING, ERROR = "ok", "warning", "ERROR"
LEARNED_FROM = 20_000  # records of each part: enough for what is said of a vocabulary


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    verdict: str
    text: str


def preflight(run: RunConfig, workdir: Path) -> int:
    """Runs all checks and prints a line for each.

    Returns 0, or the exit code of the first error.
    """
    console, findings, code = Console(), [], 0
    for what, check in _checks(run, workdir):
        try:
            with reaching(workdir):
                verdict, text = check()
        except UserError as error:
            verdict, text, code = ERROR, str(error), code or error.exit_code
        findings.append(Finding(what, verdict, text))
        console.say(f"{what:<12} {verdict:<8} {text}")
    errors = sum(finding.verdict == ERROR for finding in findings)
    warnings = sum(finding.verdict == WARNING for finding in findings)
    console.say(f"{len(findings)} checks: {errors} errors, {warnings} warnings")
    return code


def _checks(run: RunConfig, workdir: Path) -> Iterator[tuple[str, Callable[[], tuple[str, str]]]]:
    """(name, check) in the order in which a run would meet them.

    What one check opens, later ones use.
    """
    opened: dict[str, Corpus] = {}

    def corpus() -> Corpus:
        if "train" not in opened:
            opened["train"] = task_of(run.method.name).open_source(run.data, "train", run.seed)
        return opened["train"]

    @functools.cache
    def tokenizer() -> tuple[TextTokenizer, str]:
        known, origin = known_tokenizer(run.data, run.train, workdir)
        return known or pipeline.build_tokenizer(run.data, corpus(), LEARNED_FROM), origin

    yield "config", lambda: _config(run, workdir)
    yield "workdir", lambda: _workdir(workdir)
    yield "mesh", lambda: _mesh(run)
    yield "memory", lambda: _memory(run)
    yield "data", lambda: _data(run, corpus())
    yield "tokenizer", lambda: _tokenizer(run, workdir, corpus(), *tokenizer())
    yield "negatives", lambda: _negatives(run, corpus(), tokenizer()[0])
    yield "evaluation", lambda: _evaluation(run, workdir)
    yield "checkpoint", lambda: _checkpoint(run, workdir, corpus())


def _config(run: RunConfig, workdir: Path) -> tuple[str, str]:
    check_trackers(run.train, workdir)
    return OK, f"{run.name}: {run.method.name}, batch {run.data.batch_size}"


def _workdir(workdir: Path) -> tuple[str, str]:
    if is_bucket(workdir):
        return _bucket(workdir)
    try:
        free = shutil.disk_usage(check_writable(workdir)).free
    except OSError as error:
        raise CheckpointError(
            f"{workdir}: {error.strerror}", "a writable --workdir", "pass another"
        ) from error
    return OK, f"{workdir} can be written, {free / 2**30:.1f} GiB free"


def _bucket(workdir: Path) -> tuple[str, str]:
    check_bucket(workdir)
    probe = workdir / f".check-{uuid.uuid4().hex}"
    try:
        write_whole(probe, "")
        probe.unlink()
    except failures() as error:
        remedy = "give the account the roles of docs/launch.md"
        raise CheckpointError(
            f"{workdir}: {in_words(error)}", "a writable --workdir", remedy
        ) from error
    return OK, f"{workdir} can be written"


def _mesh(run: RunConfig) -> tuple[str, str]:
    mesh = mesh_of(run)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    rows = num_row_shards(mesh)
    text = f"{sizes}, {run.data.batch_size // rows} pairs a device in {run.train.accumulate} pieces"
    advice = run.method.mesh_advice(rows)
    return (WARNING, f"{text}; {advice}") if advice else (OK, text)


def _memory(run: RunConfig) -> tuple[str, str]:
    mesh = make_mesh(run.mesh)
    abstract = abstract_step(run, mesh)
    rows = placements(abstract.state, mesh, abstract.method.sharding)
    held = sum(row.bytes_per_device for row in rows)
    text = f"state {held / 2**30:.2f} GiB a device"
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return (
            OK,
            f"{text}; this device does not say what it has (--mode=compile measures the whole "
            "step)",
        )
    if held > 0.9 * stats["bytes_limit"]:
        limit = stats["bytes_limit"] / 2**30
        raise CheckpointError(
            f"{text} of {limit:.2f} GiB", "room for activations", "raise mesh.fsdp"
        )
    return OK, f"{text} of {stats['bytes_limit'] / 2**30:.2f} GiB"


def _data(run: RunConfig, source: Corpus) -> tuple[str, str]:
    steps = pipeline.steps_per_epoch(run.data, source)
    text = (
        f"{len(source)} records in {len(source.parts)} sources, digest {source.identity()}, "
        f"{steps} steps an epoch"
    )
    # Paths that do not match, and pictures that are not read, show here.
    broken = [name for part in source.parts for name in pipeline.unreadable(part, run.data)]
    looked = pipeline.missing_files(source, run.data.weights)
    if looked.of:
        text += f"; looked for {looked.looked_at} of {looked.of} picture files"
    if looked.missing:
        text += (
            f", {looked.missing} are missing, like {looked.example}: "
            f"{looked.share:.2%} of the pairs that are drawn"
        )
    if looked.share > run.data.max_skipped_share:
        raise DataError(
            text,
            f"at most a share of {run.data.max_skipped_share:g} missing",
            "mend the files, or raise data.max_skipped_share",
        )
    if broken:
        text += f"; unreadable: {broken[0]}"
    if dropped := source.report.line():
        text += f"; dropped on opening: {dropped}"
    return (WARNING if looked.missing or broken or dropped else OK), text


def _tokenizer(
    run: RunConfig, workdir: Path, source: Corpus, tokenizer: TextTokenizer, origin: str
) -> tuple[str, str]:
    started = has_checkpoint(workdir)
    check_vocabulary(run.model, tokenizer.vocab_size, started=started)
    report = text_check.caption_report(source, tokenizer, run.data)
    cut = report.share("cut_by_text_length")
    text = (
        f"{origin}, {tokenizer.vocab_size} entries, {cut:.1%} of captions cut at "
        f"{run.data.text_length} tokens, {report.line()}"
    )
    wrong = text_check.judge(
        report, tokenizer, run.data, run.method.has_generator, stops=not started
    )
    return (WARNING if wrong or cut > 0.05 else OK), "; ".join([text, *wrong])


def _negatives(run: RunConfig, source: Corpus, tokenizer: TextTokenizer) -> tuple[str, str]:
    """The negatives that the data bring, and those that the method asks for."""
    report = given_report(source, tokenizer, run.data)
    wants = planned_method(run).wants
    warnings = check_given(source, report, wants)
    line = report.line() or "the data have none of their own"
    if report.line() and not any(isinstance(one, GivenCaptions | GivenImages) for one in wants):
        line += ", which this method does not read (method.itm.given of nas, or 'given' in "
        line += "method.negatives.generators)"
    return (WARNING if warnings else OK), "; ".join([line, *warnings])


def _evaluation(run: RunConfig, workdir: Path) -> tuple[str, str]:
    tokenizer, _ = known_tokenizer(run.data, run.train, workdir)
    cased = tokenizer is not None and tokenizer.cased
    task, public = task_of(run.method.name), []
    sets, tests = task.open_eval_sets(run.data, run.seed, cased), task.tests(run.data, run.seed)
    found = [
        f"{one.name}: {len(one.images)} pictures, {len(one.foils)} foils, {len(one.quads)} quads"
        for one in sets
    ]
    found += [f"{test.name}: {len(test.source)} items" for test in tests]
    unknown = bool(run.eval.benchmarks) and tokenizer is None
    if unknown:
        found.append(f"{', '.join(run.eval.benchmarks)}: not opened, as there is no tokenizer yet")
    elif tokenizer is not None:
        texts = Texts(tokenizer, run.data.clean_captions, run.model.max_text_length, cased)
        public = load_all(run.eval, run.model.image_size, texts, run.data.image_range)
        found += [one.name for one in public]
    if run.train.best_metric:
        keys = metric_keys(run.eval, method_class(run.method.name), sets, public)
        keys += task.keys(tests)
        if run.train.best_metric in keys or not unknown:
            check_key(run.train.best_metric, keys)
            found.append(f"the best is by {run.train.best_metric}")
    if not found:
        return WARNING, "no evaluation sets: set data.holdout or data.val"
    return OK, "; ".join(found)


def _checkpoint(run: RunConfig, workdir: Path, source: Corpus) -> tuple[str, str]:
    said, course = beginning(run.train, workdir), Course(to_dict(run), len(source))
    if not has_checkpoint(workdir) and not run.train.continue_from:
        weights = run.train.weights
        return OK, f"none yet: starts from {f'weights of {weights}' if weights else 'nothing'}"
    if not has_checkpoint(workdir):
        other = as_path(run.train.continue_from)
        with CheckpointManager(other / CHECKPOINTS, read_only=True) as manager:
            step = manager.all_steps()[-1]
            text = f"none yet: goes on from step {step} of {other}"
            return _changes(manager, step, course, [text])
    check_config(workdir, to_dict(run), RESUMABLE, defaults_of(run))
    rows = run.model.vocab_size or load_tokenizer(str(workdir / TOKENIZER)).vocab_size
    model = replace(run.model, vocab_size=rows)
    abstract = abstract_step(replace(run, model=model), make_mesh(run.mesh))
    with CheckpointManager(workdir / CHECKPOINTS, read_only=True) as manager:
        step = manager.all_steps()[-1]
        manager.check_shapes(abstract.state, step)
        lines = [f"would go on from step {step}", *filter(None, [said])]
        return _changes(manager, step, course, lines)


def _changes(
    manager: CheckpointManager, step: int, course: Course, said: list[str]
) -> tuple[str, str]:
    """What was said, and what changes where the run goes on."""
    _, lines = course.after(manager.metadata(step).get("config", {}), step)
    return (WARNING if lines or len(said) > 1 else OK), "; ".join([*said, *lines])
