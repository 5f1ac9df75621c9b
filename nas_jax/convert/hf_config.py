"""config.json of an export with a class of `hf_files`."""

from __future__ import annotations

import dataclasses
from typing import Any

from nas_jax.convert.hf_names import MODEL_TYPE, hf_class, shapes_in
from nas_jax.data.config import DataConfig
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.methods import method_config
from nas_jax.methods.method import MethodConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.train.trained import Trained
from nas_jax.utils.errors import CheckpointError

PIPELINES = {
    "zero-shot-image-classification": "NasZeroShotPipeline",
    "image-text-matching": "NasMatchingPipeline",
}
"""Task of transformers' `pipeline` -> its class in `hf_files/pipeline_nas.py`."""


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
        "custom_pipelines": {
            task: {"impl": f"pipeline_{kind}.{name}", "pt": ["AutoModel"]}
            for task, name in PIPELINES.items()
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
