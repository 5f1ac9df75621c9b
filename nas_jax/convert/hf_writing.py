"""Single files of an export: JSON, the image processor, weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert.hf_names import SAFETENSORS_DTYPES
from nas_jax.models.towers import IMAGE_MEAN, IMAGE_STD

_PROCESSORS = {
    "nas": "VisionTextDualEncoderProcessor",  # any image processor with any tokenizer
    "clip": "CLIPProcessor",
    "siglip": "SiglipProcessor",
}
_BICUBIC = 3  # Pillow's number
_DTYPES = {ours: theirs for theirs, ours in SAFETENSORS_DTYPES.items()}


def write_processor(
    folder: Path,
    image_size: int,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
    kind: str = "nas",
) -> None:
    """How pictures become `pixel_values`: Pillow's bicubic to a square, as in evaluations.

    kind: nas, clip or siglip, which AutoProcessor has a class for.
    """
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": _BICUBIC,
        "do_center_crop": False,  # CLIPProcessor of transformers 4 would
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    write_json(folder / "preprocessor_config.json", processor)
    write_json(folder / "processor_config.json", {"processor_class": _PROCESSORS[kind]})


def write_json(path: Path, value: Any) -> None:
    """A JSON file that people read too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_safetensors(
    path: Path,
    kinds: dict[str, tuple[tuple[int, ...], str]],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """A safetensors file, tensor after tensor (format: huggingface.co/docs/safetensors).

    kinds: name -> shape and dtype, in the order in which `tensors` gives them. The library's own
    writer wants all tensors of a file at once, and writes the wrong numbers for one that is not
    contiguous.
    """
    # without it, transformers refuses the file
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in kinds.items():
        begin, end = end, end + bytes_of(shape, dtype)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, kind), (given, tensor) in zip(kinds.items(), tensors, strict=True):
            if (given, tensor.shape, str(tensor.dtype)) != (name, *kind):
                raise ValueError(
                    f"tensor {given} {tensor.dtype}{tensor.shape} in the place of {name} {kind}"
                )
            file.write(np.ascontiguousarray(tensor).data)


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Of an array of that shape."""
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
