"""Which pictures stand in two data sets: hashes of pictures, and their comparison.

The exact hash finds equal files. The perceptual hash finds copies that were encoded anew, resized
or slightly blurred; it does not find crops, mirrored or turned copies, frames or overlaid text.

`python -m benchmarks.overlap` measures how many copies it misses and how many other pairs it takes
for copies; docs/data_4m.md has the table. On photographs the rates are not measured.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import cv2
import numpy as np

MAX_DISTANCE = 16  # bits of 256 in which two copies of one picture may differ
NO_HASH = bytes(32)  # the perceptual hash of a picture that shows too little to be told from others
MIN_BITS = 32  # a hash with fewer set bits becomes NO_HASH
# side of the grey thumbnail, and of the block of low frequencies that is kept
_SIDE, _KEPT = 64, 16
_DEAD_ZONE = 12.0  # grey levels; what JPEG noise adds to a coefficient is smaller
# pairs compared at once: 4 MiB of xor-ed words, so that they stay in the cache
_TRAIN_BLOCK, _EVAL_BLOCK = 8192, 64


class Hashed(Protocol):
    """What is compared: `nas_jax.data.prepared.About` is one."""

    @property
    def key(self) -> str: ...
    @property
    def sha(self) -> bytes: ...
    @property
    def phash(self) -> bytes: ...


class Match(NamedTuple):
    """A picture of the evaluation set that the training set holds as well."""

    eval_key: str
    train_key: str
    kind: str  # "exact" | "perceptual"
    distance: int  # bits between the perceptual hashes; 0 where the files are equal


def exact_hash(data: bytes | np.ndarray) -> bytes:
    """16 bytes of the sha256 of a file's bytes, or of the shape and values of an array."""
    if isinstance(data, np.ndarray):
        return hashlib.sha256(
            repr((data.shape, data.dtype.str)).encode() + data.tobytes()
        ).digest()[:16]
    return hashlib.sha256(data).digest()[:16]


def perceptual_hash(image_HxWx3: np.ndarray) -> bytes:
    """256 bits that hardly change when a uint8 RGB picture is resized or encoded anew.

    The signs of the 16 x 16 lowest frequencies (cosine transform) of a 64 x 64 grey thumbnail. A
    coefficient within the dead zone gives 0, as in symmetric drawings half of them are 0 but for
    noise, and so does the mean.

    Flat pictures have no hash: where fewer than MIN_BITS bits are set, the result is NO_HASH, and
    such pictures are compared exactly only. A cosine transform rather than differences of
    neighbours because the latter were 4 to 10 times as far from their copies on drawings, whose
    white ground has no gradient to speak of.
    """
    grey_HxW = cv2.cvtColor(np.ascontiguousarray(image_HxWx3), cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey_HxW, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(
        np.float32
    )
    bits = cv2.dct(thumbnail)[:_KEPT, :_KEPT] > _DEAD_ZONE
    bits[0, 0] = False
    return np.packbits(bits).tobytes() if np.count_nonzero(bits) >= MIN_BITS else NO_HASH


def find_overlap(
    eval_rows: Iterable[Hashed], train_rows: Iterable[Hashed], max_distance: int = MAX_DISTANCE
) -> list[Match]:
    """All pairs of equal or nearly equal pictures, in the order of train_rows, then of eval_rows.

    eval_rows are held in memory (about 200 bytes a row); train_rows are read once, a few thousand
    at a time.

    A pair is "exact" where the files are equal, else "perceptual" where both pictures have a
    perceptual hash and these differ in at most max_distance bits (0 finds equal hashes; a negative
    number turns the comparison off).
    """
    eval_keys, by_sha, hashed, words = [], defaultdict(list), [], []
    for number, row in enumerate(eval_rows):
        eval_keys.append(row.key)
        by_sha[row.sha].append(number)
        if row.phash != NO_HASH:
            hashed.append(number)
            words.append(row.phash)
    eval_words_Ex4 = hash_words(words)
    matches: list[Match] = []
    for block in _blocks(train_rows):
        found = {(t, e): 0 for t, row in enumerate(block) for e in by_sha.get(row.sha, ())}
        exact = set(found)
        usable = [number for number, row in enumerate(block) if row.phash != NO_HASH]
        if hashed and usable and max_distance >= 0:
            train_words_Tx4 = hash_words([block[number].phash for number in usable])
            for e, t, distance in near_pairs(eval_words_Ex4, train_words_Tx4, max_distance):
                found.setdefault((usable[t], hashed[e]), distance)
        for t, e in sorted(found):
            kind = "exact" if (t, e) in exact else "perceptual"
            matches.append(Match(eval_keys[e], block[t].key, kind, found[t, e]))
    return matches


def hash_words(hashes: list[bytes]) -> np.ndarray:
    """Hashes as (N, 4) uint64."""
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 4)


def _blocks(rows: Iterable[Hashed]) -> Iterator[list[Hashed]]:
    iterator = iter(rows)
    while block := list(islice(iterator, _TRAIN_BLOCK)):
        yield block


def near_pairs(
    eval_Ex4: np.ndarray, train_Tx4: np.ndarray, max_distance: int
) -> Iterator[tuple[int, int, int]]:
    """(row of eval, row of train, distance) of pairs that differ in up to max_distance bits."""
    first_T = np.ascontiguousarray(train_Tx4[:, 0])
    xor_ExT = np.empty((_EVAL_BLOCK, len(first_T)), np.uint64)
    count_ExT = np.empty(xor_ExT.shape, np.uint8)
    for start in range(0, len(eval_Ex4), _EVAL_BLOCK):
        part_Ex4 = eval_Ex4[start : start + _EVAL_BLOCK]
        size = len(part_Ex4)
        # The first word alone rules out nearly all pairs: what differs in more bits there differs
        # in more overall.
        np.bitwise_xor(part_Ex4[:, :1], first_T, out=xor_ExT[:size])
        np.bitwise_count(xor_ExT[:size], out=count_ExT[:size])
        near = np.flatnonzero(count_ExT[:size].ravel() <= max_distance)
        rows, columns = np.divmod(near, len(first_T))
        distances = np.bitwise_count(part_Ex4[rows] ^ train_Tx4[columns]).sum(
            axis=1, dtype=np.int64
        )
        kept = distances <= max_distance
        yield from zip(
            (rows[kept] + start).tolist(),
            columns[kept].tolist(),
            distances[kept].tolist(),
            strict=True,
        )


def hamming(one: bytes, other: bytes) -> int:
    """Bits in which two hashes differ."""
    return int(
        np.bitwise_count(np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).sum()
    )
