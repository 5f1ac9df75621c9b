"""A folder of converted weights, which `train.weights` takes like the work directory of a run.

checkpoints/0/    parameters, and what the file had of the method's state; verified when read
config.json       the sections model, method and data that go with them
conversion.json   what became of every tensor
unused.npz        what of a state dict had no use, so that the way back gives the whole of it
tokenizer/        where one was given
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.surgery import resize_image_positions
from nas_jax.convert.account import as_text
from nas_jax.data.tokenizer import load_tokenizer
from nas_jax.methods import method_config
from nas_jax.methods.method import MethodConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.train.workdir import CHECKPOINTS, CONFIG, TOKENIZER, read_config, writing_out
from nas_jax.typing import Params
from nas_jax.utils.errors import CheckpointError, ConfigError, DataError, MissingPart
from nas_jax.utils.fields import build

CONVERSION, UNUSED = "conversion.json", "unused.npz"


@dataclass(frozen=True)
class ConvertedWeights:
    """Converted weights in our layout, as NumPy arrays."""

    params: Params  # as far as the file has them
    model: ModelConfig
    method: MethodConfig
    # entries of the method's state (nested dicts by the names of fields), as far as the file has
    # them
    state: dict[str, dict[str, Any]] = field(default_factory=dict)


def for_pictures_of(weights: ConvertedWeights, image_size: int) -> ConvertedWeights:
    """The same for another size of picture: position embeddings resized as ALBEF does.

    0 changes nothing.
    """
    if image_size in (0, weights.model.image_size):
        return weights
    model = replace(weights.model, image_size=image_size)
    model.validate()

    def resized(params: Params) -> Params:
        if "image_encoder" not in params:
            return params
        image = params["image_encoder"]
        position_1xTxD = resize_image_positions(image["position_embedding"], model.num_patches + 1)
        return params | {"image_encoder": image | {"position_embedding": position_1xTxD}}

    state = {name: resized(entry) for name, entry in weights.state.items()}
    return replace(weights, params=resized(weights.params), state=state, model=model)


def check_out(out: Path) -> None:
    """Raises CheckpointError if there is something in `out` already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            f"--out {out}, which is there already", "a new folder", "name another, or remove it"
        )


def write(
    out: Path,
    weights: ConvertedWeights,
    conversion: Mapping[str, Any],
    tokenizer: str = "",
    unused: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the folder whole or not at all.

    tokenizer: a folder with tokenizer.json or vocab.txt. Raises CheckpointError if `out` is there
    already or cannot be written, DataError on another vocabulary size.
    """
    check_out(out)
    words = load_tokenizer(tokenizer) if tokenizer else None
    if words is not None and words.vocab_size != weights.model.vocab_size:
        raise DataError(
            f"tokenizer {tokenizer} with {words.vocab_size} words",
            f"the {weights.model.vocab_size} rows of the word embeddings",
            "pass the tokenizer of these weights",
        )
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a kill
    try:
        with writing_out(part):
            part.mkdir(parents=True)
            record = _run_record(weights, conversion)
            (part / CONFIG).write_text(json.dumps(record, indent=2) + "\n")
            (part / CONVERSION).write_text(as_text(conversion))
            if unused:
                np.savez(part / UNUSED, **unused)  # type: ignore[arg-type]  # stub of allow_pickle
            if words is not None:
                words.save(part / TOKENIZER)
            with CheckpointManager(part / CHECKPOINTS) as manager:
                manager.save(0, _state(weights), {"next_step": 0, "skipped": 0}, {"config": record})
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _state(weights: ConvertedWeights) -> dict[str, Any]:
    return {"params": weights.params} | ({"method_state": weights.state} if weights.state else {})


def _run_record(weights: ConvertedWeights, conversion: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": f"from-{conversion['from']}",
        "data": {"image_size": weights.model.image_size},
        "model": dataclasses.asdict(weights.model),
        "method": dataclasses.asdict(weights.method),
    }


def read(
    workdir: Path, step: int | None = None
) -> tuple[ConvertedWeights, dict[str, Any] | None, dict[str, np.ndarray]]:
    """Weights, conversion.json and unused tensors of a folder; of a run's work directory, its
    weights alone.

    step: of a checkpoint; default: the newest. Raises CheckpointError where there is none.
    """
    config = read_config(workdir)
    with CheckpointManager(workdir / CHECKPOINTS, read_only=True) as manager:
        params = manager.restore_part("params", step=step)
        try:
            state = manager.restore_part("method_state", step=step)
        except MissingPart:
            state = {}
    model = _built(lambda section: build(ModelConfig, section, "model"), "model", config, workdir)
    if "text_encoder" in params:  # a run's config may leave it to the tokenizer
        words_VxD = params["text_encoder"]["word_embedding"]["embedding"]
        model = replace(model, vocab_size=len(words_VxD))
    method = _built(method_config, "method", config, workdir)
    conversion, unused = None, {}
    if (workdir / CONVERSION).is_file():
        conversion = json.loads((workdir / CONVERSION).read_text())
    if (workdir / UNUSED).is_file():
        with np.load(workdir / UNUSED, allow_pickle=False) as file:
            unused = {name: file[name] for name in file.files}
    return ConvertedWeights(params, model, method, state), conversion, unused


def _built(
    make: Callable[[Mapping[str, Any]], Any], section: str, config: Mapping[str, Any], workdir: Path
) -> Any:
    """A section of config.json as its dataclass, which `make` gives of it."""
    if section not in config:
        raise ConfigError(
            f"{workdir / CONFIG} without a section {section}",
            "the config of a run",
            "name its folder",
        )
    try:
        return make(config[section])
    except ConfigError as error:
        raise ConfigError(
            f"{workdir / CONFIG}: {error.got}", error.expected, "use the version that wrote it"
        ) from error


def size_in_mb(tree: Any) -> float:
    """What the arrays take, in millions of bytes."""
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree)) / 1e6
