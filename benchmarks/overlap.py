"""How many copies the perceptual hash misses, and how many other pictures it takes for copies.

    python -m benchmarks.overlap                 textures with the spectrum of photographs
    python -m benchmarks.overlap emoji/*.tar     the pictures of WebDataset tars

Also prints how many pairs of hashes a core compares in a second.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice

import cv2
import numpy as np

from benchmarks.input import textures
from nas_jax.data.image_ops import decode
from nas_jax.data.overlap import (
    MAX_DISTANCE,
    NO_HASH,
    hamming,
    hash_words,
    near_pairs,
    perceptual_hash,
)
from nas_jax.data.tar_source import WebDatasetSource

PICTURES = 1000  # textures, or about as many of the tars of which copies are made


def measure(images: Iterable[np.ndarray], step: int) -> None:
    """Prints how far each step-th picture is from changed copies, and how many pairs are near."""
    hashes, copies = [], defaultdict(list)
    for number, image_HxWx3 in enumerate(images):
        hashes.append(perceptual_hash(image_HxWx3))
        if number % step == 0 and hashes[-1] != NO_HASH:
            for name, copy_HxWx3 in changed_copies(image_HxWx3).items():
                copies[name].append(hamming(hashes[-1], perceptual_hash(copy_HxWx3)))
    print(f"{len(hashes)} pictures, {hashes.count(NO_HASH)} without a perceptual hash")
    for name, distances in copies.items():
        missed = np.mean(np.asarray(distances) > MAX_DISTANCE)
        print(
            f"{name:>28}: median {np.median(distances):3.0f}, 99 % "
            f"{np.percentile(distances, 99):3.0f}, ",
            end="",
        )
        print(
            f"max {max(distances):3d}, missed at {MAX_DISTANCE}: {missed:.2%} of {len(distances)}"
        )
    words_Nx4 = hash_words([phash for phash in hashes if phash != NO_HASH])
    limits = (0, 4, 8, 12, 16, 20, 24, 32)
    distances = [d for e, t, d in near_pairs(words_Nx4, words_Nx4, limits[-1]) if e < t]
    counts = ", ".join(f"{limit}: {sum(d <= limit for d in distances)}" for limit in limits)
    print(
        f"pairs of different pictures at most so many bits apart: {counts}; of "
        f"{len(words_Nx4) ** 2 // 2} pairs"
    )


def changed_copies(image_HxWx3: np.ndarray) -> dict[str, np.ndarray]:
    """Copies as they occur in the wild: JPEG quality 50, shrunk, enlarged, blurred."""
    height, width = image_HxWx3.shape[:2]

    def jpeg(picture_HxWx3: np.ndarray, quality: int) -> np.ndarray:
        _, encoded = cv2.imencode(
            ".jpg", picture_HxWx3[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])

    def scaled(factor: float) -> np.ndarray:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return cv2.resize(
            image_HxWx3, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        )

    return {
        "JPEG, quality 50": jpeg(image_HxWx3, 50),
        "half the side, JPEG 90": jpeg(scaled(1 / 2), 90),
        "a quarter of it, JPEG 90": jpeg(scaled(1 / 4), 90),
        "a quarter of it, JPEG 75": jpeg(scaled(1 / 4), 75),
        "1.25 times the side, JPEG 90": jpeg(scaled(1.25), 90),
        "mild blur": cv2.GaussianBlur(image_HxWx3, (0, 0), max(1.0, min(height, width) / 256)),
    }


def compare(evaluation: int = 5000, train: int = 65536) -> None:
    """Prints the speed of the comparison on random hashes."""
    rng = np.random.default_rng(0)
    one, other = (
        rng.integers(0, 2**64, (count, 4), dtype=np.uint64) for count in (evaluation, train)
    )
    began = time.perf_counter()
    for start in range(0, train, 8192):
        list(near_pairs(one, other[start : start + 8192], MAX_DISTANCE))
    spent = time.perf_counter() - began
    print(f"{evaluation * train / spent / 1e6:.0f} M pairs a second")


def main() -> None:
    """Prints all three."""
    if files := tuple(sys.argv[1:]):
        source = WebDatasetSource(files)
        measure(
            (decode(source[index].image) for index in range(len(source))),
            max(1, len(source) // PICTURES),
        )
    else:
        measure(islice(textures(np.random.default_rng(0)), PICTURES), 1)
    compare()


if __name__ == "__main__":
    main()
