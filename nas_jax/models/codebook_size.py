"""A codebook with more or fewer codes than the one that was trained."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nas_jax.models.codebook import DictionaryState

SPLIT_NOISE = 0.01  # distance between the halves of a split code / root mean square of the codes


def resized(fields: Mapping[str, Any], codes: int, seed: int = 0) -> DictionaryState:
    """A dictionary with another number of codes; the same number changes nothing.

    Fewer: the most used ones stay (largest counts), in their old order. More: the most used code is
    split in two until there are enough; each half takes half of the count, and the new one is moved
    by a little noise so that the two part. A code drawn at random would lie far from all features
    and die; the halves of a busy one are used at once.

    fields: arrays under the names of DictionaryState.
    """
    old = {
        name: np.asarray(fields[name])
        for name in ("codes_KxD", "counts_K", "sums_KxD", "last_use_K", "step")
    }
    size = len(old["counts_K"])
    noise_KxD: np.ndarray | float = 0.0
    if codes <= size:
        by_use = np.argsort(-old["counts_K"], kind="stable")
        rows_K = np.sort(by_use[:codes])
        counts_K = old["counts_K"][rows_K]
    else:
        rows_K, counts_K = _split(old["counts_K"], codes)
        scale = SPLIT_NOISE * np.sqrt(np.mean(np.square(old["codes_KxD"], dtype=np.float64)))
        drawn_KxD = np.random.default_rng(seed).normal(0, scale, (codes, old["codes_KxD"].shape[1]))
        drawn_KxD[:size] = 0
        noise_KxD = drawn_KxD
    if codes == size:
        codes_KxD, sums_KxD = old["codes_KxD"], old["sums_KxD"]
    else:
        codes_KxD = (old["codes_KxD"][rows_K] + noise_KxD).astype(np.float32)
        share_K = counts_K / np.maximum(old["counts_K"][rows_K], 1e-30)
        sums_KxD = (
            old["sums_KxD"][rows_K] * share_K[:, None] + noise_KxD * counts_K[:, None]
        ).astype(np.float32)
    return DictionaryState(
        codes_KxD=jnp.asarray(codes_KxD),
        counts_K=jnp.asarray(counts_K.astype(np.float32)),
        sums_KxD=jnp.asarray(sums_KxD),
        last_use_K=jnp.asarray(old["last_use_K"][rows_K]),
        step=jnp.asarray(old["step"]),
    )


def _split(counts_K: np.ndarray, codes: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `codes` codes, the old one it comes from and its count; the first ones are the
    old codes.
    """
    rows, counts = list(range(len(counts_K))), [float(count) for count in counts_K]
    heap = [(-count, place) for place, count in enumerate(counts)]
    heapq.heapify(heap)
    while len(rows) < codes:
        negative, place = heapq.heappop(heap)
        half = -negative / 2
        counts[place] = half
        rows.append(rows[place])
        counts.append(half)
        heapq.heappush(heap, (-half, place))
        heapq.heappush(heap, (-half, len(rows) - 1))
    return np.array(rows), np.array(counts)
