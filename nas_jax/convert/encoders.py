"""Encoders of other code bases: a ViT as image encoder, a BERT as text and fusion encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas_jax.convert import given
from nas_jax.convert.account import Account, model_shapes, take
from nas_jax.convert.albef_names import ImageNames, bert_entries, image_entries
from nas_jax.convert.from_albef import tie_head
from nas_jax.convert.torch_files import Tensors
from nas_jax.convert.vit_families import family_of
from nas_jax.models import bert as bert_model
from nas_jax.models import vit as vit_model
from nas_jax.typing import Params
from nas_jax.utils.errors import CheckpointError, ConfigError

IMAGE_PREFIXES = ("module.", "vit.", "deit.", "dinov2.", "visual_encoder.", "vision_model.")
IMAGE_REASONS = {
    r"(head|classifier)\.": "a classifier",
    r"pooler\.": "a pooler: ITC reads [CLS] itself",
    r"embeddings\.mask_token$": "for masked pretraining",
    r"(decoder|text_(encoder|decoder|proj)|vision_proj|itm_head|logit_scale)\b": "another part",
}
TEXT_REASONS = {
    r"(bert\.)?pooler\.": "a pooler: ITC reads [CLS] itself",
    r".*position_ids$": "the numbers 0, 1, 2, ..., and no weight",
    r"cls\.seq_relationship\.": "next-sentence prediction",
    r"classifier\.": "a classifier",
}


class EncoderSource(NamedTuple):
    """A model of another code base."""

    tensors: Tensors
    cast: Mapping[str, str]  # dtypes of tensors that were converted on reading
    config: Mapping[str, Any]  # config.json, as far as there is one
    name: str  # for errors and tables
    folder: Path  # where it lies


@dataclass(frozen=True)
class Tower:
    """One converted encoder."""

    params: Params
    sizes: dict[str, int]
    account: Account


def image_tower(
    given_by: EncoderSource, sizes: Mapping[str, int], ignore: Sequence[str] = ()
) -> Tower:
    """The image encoder from a ViT of any of `vit_families.FAMILIES`; LayerScale goes into the
    kernels before it.
    """
    tensors, cast = _without_prefix(given_by.tensors, given_by.cast, IMAGE_PREFIXES)
    config = given_by.config.get("vision_config", given_by.config)  # of a model with texts too
    source = given_by.name
    account = Account(tensors, cast, source)
    _, names, scales = family_of(tensors, source)
    found = _image_sizes(tensors, names, config, source)
    same_function(config, source, account, vit_model.LAYER_NORM_EPS)
    if config.get("qkv_bias", True) is False:
        raise ConfigError(f"{source} with qkv_bias=False", "a ViT with biases", "use another ViT")
    wanted = sizes.get(
        "image_heads", None if "num_attention_heads" in config else sizes.get("heads")
    )
    heads = heads_of(config, wanted, "image_heads", source, found["dim"])
    model = given.model_of(found | {"heads": heads, "vocab_size": 1})
    tensors = _fold(tensors, names, scales, found["image_layers"], account)
    params = take(image_entries(model, names), tensors, model_shapes(model), account)
    _explain(account, IMAGE_REASONS, ignore)
    return Tower(params, found | {"image_heads": heads}, account)


def _image_sizes(
    tensors: Tensors, names: ImageNames, config: Mapping[str, Any], source: str
) -> dict[str, int]:
    """Sizes of the image encoder by its shapes. Raises UserError where config.json has others."""
    _, tokens, dim = given.shape_of(tensors, names.position, 3, source)
    patch = given.shape_of(tensors, f"{names.patch_embed}.weight", 4, source)[-1]
    hidden = given.shape_of(tensors, f"{names.block.format(0)}.{names.mlp_in}.weight", 2, source)[0]
    pattern = re.escape(names.block).replace(r"\{\}", r"(\d+)") + r"\."
    found = {
        "dim": dim,
        "image_layers": given.count(tensors, pattern, source),
        "mlp_ratio": hidden // dim,
        "image_size": given.side_of(tokens, source) * patch,
        "patch_size": patch,
    }
    keys = {
        "dim": "hidden_size", "image_layers": "num_hidden_layers", "patch_size": "patch_size",
        "image_size": "image_size",
    }  # fmt: skip
    if found["image_size"] != config.get("image_size"):
        keys.pop("image_size")  # transformers' DINOv2 names the size it was last run at
    told = {ours: config[key] for ours, key in keys.items() if key in config}
    given.agree(found, told, source, "config.json")
    return found


def _fold(
    tensors: Tensors, names: ImageNames, scales: tuple[str, str], layers: int, account: Account
) -> Tensors:
    """Multiplies LayerScale (Touvron et al. 2021) into the linear map whose output it scales."""
    folded = dict(tensors)
    for layer in range(layers):
        block = names.block.format(layer)
        for linear, scale in zip((names.attention_out, names.mlp_out), scales, strict=True):
            name = f"{block}.{scale}"
            if not scale or name not in tensors:
                continue
            for part in ("weight", "bias"):
                whole = f"{block}.{linear}.{part}"
                if whole not in tensors or tensors[name].shape != tensors[whole].shape[:1]:
                    raise CheckpointError(
                        f"{name} has no {whole} to go with", "one scale an output", "check the file"
                    )
                factor = tensors[name].astype(np.float32)
                folded[whole] = tensors[whole].astype(np.float32) * (
                    factor[:, None] if part == "weight" else factor
                )
                account.rows[whole].detail = f"times {scale}"
            account.merge(name, linear)
    return folded


def text_tower(
    given_by: EncoderSource,
    sizes: Mapping[str, int],
    text_layers: int = 0,
    ignore: Sequence[str] = (),
) -> Tower:
    """Text encoder, fusion encoder without cross-attention and, if there, MLM head from a BERT."""
    config, source = given_by.config, given_by.name
    if config.get("model_type", "bert") != "bert":
        raise ConfigError(f"{source} of type {config['model_type']!r}", "bert", "pass a BERT")
    tensors, cast = _without_prefix(given_by.tensors, given_by.cast, ("module.",))
    tensors = {_new_name(name): array for name, array in tensors.items()}
    cast = {_new_name(name): dtype for name, dtype in cast.items()}
    account = Account(tensors, cast, source)
    bert = "bert." if any(name.startswith("bert.embeddings.") for name in tensors) else ""
    if f"{bert}embeddings.word_embeddings.weight" not in tensors:
        raise CheckpointError(
            f"{source}, with tensors such as {next(iter(tensors), 'none')!r}",
            "a BERT: embeddings.* and encoder.layer.*",
            "pass a BertModel or BertForMaskedLM",
        )
    found = _text_sizes(tensors, bert, config, source)
    layers = found.pop("layers")
    text_layers = text_layers or sizes.get("text_layers", 0) or layers // 2
    if not 0 < text_layers < layers:
        raise ConfigError(
            f"--text-layers {text_layers}",
            f"1 to {layers - 1} of {layers} layers",
            "half is ALBEF's",
        )
    same_function(config, source, account, bert_model.LAYER_NORM_EPS)
    if config.get("position_embedding_type", "absolute") != "absolute":
        kind = config["position_embedding_type"]
        raise ConfigError(
            f"{source} with {kind} positions", "absolute positions", "pass another BERT"
        )
    heads = heads_of(config, sizes.get("heads"), "heads", source, found["dim"])
    found |= {"heads": heads, "text_layers": text_layers, "fusion_layers": layers - text_layers}
    model = given.model_of(found | {"image_layers": 1})
    entries = list(bert_entries(model, bert, "cls.predictions.", cross=False))
    if not any(name.startswith("cls.predictions.transform.") for name in tensors):
        entries = [entry for entry in entries if entry.path[0] != "mlm_head"]
    params = take(entries, tensors, model_shapes(model), account)
    if "mlm_head" in params:
        table = f"{bert}embeddings.word_embeddings.weight"
        tie_head(tensors, account, "cls.predictions.decoder.weight", table)
        tie_head(tensors, account, "cls.predictions.decoder.bias", "cls.predictions.bias")
    _explain(account, TEXT_REASONS, ignore)
    return Tower(params, found, account)


def _new_name(name: str) -> str:
    """The name of a tensor whose file was converted from TensorFlow, as others call it."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _text_sizes(
    tensors: Tensors, bert: str, config: Mapping[str, Any], source: str
) -> dict[str, int]:
    """Sizes of a BERT by its shapes, and its layers. Raises ConfigError where config.json has
    others.
    """
    vocab, dim = given.shape_of(tensors, f"{bert}embeddings.word_embeddings.weight", 2, source)
    positions, _ = given.shape_of(
        tensors, f"{bert}embeddings.position_embeddings.weight", 2, source
    )
    hidden, _ = given.shape_of(
        tensors, f"{bert}encoder.layer.0.intermediate.dense.weight", 2, source
    )
    layers = given.count(tensors, rf"{re.escape(bert)}encoder\.layer\.(\d+)\.", source)
    found = {"dim": dim, "vocab_size": vocab, "max_text_length": positions, "layers": layers}
    keys = {
        "dim": "hidden_size",
        "vocab_size": "vocab_size",
        "max_text_length": "max_position_embeddings",
        "layers": "num_hidden_layers",
        "hidden": "intermediate_size",
    }
    told = {ours: config[key] for ours, key in keys.items() if key in config}
    given.agree(found | {"hidden": hidden}, told, source, "config.json")
    return found | {"mlp_ratio": hidden // dim}


def same_function(
    config: Mapping[str, Any], source: str, account: Account, epsilon: float, wanted: str = "gelu"
) -> None:
    """What the tensors do not show: the activation must be ours, another epsilon is said."""
    act = config.get("hidden_act", wanted)
    if act != wanted:
        exact = ", the exact one" * (wanted == "gelu")
        raise ConfigError(
            f"{source} with hidden_act={act!r}", f"{wanted}{exact}", "use another model"
        )
    theirs = config.get("layer_norm_eps", epsilon)
    if theirs != epsilon:
        account.notes.append(f"layer_norm_eps is {theirs} in {source} and {epsilon} here")


def heads_of(
    config: Mapping[str, Any], wanted: int | None, field: str, source: str, dim: int
) -> int:
    """Attention heads by config.json or the sizes file, which must agree. Raises ConfigError."""
    told = config.get("num_attention_heads", wanted)
    if wanted not in (None, told):
        raise ConfigError(
            f"{field}={wanted} in the sizes file, and {told} in config.json", "the same", "mend one"
        )
    if told is None:
        raise ConfigError(
            f"{source} of width {dim}, and shapes do not tell the number of heads",
            f'config.json beside it, or a sizes file like {{"{field}": 12}}',
            "pass it with --sizes",
        )
    return told


def _without_prefix(
    tensors: Tensors, cast: Mapping[str, str], prefixes: Sequence[str]
) -> tuple[Tensors, Mapping[str, str]]:
    """Removes the prefix that the encoder has in a larger model; other names stay as they are."""

    def bare(name: str) -> str:
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        return name

    return {bare(name): array for name, array in tensors.items()}, {
        bare(name): kind for name, kind in cast.items()
    }


def _explain(account: Account, reasons: Mapping[str, str], ignore: Sequence[str]) -> None:
    for name, row in account.rows.items():
        for pattern, reason in reasons.items() if not row.action else ():
            if re.match(pattern, name):
                account.leave(name, reason)
                break
    account.leave_rest(ignore)
