"""A checkpoint as a folder that Hugging Face's AutoModel loads.

    python -m nas_jax.convert to-hf --checkpoint WORKDIR[/checkpoints/STEP] --out FOLDER \\
        [--plain blip]

Everything is written to `.FOLDER.unchecked` beside the target. The gate (`convert/gate.py`) then
runs both sides on the same inputs; only what passes gets its name, anything else is deleted.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nas_jax.convert import card_data, gate, hf_blip, hf_dual, model_card, push
from nas_jax.convert.card_data import Labels
from nas_jax.convert.export import WRITERS, Export, check_more, write_more
from nas_jax.convert.hf_config import export_config
from nas_jax.convert.hf_names import (
    CONFIG,
    INDEX,
    WEIGHTS,
    hf_class,
    hf_name,
    open_export,
    to_torch,
    torch_shape,
)
from nas_jax.convert.hf_tokenizer import write_tokenizer
from nas_jax.convert.hf_writing import bytes_of, write_json, write_processor, write_safetensors
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.methods import method_config
from nas_jax.train.trained import Trained, open_trained
from nas_jax.utils.errors import CheckpointError, ConfigError

FILES = Path(__file__).parent / "hf_files"  # copied into every export
SHARD_BYTES = 400 * 10**6
PLAIN = ("blip",)
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of <malloc.h>

NO_LABELS = Labels()

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `to-hf`."""
    parser.add_argument(
        "--checkpoint", required=True, help="work directory of a run, or its checkpoints/STEP"
    )
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument(
        "--tokenizer", help="folder of the tokenizer, where the work directory has none"
    )
    parser.add_argument(
        "--plain", choices=PLAIN, help="also the dual encoder as plain transformers classes"
    )
    parser.add_argument(
        "--also", choices=WRITERS, action="append", default=[], help="more in the folder; repeat it"
    )
    parser.add_argument(
        "--shard_mb",
        type=int,
        default=SHARD_BYTES // 10**6,
        help="largest size of a weight file, MB",
    )
    card_data.add_arguments(parser)
    push.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exports; returns the exit status. Raises UserError, GateRefused among them."""
    give_memory_back()
    if args.shard_mb < 1:
        raise ConfigError(f"--shard_mb {args.shard_mb}", "1 or more", "leave it out")
    labels = card_data.labels_of(args)
    push.check(args.push, args.public)
    export(
        args.checkpoint,
        args.out,
        args.tokenizer,
        args.plain or "",
        args.shard_mb * 10**6,
        also=args.also,
        labels=labels,
    )
    if args.push:
        push.push(Path(args.out).absolute(), args.push, args.public, print)
    return 0


def give_memory_back() -> None:
    """Makes glibc, where there is one, hand large pieces of memory back when they are freed.

    It raises the size from which it does so by itself, and then keeps all that a layer took for the
    next one.
    """
    try:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)
    except (OSError, AttributeError, TypeError):
        return  # another C library


def export(
    checkpoint: str | Path,
    out: str | Path,
    tokenizer_folder: str | None = None,
    plain: str = "",
    shard_bytes: int = SHARD_BYTES,
    python: str = sys.executable,
    say: Say = print,
    also: Sequence[str] = (),
    labels: Labels = NO_LABELS,
) -> gate.GateReport:
    """Writes the export, runs the gate and gives the folder its name. python: of the gate's PyTorch
    process; also: names of `export.WRITERS`; labels: for the card.

    Raises GateRefused where the two sides differ, CheckpointError and ConfigError on inputs;
    nothing is left then.
    """
    out = Path(out).absolute()
    _check_out(out)
    trained = open_trained(checkpoint, tokenizer_folder)
    method = method_config(trained.config["method"])
    dual = hf_dual.class_of(method)
    if not dual:
        hf_class(method.name)  # refused first, if it is
    check_more(also, dual or "nas", python)
    if not trained.verified:
        say("this checkpoint is older than checksums: it is not verified")
    measured = card_data.read_results(labels, trained)
    if not labels.license:
        say("no --license: the card says that none is given")
    unchecked = out.with_name(f".{out.name}.unchecked")
    shutil.rmtree(unchecked, ignore_errors=True)  # of a killed export
    try:
        unchecked.mkdir(parents=True)
        if dual:
            made = hf_dual.write(unchecked, trained, plain, python, say)
        else:
            made = _write(unchecked, trained, plain, shard_bytes, python, say)
        shutil.copyfile(FILES / "app.py", unchecked / "app.py")
        card_data.write_eval_results(unchecked, labels, measured)
        card = model_card.write(made, write_more(made, also), labels, measured)
        (unchecked / "README.md").write_text(card, encoding="utf-8")
        os.replace(unchecked, out)
    except OSError as error:
        raise CheckpointError(
            f"writing to {error.filename or out} failed ({error.strerror or error})",
            "a writable folder with room",
            "make room or allow writing, and start again",
        ) from error
    finally:
        shutil.rmtree(unchecked, ignore_errors=True)
    say(f"passed the gate: {out}")
    return made.report


def _write(
    folder: Path, trained: Trained, plain: str, shard_bytes: int, python: str, say: Say
) -> Export:
    """An export with a class of `hf_files`, which has passed the gate."""
    tokenizer = trained.tokenizer
    config = export_config(trained, tokenizer)
    write_files(folder, trained, config, tokenizer)
    write_weights(folder, trained, say, shard_bytes)
    if plain:
        hf_blip.write(folder / plain, trained, config, folder, write_safetensors)
        say(f"{plain}: written")
    report = gate.check(folder, trained, config, plain, python, say)
    compare_bits(folder, trained)
    say("read back: the same bits")
    return Export(folder, trained, "nas", config, report, plain, python, say)


def _check_out(out: Path) -> None:
    """Raises ConfigError where there is something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out={out}, which exists", "a folder to make", "name another, or delete it"
        )


