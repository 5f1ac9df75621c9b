"""A checkpoint as a folder that Hugging Face's AutoModel loads.

    python -m nas_jax.convert to-hf --checkpoint WORKDIR[/checkpoints/STEP] --out FOLDER \\
        [--plain blip]

Everything is written to `.FOLDER.unchecked` beside the target. The gate (`convert/gate.py`) then
runs both sides on the same inputs; only what passes gets its name, anything else is deleted.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert import gate, hf_blip, model_card
from nas_jax.convert.hf_names import (
    CONFIG,
    INDEX,
    MODEL_TYPE,
    SAFETENSORS_DTYPES,
    WEIGHTS,
    hf_class,
    hf_name,
    open_export,
    shapes_in,
    to_torch,
    torch_shape,
)
from nas_jax.convert.hf_tokenizer import write_tokenizer
from nas_jax.data.config import DataConfig
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.methods import method_config
from nas_jax.methods.method import MethodConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.models.towers import IMAGE_MEAN, IMAGE_STD
from nas_jax.train.trained import Trained, open_trained
from nas_jax.utils.errors import CheckpointError, ConfigError

FILES = Path(__file__).parent / "hf_files"  # copied into every export
SHARD_BYTES = 400 * 10**6
PLAIN = ("blip",)
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of <malloc.h>
_BICUBIC = 3  # Pillow's number
_DTYPES = {ours: theirs for theirs, ours in SAFETENSORS_DTYPES.items()}

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
        "--shard_mb",
        type=int,
        default=SHARD_BYTES // 10**6,
        help="largest size of a weight file, MB",
    )


def run(args: argparse.Namespace) -> int:
    """Exports; returns the exit status. Raises UserError, GateRefused among them."""
    give_memory_back()
    export(args.checkpoint, args.out, args.tokenizer, args.plain or "", args.shard_mb * 10**6)
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
) -> gate.GateReport:
    """Writes the export, runs the gate and gives the folder its name. python: of the gate's PyTorch
    process.

    Raises GateRefused where the two sides differ, CheckpointError and ConfigError on inputs;
    nothing is left then.
    """
    out = Path(out).absolute()
    _check_out(out)
    trained = open_trained(checkpoint, tokenizer_folder)
    hf_class(method_config(trained.config["method"]).name)  # refused first, if it is
    if not trained.verified:
        say("this checkpoint is older than checksums: it is not verified")
    tokenizer = trained.tokenizer
    config = export_config(trained, tokenizer)
    unchecked = out.with_name(f".{out.name}.unchecked")
    shutil.rmtree(unchecked, ignore_errors=True)  # of a killed export
    try:
        unchecked.mkdir(parents=True)
        write_files(unchecked, trained, config, tokenizer)
        write_weights(unchecked, trained, say, shard_bytes)
        if plain:
            hf_blip.write(unchecked / plain, trained, config, unchecked, write_safetensors)
            say(f"{plain}: written")
        report = gate.check(unchecked, trained, config, plain, python, say)
        compare_bits(unchecked, trained)
        say("read back: the same bits")
        card = model_card.write(
            trained, config, report, tokenizer.tokens()[tokenizer.mask_id], plain
        )
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
    return report


def _check_out(out: Path) -> None:
    """Raises ConfigError where there is something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out={out}, which exists", "a folder to make", "name another, or delete it"
        )


def export_config(trained: Trained, tokenizer: TextTokenizer) -> dict[str, Any]:
    """config.json of the export: what builds the model, and what its users need to feed it.

    Raises CheckpointError where it does not describe the arrays of the checkpoint.
    """
    words = trained.saved.get("params/text_encoder/word_embedding/embedding", ((0, 0), ""))[0][0]
    if tokenizer.vocab_size > words:
        raise CheckpointError(
            f"a tokenizer of {tokenizer.vocab_size} tokens for a model of {words}",
            "the tokenizer that the model was trained with",
            "name its folder with --tokenizer",
        )
    config = sizes_of(trained, tokenizer, words)
    expected = shapes_in(config)
    wrong = sorted(
        name for name in expected | trained.shapes if expected.get(name) != trained.shapes.get(name)
    )
    if wrong:
        there, here = trained.shapes.get(wrong[0], "absent"), expected.get(wrong[0], "absent")
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"checkpoint with {wrong[0]} {there}{more}",
            f"{here}, as its config says",
            "mend the config.json beside it",
        )
    return config


