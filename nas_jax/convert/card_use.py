"""The section "Use" of a card: lines that a reader may copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas_jax.convert.export import Export
from nas_jax.convert.gate_dual import SIGLIP_TOKENS, has_pipeline

_USE = """```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

folder = "."  # this folder, or its name on the hub
picture, captions = Image.open("picture.jpg"), ["a red square", "a blue circle"]

model = AutoModel.from_pretrained(folder{trust}).eval()
processor = AutoProcessor.from_pretrained(folder{trust})
with torch.inference_mode():
    output = model(**processor(images=picture, text=captions, return_tensors="pt"))
output.image_embeds, output.text_embeds  # ITC: unit features
output.logits_per_image  # ITC: all pictures with all texts{more}
```"""
_NAS_USE = """
# as many pictures as texts give pairs, text b beside picture b:
output = model(**processor(images=[picture] * 2, text=captions, return_tensors="pt"))
output.itm_logits.softmax(-1)[:, 1]  # ITM: probability that text b matches picture b
output.mlm_logits  # MLM: words for every position; put {mask} into the text{dictionary}"""
_DICTIONARY_USE = (
    "\noutput.code_ids, output.dictionary_tokens  # the picture in the words of the visual "
    "dictionary"
)
_PIPELINE_USE = """```python
classify = pipeline("zero-shot-image-classification", model=folder{trust})
classify(picture, candidate_labels=captions, hypothesis_template="{{}}")  # ITC{match}
```"""
_MATCH_USE = """
match = pipeline("image-text-matching", model=folder, trust_remote_code=True)
match(picture, candidate_labels=captions)  # ITM: probability of each caption by itself"""
_NO_PIPELINE = (
    "* `pipeline(...)` does not fit this model: transformers pads texts for SigLIP to "
    "{tokens} tokens, and this one was trained with {length}. Use the lines above."
)
_TRUST = ", trust_remote_code=True"


def nas_use(export: Export) -> str:
    """Of a model with a class of `hf_files`."""
    config, tokenizer = export.facts, export.trained.tokenizer
    more = _NAS_USE.format(
        mask=tokenizer.tokens()[tokenizer.mask_id],
        dictionary=_DICTIONARY_USE if config["dictionary_codes"] else "",
    )
    parts = (
        _USE.format(trust=_TRUST, more=more),
        _PIPELINE_USE.format(trust=_TRUST, match=_MATCH_USE),
        _use_notes(config, export.plain),
    )
    return "\n\n".join(parts)


def dual_use(export: Export) -> str:
    """Of CLIPModel or SiglipModel."""
    length = export.facts["max_position_embeddings"]
    pipelines = (
        _PIPELINE_USE.format(trust="", match="")
        if has_pipeline(export.facts)
        else _NO_PIPELINE.format(tokens=SIGLIP_TOKENS, length=length)
    )
    return f"{_USE.format(trust='', more='')}\n\n{pipelines}"


def _use_notes(config: Mapping[str, Any], plain: str) -> str:
    cleaned = "lower-cased, without punctuation, " if config["clean_captions"] else ""
    notes = [
        f"* The processor does all that training did: texts are {cleaned}begun with the first token"
        f"{', ended with the last one' if config['add_sep'] else ' and not ended with one'}, and "
        "cut to "
        f"{config['text_length']} tokens.",
        "* Pictures are resized to a square, bicubic, as the evaluations below did. Other ways "
        "of resizing, such as "
        "torchvision's, give slightly different pixels.",
        "* The model has no dropout, and was compared in float32; other precisions were not.",
    ]
    if plain:
        notes.append(
            f"* `{plain}/` is the dual encoder alone without remote code: "
            f'`BlipForImageTextRetrieval.from_pretrained("{plain}")`, called with '
            "`use_itm_head=False`. "
            "Load it by that class: AutoModel takes it for another one."
        )
    return "\n".join(notes)
