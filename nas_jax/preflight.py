"""`--mode=check`: what would stop a run, found in seconds and before a pod is rented.

Outermost layer, beside `runner.py`. Each check gives one line; none of them changes anything but a
probe file in the work directory, which is removed again.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.config import RunConfig, to_dict
from nas_jax.data import pipeline
from nas_jax.data.corpus import Corpus
from nas_jax.data.tokenizer import TextTokenizer, load_tokenizer
from nas_jax.evals.run import Texts, load_all
from nas_jax.parallel.mesh import check_divisible, make_mesh, num_row_shards
from nas_jax.parallel.rules import placements
from nas_jax.rehearsal import abstract_step
from nas_jax.storage.files import write_whole
from nas_jax.storage.paths import check_bucket, failures, in_words, is_bucket, reaching
from nas_jax.train.config import RESUMABLE
from nas_jax.train.watch import check_trackers
from nas_jax.train.workdir import CHECKPOINTS, TOKENIZER, check_config, has_checkpoint
from nas_jax.utils.errors import CheckpointError, UserError
from nas_jax.utils.logging import Console

OK, WARNING, ERROR = "ok", "warning", "ERROR"


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
            opened["train"] = pipeline.open_source(run.data, "train", run.seed)
        return opened["train"]

    yield "config", lambda: _config(run, workdir)
    yield "workdir", lambda: _workdir(workdir)
    yield "mesh", lambda: _mesh(run)
    yield "memory", lambda: _memory(run)
    yield "data", lambda: _data(run, corpus())
    yield "tokenizer", lambda: _tokenizer(run, workdir, corpus())
    yield "evaluation", lambda: _evaluation(run, workdir)
    yield "checkpoint", lambda: _checkpoint(run, workdir)


def _config(run: RunConfig, workdir: Path) -> tuple[str, str]:
    check_trackers(run.train, workdir)
    return OK, f"{run.name}: {run.method.name}, batch {run.data.batch_size}"


def _workdir(workdir: Path) -> tuple[str, str]:
    if is_bucket(workdir):
        return _bucket(workdir)
    nearest = workdir
    while not nearest.exists():
        nearest = nearest.parent
    try:
        with tempfile.NamedTemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        raise CheckpointError(
            f"{nearest}: {error.strerror}", "a writable --workdir", "pass another"
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
    mesh = make_mesh(run.mesh)
    check_divisible(run.data.batch_size, mesh, run.train.accumulate)
    rows, shards = num_row_shards(mesh), run.method.itm.mining_shards
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    text = f"{sizes}, {run.data.batch_size // rows} pairs a device in {run.train.accumulate} pieces"
    if rows > 1 and shards % rows:
        return WARNING, (
            f"{text}; hard negatives are drawn over device borders, which moves image tokens: "
            f"--config.method.itm.mining_shards={rows} keeps them at home"
        )
    return OK, text


def _memory(run: RunConfig) -> tuple[str, str]:
    mesh = make_mesh(run.mesh)
    abstract, *_ = abstract_step(run, mesh)
    held = sum(row.bytes_per_device for row in placements(abstract, mesh))
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
    # One record of each part is read and decoded: paths that do not match show here.
    read = [pipeline.first_unreadable(part) for part in source.parts]
    text = f"{len(source)} records in {len(source.parts)} sources, digest {source.identity()}, {steps} steps an epoch"
    broken = [name for name in read if name]
    if broken:
        return WARNING, f"{text}; unreadable: {broken[0]}"
    dropped = source.report.line()
    return (WARNING, f"{text}; dropped on opening: {dropped}") if dropped else (OK, text)


def _known_tokenizer(run: RunConfig, workdir: Path) -> tuple[TextTokenizer | None, str]:
    """The tokenizer, if there is one yet, and where it is from."""
    if has_checkpoint(workdir):
        return load_tokenizer(str(workdir / TOKENIZER)), f"of {workdir}"
    if run.data.tokenizer:
        return load_tokenizer(run.data.tokenizer, run.data.add_sep), run.data.tokenizer
    return None, "will be learned from the training captions"


def _tokenizer(run: RunConfig, workdir: Path, source: Corpus) -> tuple[str, str]:
    tokenizer, origin = _known_tokenizer(run, workdir)
    if tokenizer is None:
        return OK, origin
    counts = pipeline.caption_report(source, tokenizer, run.data)
    cut = counts["cut_by_text_length"] / max(counts["captions"], 1)
    text = f"{origin}, {tokenizer.vocab_size} entries, {cut:.1%} of captions cut at {run.data.text_length} tokens"
    return (WARNING if cut > 0.05 else OK), text


def _evaluation(run: RunConfig, workdir: Path) -> tuple[str, str]:
    sets = pipeline.open_eval_sets(run.data, run.seed)
    found = [
        f"{one.name}: {len(one.images)} pictures, {len(one.foils)} foils, {len(one.quads)} quads"
        for one in sets
    ]
    tokenizer, _ = _known_tokenizer(run, workdir)
    if run.eval.benchmarks and tokenizer is None:
        found.append(f"{', '.join(run.eval.benchmarks)}: not opened, as there is no tokenizer yet")
    elif run.eval.benchmarks:
        texts = Texts(tokenizer, run.data.clean_captions, run.model.max_text_length)
        found += [one.name for one in load_all(run.eval, run.model.image_size, texts)]
    return (
        (OK, "; ".join(found))
        if found
        else (WARNING, "no evaluation sets: set data.holdout or data.val")
    )


def _checkpoint(run: RunConfig, workdir: Path) -> tuple[str, str]:
    if not has_checkpoint(workdir):
        return OK, "none yet: starts from nothing"
    check_config(workdir, to_dict(run), RESUMABLE, to_dict(RunConfig()))
    model = replace(run.model, vocab_size=load_tokenizer(str(workdir / TOKENIZER)).vocab_size)
    abstract, *_ = abstract_step(replace(run, model=model), make_mesh(run.mesh))
    with CheckpointManager(workdir / CHECKPOINTS, read_only=True) as manager:
        step = manager.latest_step()
        manager.check_shapes(abstract, step)
    return OK, f"would go on from step {step}"