def sizes_of(trained: Trained, tokenizer: TextTokenizer, words: int) -> dict[str, Any]:
    """config.json as the config of the run says. words: rows of the table of word embeddings.

    Raises ConfigError where the method has no class in `hf_files`.
    """
    model, method = trained.config["model"], method_config(trained.config["method"])
    data = dataclasses.asdict(DataConfig()) | trained.config["data"]
    kind = hf_class(method.name)
    return {
        "model_type": MODEL_TYPE,
        "architectures": [f"{kind.title()}Model"],
        "auto_map": {
            "AutoConfig": f"configuration_{kind}.{kind.title()}Config",
            "AutoModel": f"modeling_{kind}.{kind.title()}Model",
        },
        "method": method.name,
        "hidden_size": model["dim"],
        "num_attention_heads": model["heads"],
        "image_attention_heads": model.get("image_heads") or model["heads"],
        "image_layers": model["image_layers"],
        "text_layers": model["text_layers"],
        "fusion_layers": model["fusion_layers"],
        "mlp_ratio": model["mlp_ratio"],
        "image_size": model["image_size"],
        "patch_size": model["patch_size"],
        "vocab_size": words,
        "max_position_embeddings": model["max_text_length"],
        "projection_dim": model["embed_dim"],
        **_parts_of_nas(method),
        "text_length": min(data["text_length"], model["max_text_length"]),
        "clean_captions": data["clean_captions"],
        "max_words": data["max_words"],
        "add_sep": tokenizer.add_sep,
        "pad_token_id": tokenizer.pad_id,
        "cls_token_id": tokenizer.cls_id,
        "sep_token_id": tokenizer.sep_id,
        "mask_token_id": tokenizer.mask_id,
        "steps": trained.step,
    }


def _parts_of_nas(method: MethodConfig) -> dict[str, Any]:
    """Which parts of NAS's network are on."""
    parts = {
        "dictionary_codes": 0,
        "literal_gate": False,
        "text_generator": False,
        "mlm_on_dictionary": False,
    }
    if not isinstance(method, NasConfig):
        return parts
    parts["text_generator"] = method.nta.enabled
    if method.dictionary.enabled:
        parts["dictionary_codes"] = method.dictionary.codes
        parts["literal_gate"] = method.dictionary.literal
        parts["mlm_on_dictionary"] = method.mlm.dictionary_from_epoch >= 0
    return parts


# -------------------------------------------------------------------------------------- small files


def write_files(
    folder: Path, trained: Trained, config: dict[str, Any], tokenizer: TextTokenizer
) -> None:
    """All files but weights and card."""
    for source in sorted(FILES.glob(f"*_{hf_class(config['method'])}.py")):
        shutil.copyfile(source, folder / source.name)
    _write_json(folder / CONFIG, config)
    write_processor(folder, config["image_size"])
    write_tokenizer(folder, tokenizer, config)


def write_processor(folder: Path, image_size: int) -> None:
    """How pictures become `pixel_values`: Pillow's bicubic to a square, as in evaluations."""
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
    }
    _write_json(folder / "preprocessor_config.json", processor)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------ weights


def write_weights(folder: Path, trained: Trained, say: Say, shard_bytes: int = SHARD_BYTES) -> None:
    """The arrays of a checkpoint as safetensors, one layer in memory at a time.

    In one file, or in several with an index, each of at most `shard_bytes` unless one layer is
    larger.
    """
    shards: list[list[list[str]]] = [[]]
    filled = 0
    for group in trained.groups():
        size = sum(_bytes(*trained.shapes[name]) for name in group)
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += size
    total, done = sum(_bytes(*kind) for kind in trained.shapes.values()), 0
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
        done += sum(_bytes(*kind) for kind in kinds.values())
        say(f"{file}: {done / 1e6:.1f} of {total / 1e6:.1f} MB written")
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_safetensors(
    path: Path,
    kinds: dict[str, tuple[tuple[int, ...], str]],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """A safetensors file, tensor after tensor (format: huggingface.co/docs/safetensors).

    kinds: name -> shape and dtype, in the order in which `tensors` gives them. The library's own
    writer wants all tensors of a file at once, and writes the wrong numbers for one that is not
    contiguous.
    """
    # without it, transformers refuses the file
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in kinds.items():
        begin, end = end, end + _bytes(shape, dtype)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, kind), (given, tensor) in zip(kinds.items(), tensors, strict=True):
            if (given, tensor.shape, str(tensor.dtype)) != (name, *kind):
                raise ValueError(
                    f"tensor {given} {tensor.dtype}{tensor.shape} in the place of {name} {kind}"
                )
            file.write(np.ascontiguousarray(tensor).data)


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


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
