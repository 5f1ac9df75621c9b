"""What a converter is given: options, and sizes from shapes, the rest from a small JSON file."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.models.sizes import ModelConfig
from nas_jax.utils.errors import CheckpointError, ConfigError, DataError

KNOWN = (
    "dim",
    "heads",
    "image_heads",
    "image_layers",
    "text_layers",
    "fusion_layers",
    "mlp_ratio",
    "image_size",
    "patch_size",
    "vocab_size",
    "max_text_length",
    "embed_dim",
)
"""Fields of ModelConfig that a sizes file may hold."""


def add_arguments(parser: argparse.ArgumentParser, *, sizes: str, tokenizer: str) -> None:
    """Options of every command that reads weights. sizes, tokenizer: the help of these two."""
    add = parser.add_argument
    add("--sizes", default="", metavar="FILE.json", help=sizes)
    add(
        "--image-size",
        type=int,
        default=0,
        metavar="N",
        help="resize the position embeddings (default: as they are)",
    )
    add("--tokenizer", default="", metavar="DIR", help=tokenizer)
    add(
        "--ignore",
        nargs="+",
        action="extend",
        default=[],
        metavar="PREFIX",
        help="leave out what begins so",
    )


def read_sizes(path: str) -> dict[str, int]:
    """The fields of a sizes file like `{"heads": 12}`; no path: none.

    Raises DataError, ConfigError.
    """
    if not path:
        return {}
    try:
        sizes = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"sizes file {path} ({error})", 'JSON like {"heads": 12}', "mend it"
        ) from error
    if not isinstance(sizes, dict):
        raise ConfigError(
            f"sizes file {path} with a {type(sizes).__name__}", 'JSON like {"heads": 12}', "mend it"
        )
    for name, value in sizes.items():
        if name not in KNOWN:
            raise ConfigError(f"{name!r} in {path}", f"one of {', '.join(KNOWN)}", "leave it out")
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name}={value!r} in {path}", "a whole number above 0", "mend it")
    return sizes


def model_of(sizes: Mapping[str, int]) -> ModelConfig:
    """The model of these sizes. Raises ConfigError where they do not go together."""
    fields: dict[str, Any] = dict(sizes)
    model = ModelConfig(**fields)
    model.validate()
    return model


def agree(
    found: Mapping[str, int], given: Mapping[str, int], source: str, by: str = "the sizes file"
) -> None:
    """Raises ConfigError where a size that was given is not that of the tensors."""
    for name, value in given.items():
        if name in found and found[name] != value:
            raise ConfigError(
                f"{name}={value} in {by}, and {found[name]} by the tensors of {source}",
                "the same in both",
                "check which model this file is of",
            )


def shape_of(
    tensors: Mapping[str, np.ndarray], name: str, axes: int, source: str
) -> tuple[int, ...]:
    """The shape of a tensor by which sizes are told.

    Raises CheckpointError if it is missing or of another rank.
    """
    if name not in tensors:
        raise CheckpointError(
            f"{source} without {name!r}",
            "every tensor of the model",
            "use a whole file of one model",
        )
    shape = tensors[name].shape
    if len(shape) != axes:
        raise CheckpointError(
            f"{name} has shape {list(shape)} in {source}", f"{axes} axes", "check the file"
        )
    return tuple(shape)


def count(tensors: Mapping[str, Any], pattern: str, source: str) -> int:
    """How many layers there are; `pattern` finds the number of one.

    Raises CheckpointError if one is missing.
    """
    numbers = {int(match[1]) for match in map(re.compile(pattern).match, tensors) if match}
    gaps = set(range(max(numbers, default=0) + 1)) - numbers
    if gaps:
        raise CheckpointError(
            f"{source} without layer {min(gaps)} ({pattern})",
            "layers from 0 on",
            "use a whole file of one model",
        )
    return len(numbers)


def side_of(tokens: int, source: str) -> int:
    """Patches a side of a square picture with one CLS token."""
    side = math.isqrt(max(tokens - 1, 0))
    if side * side + 1 != tokens or not side:
        raise CheckpointError(
            f"{source} with positions for {tokens} tokens",
            "one CLS token and a square number of patches (no distillation or register tokens)",
            "use the plain model of that family",
        )
    return side
