"""Work directories with a checkpoint of random numbers, to export; nothing is compiled for them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import tiny

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.stored import nest
from nas_jax.config import RunConfig, to_dict
from nas_jax.convert import hf_config, hf_names
from nas_jax.data.config import DataConfig
from nas_jax.data.tokenizer import TextTokenizer, learn_wordpiece
from nas_jax.methods import make_method
from nas_jax.methods.method import Setting
from nas_jax.models.codebook import DictionaryState
from nas_jax.train.trained import Trained
from nas_jax.utils.trees import named_leaves

# a python with torch and another transformers, such as 4.57
OTHER_PYTHON = "NAS_JAX_OTHER_TRANSFORMERS"
CAPTIONS = (
    "a red square left of a blue circle, word number 0123456789",
    "there is no small green triangle above two large yellow stars: a man's dog, it's a person",
)


def tokenizer() -> TextTokenizer:
    """Learned from `CAPTIONS`."""
    return learn_wordpiece(CAPTIONS, 120)


def save_nas(
    workdir: Path, tokenizer: TextTokenizer, variant: str = "nas", step: int = 3, **data
) -> Path:
    """A work directory with a checkpoint of random numbers; nothing is compiled for it."""
    model = tiny.model(
        vocab_size=tokenizer.vocab_size, image_heads=4, max_text_length=14
    )  # as long as captions: one shape to compile
    method = tiny.method(variant, model=model).config
    run = RunConfig(
        model=model,
        method=method,
        data=DataConfig(image_size=16, text_length=14, batch_size=24, **data),
    )
    record = json.loads(json.dumps(to_dict(run)))
    tokenizer.save(workdir / "tokenizer")
    found = Trained(workdir, step, record, {}, {})
    shapes = hf_config.sizes_of(found, tokenizer, tokenizer.vocab_size)
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if name == "temp":
            return np.float32(0.07) * np.ones((), np.float32)
        values = rng.standard_normal(shape) * 0.3 + (1.0 if name.endswith("scale") else 0.0)
        return np.asarray(np.abs(values) if name == "dictionary/codes_KxD" else values).astype(
            dtype
        )

    arrays = nest({name: draw(name, *kind) for name, kind in hf_names.shapes_in(shapes).items()})
    dictionary = arrays.pop("dictionary", None)
    state = {
        "params": arrays,
        "method_state": {"dictionary": DictionaryState(**dictionary)} if dictionary else {},
    }
    with CheckpointManager(workdir / "checkpoints") as manager:
        manager.save(step, state, {"next_step": step}, {"config": record})
    return workdir


def save_dual(workdir, method, add_sep=True, positions=20):
    """A work directory with a checkpoint of random numbers; nothing is compiled for it."""
    words = learn_wordpiece(CAPTIONS, 120, add_sep)
    model = tiny.model(
        vocab_size=words.vocab_size, image_heads=4, max_text_length=positions, embed_dim=16
    )
    data = DataConfig(image_size=16, text_length=14, batch_size=8, add_sep=add_sep)
    record = json.loads(json.dumps(to_dict(RunConfig(model=model, method=method, data=data))))
    words.save(workdir / "tokenizer")
    built = make_method(method, model, Setting(words.vocabulary()))
    params, _ = jax.eval_shape(built.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(name, leaf):
        if name.startswith("logit_"):
            return np.full(leaf.shape, 1.5, np.float32)
        one = 1.0 if name.endswith("/scale") else 0.0
        return (rng.standard_normal(leaf.shape) * 0.3 + one).astype(np.float32)

    arrays = nest({name: draw(name, leaf) for name, leaf in named_leaves(params).items()})
    with CheckpointManager(workdir / "checkpoints") as manager:
        state = {"params": arrays, "method_state": {}}
        manager.save(3, state, {"next_step": 3}, {"config": record})
    return workdir
