"""What both sides of a gate compute on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from nas_jax.data.scenes import SceneSource
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.data.worlds import SMALL
from nas_jax.models.towers import normalise_image

CASES = ("random", "real")
CAPTIONS = (
    "A man's dog -- it's (red)/blue? <person> No. 7!",
    " ".join(f"word {number}," for number in range(60)),  # longer than any text is
)
"""Captions for the tokenizer alone, beside those of the pictures."""
LABELS = ("a dog", "red")  # for transformers' pipelines; as short as any text may be


def make_inputs(config: Mapping[str, Any], tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    """Both cases: noise with texts of all positions, and two drawn pictures with their captions.

    `pixels` is what JAX gets, (B, S, S, 3) float32, normalised.
    """
    rng, size, length = np.random.default_rng(0), config["image_size"], config["text_length"]
    longest = config["max_position_embeddings"]
    noise = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    mask = np.arange(longest)[None] < np.array([[longest], [max(2, longest // 3)]])
    source = SceneSource("val", 3, 0, size, SMALL)
    records = [source[index] for index in range(2)]
    images = np.stack([record.image for record in records])
    large = SceneSource("val", 3, 0, min(1024, size + size // 2), SMALL)[2].image
    captions = [record.captions[0] for record in records] + list(CAPTIONS)
    cleaned = [
        prepare_caption(text, config["clean_captions"], config["max_words"], tokenizer.cased)
        for text in (*captions, *LABELS)
    ]
    token_ids, token_mask = tokenizer.encode(cleaned, length)
    label_ids, label_mask = (array[len(captions) :] for array in (token_ids, token_mask))
    token_ids, token_mask = (array[: len(captions)] for array in (token_ids, token_mask))
    return {
        "cases": np.asarray(json.dumps(CASES)),
        "random/pixels": noise,
        "random/pixel_values": channels_first(noise),
        "random/input_ids": rng.integers(0, config["vocab_size"], (2, longest)),
        "random/attention_mask": mask.astype(np.int64),
        "real/pixels": np.asarray(normalise_image(images)),
        "real/images": images,
        "real/large": np.asarray(large),
        "real/captions": np.asarray(json.dumps(captions)),
        "real/labels": np.asarray(json.dumps(LABELS)),
        "real/label_ids": label_ids.astype(np.int32),
        "real/label_mask": label_mask,
        "real/input_ids": token_ids.astype(np.int64),
        "real/attention_mask": token_mask.astype(np.int64),
    }


def channels_first(pixels_BxHxWx3: np.ndarray) -> np.ndarray:
    """Pixels as PyTorch has them, (B, 3, H, W)."""
    return np.ascontiguousarray(pixels_BxHxWx3.transpose(0, 3, 1, 2))
