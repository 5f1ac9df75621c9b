"""A run with CLIP's or SigLIP's own towers as transformers' CLIPModel or SiglipModel.

No code of ours travels: AutoModel loads the folder as it is. As in every export, PyTorch must
compute from it what JAX computes from the checkpoint (`gate_dual`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert import gate_dual
from nas_jax.convert.export import Export
from nas_jax.convert.hf_dual_names import dual_names, dual_shape, from_dual, to_dual
from nas_jax.convert.hf_names import CONFIG, WEIGHTS, open_tensors
from nas_jax.convert.hf_tokenizer import write_tokenizer
from nas_jax.convert.hf_writing import write_json, write_processor, write_safetensors
from nas_jax.data.config import DataConfig
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.methods.clip import PUBLISHED, ClipConfig, SiglipConfig
from nas_jax.methods.method import MethodConfig
from nas_jax.models.clip_towers import CLIP_EPS, SIGLIP_EPS
from nas_jax.train.trained import Trained
from nas_jax.utils.errors import CheckpointError, ConfigError

LEGACY_EOS = 2  # with this id CLIPModel reads a text at its largest token id instead

Say = Callable[[str], None]


def class_of(method: MethodConfig) -> str:
    """clip or siglip: the class whose towers and logits a method's are; "" for other methods.

    Raises ConfigError where a method of `methods/clip.py` has towers of another class.
    """
    if not isinstance(method, ClipConfig):
        return ""
    kind = "siglip" if isinstance(method, SiglipConfig) else "clip"
    if method.towers != kind:
        raise ConfigError(
            f"method {method.name} with method.towers={method.towers!r}",
            f"method.towers={kind!r}, which transformers has a class for",
            "export a run with these towers",
        )
    return kind


def write(folder: Path, trained: Trained, plain: str, python: str, say: Say) -> Export:
    """The export, in one weight file, which has passed the gate.

    plain, python: of `to_hf.export`. Raises ConfigError where the class would read texts otherwise
    than the method, GateRefused where numbers differ, CheckpointError where bits do.
    """
    kind, tokenizer = class_of(trained.method.config), trained.tokenizer
    _check(kind, tokenizer, plain)
    facts = facts_of(trained, kind)
    write_json(folder / CONFIG, config_of(trained, kind))
    mean, std = PUBLISHED[kind].pixels
    write_processor(folder, facts["image_size"], mean, std, kind)
    write_tokenizer(folder, tokenizer, facts)
    write_weights(folder / WEIGHTS, trained, kind)
    say(f"{WEIGHTS}: written")
    report = gate_dual.check(folder, trained, facts, python, say)
    compare_bits(folder, trained, kind)
    say("read back: the same bits")
    return Export(folder, trained, kind, facts, report, plain, python, say)


def _check(kind: str, tokenizer: TextTokenizer, plain: str) -> None:
    if plain:
        raise ConfigError(f"--plain {plain}", "none: this export is plain itself", "leave it out")
    if kind == "clip" and not tokenizer.add_sep:
        raise ConfigError(
            "a run with data.add_sep=False",
            "texts that end with an end token, where CLIPModel reads them",
            "train with data.add_sep=True",
        )
    if kind == "clip" and tokenizer.sep_id == LEGACY_EOS:
        raise ConfigError(
            f"a tokenizer whose end token has the id {LEGACY_EOS}",
            "another id: CLIPModel reads this one as a mark of old weights",
            "train with another tokenizer",
        )


def facts_of(trained: Trained, kind: str) -> dict[str, Any]:
    """What tokenizer, gate and card are told.

    SigLIP's texts fill the table of positions: its encoder is read at the last one.
    """
    model, data = trained.model, trained.section(DataConfig, "data")
    longest = model.max_text_length
    return {
        "kind": kind,
        "method": trained.method.config.name,
        "image_size": model.image_size,
        "text_length": longest if kind == "siglip" else min(data.text_length, longest),
        "max_position_embeddings": longest,
        "vocab_size": trained.method.network.config.vocab_size,
        "clean_captions": data.clean_captions,
        "max_words": data.max_words,
        "add_sep": trained.tokenizer.add_sep,
    }


def config_of(trained: Trained, kind: str) -> dict[str, Any]:
    """config.json of the class."""
    model, tokenizer = trained.method.network.config, trained.tokenizer
    text_dim = trained.method.config.text_dim or model.dim
    common = {
        "hidden_act": {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}[kind],
        "layer_norm_eps": {"clip": CLIP_EPS, "siglip": SIGLIP_EPS}[kind],
        "attention_dropout": 0.0,
    }
    text = common | {
        "model_type": f"{kind}_text_model",
        "vocab_size": model.vocab_size,
        "hidden_size": text_dim,
        "intermediate_size": text_dim * model.mlp_ratio,
        "num_hidden_layers": model.text_layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.max_text_length,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.cls_id,
        "eos_token_id": tokenizer.sep_id,
        {"clip": "projection_dim", "siglip": "projection_size"}[kind]: model.embed_dim,
    }
    vision = common | {
        "model_type": f"{kind}_vision_model",
        "hidden_size": model.dim,
        "intermediate_size": model.dim * model.mlp_ratio,
        "num_hidden_layers": model.image_layers,
        "num_attention_heads": model.vit_heads,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
    }
    return {
        "model_type": kind,
        "architectures": [{"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]],
        "text_config": text,
        "vision_config": vision,
        **({"projection_dim": model.embed_dim} if kind == "clip" else {}),
    }


def write_weights(path: Path, trained: Trained, kind: str) -> None:
    """The arrays of a checkpoint as one safetensors file, one layer in memory at a time."""
    kinds: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in (name for group in trained.groups() for name in group):
        shape, dtype = trained.shapes[name]
        kinds |= dict.fromkeys(dual_names(kind, name), (dual_shape(kind, name, shape), dtype))

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, array in (pair for group in trained.groups() for pair in trained.read(group)):
            yield from to_dual(kind, name, array).items()

    write_safetensors(path, kinds, tensors())


def compare_bits(folder: Path, trained: Trained, kind: str) -> None:
    """Reads the weights back.

    Raises CheckpointError unless they have the bits of the checkpoint.
    """
    tensors = {name: read() for name, read in open_tensors(folder).items()}
    shapes = {name: shape for name, (shape, _) in trained.shapes.items()}
    exported = from_dual(kind, tensors, shapes)
    for name, array in (pair for group in trained.groups() for pair in trained.read(group)):
        if exported[name].tobytes() != array.tobytes():
            got = f"export with other bits in {dual_names(kind, name)[0]}"
            raise CheckpointError(got, "those of the checkpoint", "report this")
