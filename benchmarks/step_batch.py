"""The batch that `benchmarks.step` runs: drawn, or read from a file. Imports numpy only."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from nas_jax.typing import HostBatch, Vocabulary
from nas_jax.utils.errors import ConfigError, DataError

CUT_AT_MOST = 0.01  # share of captions that may lose a masked position to `max_masked`
PAD, CLS, SEP, MASK = 0, 101, 102, 103  # in BERT's vocabulary
FIRST_WORD = 1000  # there; ids below are not used by random captions


def vocabulary(size: int) -> Vocabulary:
    """BERT's, cut to its first words; every word carries meaning."""
    words_V = np.arange(size) >= min(FIRST_WORD, size // 2)
    return Vocabulary(size, PAD, CLS, SEP, MASK, words_V, words_V, np.zeros_like(words_V))


def random_batch(size: int, length: int, image_size: int, vocab_size: int) -> HostBatch:
    """Noise pictures, and captions of random words whose real lengths are spread as COCO's: 13 +-
    2.5, padded.
    """
    rng = np.random.default_rng(0)
    counts_B = np.clip(np.round(rng.normal(13.0, 2.5, size)), min(8, length), length).astype(int)
    mask_BxL = np.arange(length) < counts_B[:, None]
    ids_BxL = rng.integers(
        min(FIRST_WORD, vocab_size // 2), vocab_size, (size, length), dtype=np.int32
    )
    ids_BxL[:, 0] = CLS
    ids_BxL[np.arange(size), counts_B - 1] = SEP
    return {
        "image_BxHxWx3": rng.integers(0, 256, (size, image_size, image_size, 3), dtype=np.uint8),
        "token_ids_BxL": np.where(mask_BxL, ids_BxL, PAD).astype(np.int32),
        "token_mask_BxL": mask_BxL,
        "image_id_B": np.arange(size, dtype=np.int32),
    }


def read_batch(
    path: Path, image_size: int, vocab_size: int, length: int | None, trim: bool
) -> HostBatch:
    """The batch of a file, its texts padded to `length` or cut to the longest of them.

    Raises DataError on a file without the arrays, or whose arrays are not those of the preset.
    """
    try:
        with np.load(path) as file:
            image, ids_BxL, mask_BxL = (
                file[name] for name in ("image", "input_ids", "attention_mask")
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _bad_file(
            path,
            " ".join(str(error).split())[:120],
            "an .npz with image, input_ids, attention_mask",
        ) from error
    size = len(image)
    if image.shape != (size, 3, image_size, image_size) or image.dtype != np.float32:
        raise _bad_file(
            path,
            f"image {image.dtype}{list(image.shape)}",
            f"float32 [B, 3, {image_size}, {image_size}] of the preset",
        )
    if ids_BxL.ndim != 2 or ids_BxL.shape != mask_BxL.shape or len(ids_BxL) != size:
        raise _bad_file(
            path,
            f"input_ids {list(ids_BxL.shape)}, attention_mask {list(mask_BxL.shape)}",
            f"both [{size}, L]",
        )
    mask_BxL = mask_BxL.astype(bool)
    if not mask_BxL[:, 0].all() or ids_BxL.min() < 0 or ids_BxL.max() >= vocab_size:
        raise _bad_file(
            path,
            f"ids {ids_BxL.min()} to {ids_BxL.max()}, {(~mask_BxL[:, 0]).sum()} empty texts",
            f"ids below {vocab_size} and no empty text",
        )
    longest = int(np.flatnonzero(mask_BxL.any(0))[-1]) + 1
    target = length or (longest if trim else ids_BxL.shape[1])
    if target < longest:
        raise ConfigError(
            f"--length={target} for a text of {longest} tokens", f"at least {longest}", "raise it"
        )
    wider = ((0, 0), (0, max(0, target - ids_BxL.shape[1])))
    return {
        "image_BxHxWx3": np.ascontiguousarray(image.transpose(0, 2, 3, 1)),
        "token_ids_BxL": np.pad(ids_BxL, wider)[:, :target].astype(np.int32),
        "token_mask_BxL": np.pad(mask_BxL, wider)[:, :target],
        "image_id_B": np.arange(size, dtype=np.int32),
    }


def trimmed(batch: HostBatch) -> HostBatch:
    """The batch with its texts cut to the longest of them."""
    longest = int(batch["token_mask_BxL"].sum(-1).max())
    return batch | {name: batch[name][:, :longest] for name in ("token_ids_BxL", "token_mask_BxL")}


def _bad_file(path: Path, got: str, expected: str) -> DataError:
    error = DataError(f"{path}: {got}", expected, "write another file, or leave out --batch-file")
    error.exit_code = 2
    return error


def cut_probability(batch: HostBatch, probability: float, max_masked: int) -> float:
    """Mean probability that a caption of the batch has more picks than `max_masked`."""
    ids_BxL = batch["token_ids_BxL"]
    words_B = (batch["token_mask_BxL"] & ~np.isin(ids_BxL, (CLS, SEP, PAD))).sum(-1)

    def above(words: int) -> float:
        q = 1 - probability
        return sum(
            math.comb(words, k) * probability**k * q ** (words - k)
            for k in range(max_masked + 1, words + 1)
        )

    return float(np.mean([above(int(words)) for words in words_B]))


def enough_masked(batch: HostBatch, probability: float) -> int:
    """The smallest `max_masked` that cuts at most CUT_AT_MOST of the captions."""
    length = batch["token_ids_BxL"].shape[1]
    return next(
        picks
        for picks in range(1, length + 1)
        if cut_probability(batch, probability, picks) <= CUT_AT_MOST
    )
