"""The dual encoder as plain transformers classes: BlipForImageTextRetrieval, whose ITC score needs
no code of ours.

BLIP's towers are ALBEF's: the same ViT, the same BERT layers, biased projections of [CLS]. Only its
text embedding has no token types; type 0 is added to the positions, which changes the last bit. The
head of BLIP's ITM reads other layers than ours: it is left empty, so the model must be called with
`use_itm_head=False`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert.hf_names import hf_name, to_torch, torch_shape
from nas_jax.train.trained import Trained

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)

_IMAGE_LAYER = {
    "attention_norm": "layer_norm1",
    "attention.qkv": "self_attn.qkv",
    "attention.out": "self_attn.projection",
    "mlp_norm": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_TEXT_LAYER = {
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_OTHERS = {
    "image_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "image_encoder.position_embedding": "vision_model.embeddings.position_embedding",
    "image_encoder.patch_embed": "vision_model.embeddings.patch_embedding",
    "image_encoder.norm": "vision_model.post_layernorm",
    "text_encoder.word_embedding": "text_encoder.embeddings.word_embeddings",
    "text_encoder.position_embedding": "text_encoder.embeddings.position_embeddings",
    "text_encoder.embedding_norm": "text_encoder.embeddings.LayerNorm",
    "image_proj": "vision_proj",
    "text_proj": "text_proj",
}
"""Module in our export -> module of BLIP."""


def blip_names(name: str) -> tuple[str, ...]:
    """Name of a tensor in our export -> its names in BLIP's: none, one, or three if stacked."""
    owner, _, leaf = name.rpartition(".")
    parts = owner.split(".")
    if name in _OTHERS:
        return (_OTHERS[name],)
    if owner in _OTHERS:
        return (f"{_OTHERS[owner]}.{leaf}",)
    if parts[:2] == ["image_encoder", "blocks"]:
        return (
            f"vision_model.encoder.layers.{parts[2]}.{_IMAGE_LAYER['.'.join(parts[3:])]}.{leaf}",
        )
    if parts[:2] == ["text_encoder", "layers"]:
        layer, module = f"text_encoder.encoder.layer.{parts[2]}", ".".join(parts[3:])
        if module == "attention.qkv":
            return tuple(
                f"{layer}.attention.self.{part}.{leaf}" for part in ("query", "key", "value")
            )
        return (f"{layer}.{_TEXT_LAYER[module]}.{leaf}",)
    return ()


def blip_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of the plain model."""
    dim, hidden = config["hidden_size"], config["hidden_size"] * config["mlp_ratio"]
    text = {
        "model_type": "blip_text_model",
        "vocab_size": config["vocab_size"],
        "hidden_size": dim,
        "encoder_hidden_size": dim,
        "intermediate_size": hidden,
        "projection_dim": config["projection_dim"],
        "num_hidden_layers": config["text_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "max_position_embeddings": config["max_position_embeddings"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": config["pad_token_id"],
        "bos_token_id": config["cls_token_id"],
        "eos_token_id": config["sep_token_id"],
        "sep_token_id": config["sep_token_id"],
        "is_decoder": False,  # no cross-attention, which ITC does not have
    }
    vision = {
        "model_type": "blip_vision_model",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "projection_dim": config["projection_dim"],
        "num_hidden_layers": config["image_layers"],
        "num_attention_heads": config["image_attention_heads"],
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
    }
    return {
        "model_type": "blip",
        "architectures": ["BlipForImageTextRetrieval"],
        "projection_dim": config["projection_dim"],
        "image_text_hidden_size": config["projection_dim"],
        "text_config": text,
        "vision_config": vision,
    }


def write(
    folder: Path,
    trained: Trained,
    config: dict[str, Any],
    full: Path,
    write_tensors: Callable[[Path, dict, Iterator], None],
) -> None:
    """Writes the plain model to `folder`; tokenizer and processor are those of the full export.

    write_tensors: `hf_writing.write_safetensors`.
    """
    folder.mkdir()
    for name in _TOKENIZER_FILES:
        shutil.copyfile(full / name, folder / name)
    (folder / "config.json").write_text(
        json.dumps(blip_config(config), indent=2) + "\n", encoding="utf-8"
    )
    groups = [[name for name in group if blip_names(hf_name(name))] for group in trained.groups()]
    kinds: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in (name for group in groups for name in group):
        (rows, *rest), dtype = torch_shape(name, trained.shapes[name][0]), trained.shapes[name][1]
        names = blip_names(hf_name(name))
        kinds |= dict.fromkeys(names, ((rows // len(names), *rest), dtype))
    dim = config["hidden_size"]
    kinds |= {"itm_head.weight": ((2, dim), "float32"), "itm_head.bias": ((2,), "float32")}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        (_, types_2xD) = next(trained.read(["text_encoder/type_embedding/embedding"]))
        for name, array in (pair for group in groups if group for pair in trained.read(group)):
            tensor, names = to_torch(name, array), blip_names(hf_name(name))
            if name == "text_encoder/position_embedding/embedding":
                tensor = tensor + types_2xD[0]
            yield from zip(names, np.split(tensor, len(names)), strict=True)
        yield "itm_head.weight", np.zeros((2, dim), np.float32)
        yield "itm_head.bias", np.zeros(2, np.float32)

    write_tensors(folder / "model.safetensors", kinds, tensors())
