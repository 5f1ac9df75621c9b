"""Hashes and overlap: copies are found, others are not, and the fast comparison equals the plain
one.
"""

import io
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from benchmarks.overlap import changed_copies
from nas_jax.data import overlap
from nas_jax.data.overlap import (
    MAX_DISTANCE,
    MIN_BITS,
    NO_HASH,
    Match,
    exact_hash,
    find_overlap,
    hamming,
    perceptual_hash,
)


class Row(NamedTuple):
    key: str
    sha: bytes
    phash: bytes


def texture(seed: int, height: int = 240, width: int = 320, contrast: float = 45) -> np.ndarray:
    """Like a photograph in its spectrum (amplitude falls as 1/frequency), brighter at the top."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    values = np.fft.irfft2(noise / frequency**1.3, s=(height, width))
    values = (
        (values - values.mean()) / values.std() * contrast
        + 128
        + 30 * np.linspace(1, -1, height)[None, :, None]
    )
    return np.ascontiguousarray(np.uint8(np.clip(values, 0, 255)).transpose(1, 2, 0))


def png(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return np.asarray(Image.open(buffer))


def test_copies_are_near_and_others_far():
    images = [texture(seed) for seed in range(24)]
    hashes = [perceptual_hash(image) for image in images]
    for image, phash in zip(images, hashes, strict=True):
        assert perceptual_hash(png(image)) == phash
        for name, copy in changed_copies(image).items():
            assert hamming(phash, perceptual_hash(copy)) <= MAX_DISTANCE - 4, name
    apart = [hamming(one, other) for number, one in enumerate(hashes) for other in hashes[:number]]
    assert min(apart) > 4 * MAX_DISTANCE
    # Negative control: what the hash is not made for is not found.
    assert all(
        hamming(h, perceptual_hash(i[:, ::-1])) > MAX_DISTANCE
        for i, h in zip(images, hashes, strict=True)
    )


def test_symmetric_drawing_survives_jpeg():
    """Half of its frequencies are 0 but for noise, which must not decide their bits."""
    rows, columns = np.mgrid[:64, :64] - 31.5
    drawing = np.full((64, 64, 3), 255, np.uint8)
    drawing[np.hypot(rows, columns) < 24] = (250, 200, 40)
    drawing[np.hypot(rows + 8, np.abs(columns) - 10) < 4] = (60, 40, 20)
    drawing[(np.abs(rows - 10) < 2) & (np.abs(columns) < 12)] = (60, 40, 20)
    copies = changed_copies(drawing)
    assert (
        hamming(perceptual_hash(drawing), perceptual_hash(copies["JPEG, quality 50"]))
        <= MAX_DISTANCE
    )


def test_flat_pictures_have_no_hash():
    rng = np.random.default_rng(0)
    flat = np.full((50, 60, 3), 200, np.uint8)
    noisy = np.uint8(200 + rng.integers(-2, 3, (300, 400, 3)))
    edge = flat.copy()
    edge[:, :30] = 0
    for image in (flat, noisy, edge, flat[:1, :1]):
        assert perceptual_hash(image) == NO_HASH
    assert int.from_bytes(perceptual_hash(texture(0)), "big").bit_count() >= MIN_BITS


def test_exact_hash():
    # the first half of FIPS 180-2's example
    assert exact_hash(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223"
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (
        exact_hash(image)
        == exact_hash(np.asfortranarray(image))
        != exact_hash(image.reshape(4, 2, 3))
    )


def rows(rng: np.random.Generator, prefix: str, count: int) -> list[Row]:
    return [Row(f"{prefix}{n}", rng.bytes(16), rng.bytes(32)) for n in range(count)]


def flipped(phash: bytes, bits) -> bytes:
    values = np.unpackbits(np.frombuffer(phash, np.uint8))
    values[bits] ^= 1
    return np.packbits(values).tobytes()


@pytest.mark.parametrize("limit", [0, 5, 16, 90])
def test_find_overlap_equals_comparing_all_pairs(monkeypatch, limit):
    """With blocks that do not divide the numbers of rows, and rows of every kind."""
    monkeypatch.setattr(overlap, "_TRAIN_BLOCK", 37)
    monkeypatch.setattr(overlap, "_EVAL_BLOCK", 5)
    rng = np.random.default_rng(limit)
    evals, trains = rows(rng, "e", 23), rows(rng, "t", 100)
    for n in range(0, 60, 2):
        bits = rng.choice(256, size=n % 40, replace=False)
        trains[n] = trains[n]._replace(phash=flipped(evals[n % 23].phash, bits))
    # an equal file whose perceptual hash is another
    trains[3] = trains[3]._replace(sha=evals[4].sha)
    trains[5] = trains[5]._replace(sha=evals[6].sha, phash=evals[6].phash)
    evals[7], trains[9] = evals[7]._replace(phash=NO_HASH), trains[9]._replace(phash=NO_HASH)
    evals[8], trains[11] = (
        row._replace(sha=b"same", phash=NO_HASH) for row in (evals[8], trains[11])
    )
    expected = []
    for train in trains:
        for row in evals:
            distance = hamming(train.phash, row.phash)
            if train.sha == row.sha:
                expected.append(Match(row.key, train.key, "exact", 0))
            elif NO_HASH not in (train.phash, row.phash) and distance <= limit:
                expected.append(Match(row.key, train.key, "perceptual", distance))
    assert find_overlap(evals, iter(trains), limit) == expected
    assert sum(match.kind == "exact" for match in expected) == 3
    only_exact = [match for match in expected if match.kind == "exact"]
    assert find_overlap(iter(evals), trains, max_distance=-1) == only_exact


def test_find_overlap_streams_the_training_rows(monkeypatch):
    """No more than a block of rows is taken before its matches are known."""
    monkeypatch.setattr(overlap, "_TRAIN_BLOCK", 10)
    alive: list[int] = []

    def stream():
        for number in range(100):
            alive.append(number)
            yield Row(str(number), b"s%d" % number, NO_HASH)

    seen = []
    original = overlap._blocks
    monkeypatch.setattr(
        overlap,
        "_blocks",
        lambda given: (seen.append(len(alive)) or block for block in original(given)),
    )
    assert [m.train_key for m in find_overlap([Row("e", b"s42", NO_HASH)], stream())] == ["42"]
    assert seen == list(range(10, 101, 10))


def test_nothing_to_compare():
    row = Row("a", b"x", bytes(range(32)))
    assert find_overlap([], [row]) == find_overlap([row], []) == []