# -------------------------------------------------------------------------------------- small files


def write_files(
    folder: Path, trained: Trained, config: dict[str, Any], tokenizer: TextTokenizer
) -> None:
    """All files but weights and card."""
    for source in sorted(FILES.glob(f"*_{hf_class(config['method'])}.py")):
        shutil.copyfile(source, folder / source.name)
    write_json(folder / CONFIG, config)
    write_processor(folder, config["image_size"])
    write_tokenizer(folder, tokenizer, config)


# ------------------------------------------------------------------------------------------ weights


def write_weights(folder: Path, trained: Trained, say: Say, shard_bytes: int = SHARD_BYTES) -> None:
    """The arrays of a checkpoint as safetensors, one layer in memory at a time.

    In one file, or in several with an index, each of at most `shard_bytes` unless one layer is
    larger.
    """
    shards: list[list[list[str]]] = [[]]
    filled = 0
    for group in trained.groups():
        size = sum(bytes_of(*trained.shapes[name]) for name in group)
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += size
    total, done = sum(bytes_of(*kind) for kind in trained.shapes.values()), 0
    weight_map: dict[str, str] = {}
    for number, groups in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        names = [name for group in groups for name in group]
        kinds = {name: trained.shapes[name] for name in names}
        kinds = {
            hf_name(name): (torch_shape(name, shape), dtype)
            for name, (shape, dtype) in kinds.items()
        }
        arrays = (pair for group in groups for pair in trained.read(group))
        write_safetensors(
            folder / file, kinds, ((hf_name(name), to_torch(name, array)) for name, array in arrays)
        )
        weight_map |= dict.fromkeys(kinds, file)
        done += sum(bytes_of(*kind) for kind in kinds.values())
        say(f"{file}: {done / 1e6:.1f} of {total / 1e6:.1f} MB written")
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def compare_bits(folder: Path, trained: Trained) -> None:
    """Reads the export as `from-hf` does.

    Raises CheckpointError unless it gives the bits of the checkpoint.
    """
    exported = open_export(folder)
    for group in trained.groups():
        for name, array in trained.read(group):
            if exported[name]().tobytes() != array.tobytes():
                raise CheckpointError(
                    f"export with other bits in {hf_name(name)}",
                    "those of the checkpoint",
                    "report this",
                )
