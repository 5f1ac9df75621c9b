"""The towers and the matching head of an export as ONNX files.

    python -I onnx_torch.py EXPORT FOLDER

Run as a file, in a process of its own that cannot import nas_jax, like `gate_torch.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize


class Part(nn.Module):
    """A piece of a model, and the names of what it takes and gives."""

    name: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, model):
        super().__init__()
        self.model = model


class Image(Part):
    """Pictures -> unit ITC features and what ITM reads."""

    name, inputs = "image", ("pixel_values",)
    outputs: tuple[str, ...] = ("image_embeds", "image_tokens")

    def forward(self, pixel_values):
        tokens, embeds = self.model.encode_image(pixel_values)
        return embeds, tokens


class DictionaryImage(Image):
    """The same of NAS, with the code of each patch."""

    outputs = ("image_embeds", "image_tokens", "code_ids")

    def forward(self, pixel_values):
        tokens, embeds = self.model.encode_image(pixel_values)
        return embeds, *self.model.look_up(tokens)


class Text(Part):
    """Token ids -> unit ITC features and text tokens."""

    name, inputs = "text", ("input_ids", "attention_mask")
    outputs = ("text_embeds", "text_tokens")

    def forward(self, input_ids, attention_mask):
        tokens, embeds = self.model.encode_text(input_ids, attention_mask)
        return embeds, tokens


class Match(Part):
    """What `Image` and `Text` give of pairs -> ITM logits."""

    name, inputs = "match", ("image_tokens", "text_tokens", "attention_mask")
    outputs = ("itm_logits",)

    def forward(self, image_tokens, text_tokens, attention_mask):
        return (self.model.match(image_tokens, text_tokens, attention_mask),)


class DualImage(Part):
    """Pictures -> unit features of CLIPModel or SiglipModel."""

    name, inputs, outputs = "image", ("pixel_values",), ("image_embeds",)

    def forward(self, pixel_values):
        found = self.model.get_image_features(pixel_values=pixel_values)
        return (normalize(found.pooler_output, dim=-1),)


class DualText(Part):
    """Token ids -> unit features of CLIPModel; of SiglipModel without a mask."""

    name, outputs = "text", ("text_embeds",)
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")

    def forward(self, input_ids, attention_mask=None):
        found = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return (normalize(found.pooler_output, dim=-1),)


class SiglipText(DualText):
    """Texts that fill the table of positions."""

    inputs = ("input_ids",)


def main(argv: list[str]) -> int:
    """Writes the files; returns the exit status."""
    sys.modules["nas_jax"] = None  # type: ignore[assignment]  # typeshed: no None; imports fail
    from transformers import AutoModel

    export, folder = argv
    model = AutoModel.from_pretrained(export, dtype=torch.float32, trust_remote_code=True)
    write(model.eval(), Path(folder))
    return 0


def write(model, folder: Path) -> None:
    """One `NAME.onnx` for each part, with its weights in `NAME.onnx.data`.

    They take any number of pairs, and but for SigLIP texts of any length up to the last position.
    """
    kind = model.config.model_type
    parts: tuple[type[Part], ...]
    if kind in ("clip", "siglip"):
        parts = (DualImage, DualText if kind == "clip" else SiglipText)
        picture, text = model.config.vision_config, model.config.text_config
        ids = torch.full((2, 4 if kind == "clip" else text.max_position_embeddings), 1)
        ids[:, -1] = text.eos_token_id if kind == "clip" else 1
    else:
        parts = (Image if model.neck is None else DictionaryImage, Text, Match)
        picture = text = model.config
        ids = torch.ones((2, 4), dtype=torch.long)
    given = {
        "pixel_values": torch.zeros(2, 3, picture.image_size, picture.image_size),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }
    pairs = torch.export.Dim("pairs")
    length = {1: torch.export.Dim("length", max=text.max_position_embeddings)}
    of_texts = {0: pairs} | (length if kind != "siglip" else {})
    folder.mkdir()
    with torch.inference_mode():
        for part in (part(model).eval() for part in parts):
            inputs = {name: given[name] for name in part.inputs}
            # The next part reads what this one gives. Fixed codes of places are computed here and
            # kept, so that the file has them as numbers.
            given |= zip(part.outputs, part(**inputs), strict=True)
            pictures = ("pixel_values", "image_tokens")
            program: Any = torch.onnx.export(
                part,
                kwargs=inputs,
                input_names=part.inputs,
                output_names=part.outputs,
                dynamic_shapes={
                    name: {0: pairs} if name in pictures else of_texts for name in inputs
                },
                dynamo=True,  # gives a program
                verbose=False,
            )
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # lines of source files, and where these lie here
            program.save(folder / f"{part.name}.onnx", external_data=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
