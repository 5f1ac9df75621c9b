"""Our tokenizer as files for AutoTokenizer, which then cleans, cuts and pads as ours does.

The rules stand in tokenizer.json itself, so any version of transformers (and the `tokenizers`
library alone) follows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, processors

from nas_jax.data.tokenizer import TextTokenizer

ROLES = ("pad", "unk", "cls", "sep", "mask")


def write_tokenizer(folder: Path, tokenizer: TextTokenizer, config: Mapping[str, Any]) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    config: the export's, of which `text_length`, `clean_captions`, `max_words` and `kind` count.

    The `tokenizers` library cuts by tokenizer.json; transformers' processors cut too, and
    its tokenizers where they are called with truncation=True, to model_max_length.
    """
    # text_tokenizer.json stays too: our own `load_tokenizer` reads the folder
    tokenizer.save(folder)
    names, fills = tokenizer.tokens(), config.get("kind") == "siglip"
    special = {f"{role}_token": names[getattr(tokenizer, f"{role}_id")] for role in ROLES}
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.normalizer = _normalizer(made, config, tokenizer.cased)
    cls, sep = special["cls_token"], special["sep_token"]
    end = [sep] if tokenizer.add_sep else []
    made.post_processor = processors.TemplateProcessing(
        single=" ".join([cls, "$A", *end]),
        pair=" ".join([cls, "$A", sep, "$B:1", *end]),
        special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
    )
    made.enable_truncation(config["text_length"])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["text_length"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        # no token types: the model has one kind of text; SigLIP is trained to read its padding
        "model_input_names": ["input_ids"] if fills else ["input_ids", "attention_mask"],
        # what a processor does where its caller does not say
        "truncation": True,
        "padding": "max_length" if fills else True,
        **special,
    }
    for name, value in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (folder / name).write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _normalizer(
    tokenizer: Tokenizer, config: Mapping[str, Any], cased: bool
) -> normalizers.Normalizer:
    """What `data/text_ops.py` does to a caption, then the tokenizer's own."""
    steps: list[normalizers.Normalizer] = []
    if config["clean_captions"]:
        if not cased:
            steps.append(normalizers.Lowercase())
        steps += [
            normalizers.Replace(Regex("[,.'!?\"()*#:;~]"), ""),
            normalizers.Replace(Regex("[-/]"), " "),
            normalizers.Replace(Regex("(?i)<person>"), "person"),
            normalizers.Replace(Regex(r"\s{2,}"), " "),
            normalizers.Strip(),
        ]
        # else the length cuts first: a word is a token at least
        if config["max_words"] < config["text_length"]:
            # \K: what stands before it stays
            kept = rf"^(?:[^ ]* ){{{config['max_words'] - 1}}}[^ ]*\K .*"
            steps.append(normalizers.Replace(Regex(kept), ""))
    else:
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    return normalizers.Sequence(steps)
