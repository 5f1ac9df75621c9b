"""Fits saved weights into a model of another image size, text length, number of codes or heads.

For a start from weights, not for going on with a run: moments of the optimizer have no meaning
after surgery.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from nas_jax.models.visual_dictionary import DictionaryState
from nas_jax.typing import Array, Params
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves

IMAGE_POSITIONS = "image_encoder/position_embedding"  # (1, 1 + N, D)
TEXT_POSITIONS = "text_encoder/position_embedding/embedding"  # (length, D)
CUBIC_A = -0.75  # of the cubic kernel: PyTorch's; jax.image.resize has -0.5
SPLIT_NOISE = 0.01  # distance between the halves of a split code / root mean square of the codes


@dataclass(frozen=True)
class Row:
    """What became of one tensor."""

    name: str
    action: str  # "used", "resized", "cut", "new" (as in the model) or "unused"
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What became of all tensors."""

    rows: tuple[Row, ...]

    def named(self, action: str) -> list[str]:
        """The names of the tensors with that action."""
        return [row.name for row in self.rows if row.action == action]

    def __str__(self) -> str:
        """A table: names of what was changed, left over or missing, and a count of the rest."""
        listed = [row for row in self.rows if row.action != "used" or row.detail]
        widths = [
            max((len(getattr(row, key)) for row in listed), default=0) for key in ("action", "name")
        ]
        lines = [
            f"{row.action:{widths[0]}}  {row.name:{widths[1]}}  {row.detail}".rstrip()
            for row in listed
        ]
        used = sum(row.action in ("used", "resized", "cut") for row in self.rows)
        return "\n".join([f"{used} of {len(self.rows)} tensors come from the weights", *lines])


def adapt(saved: Mapping[str, Any], wanted: Params) -> tuple[Params, Report]:
    """The parameters of a model, taken from `saved` weights as far as they go.

    Args:
      saved: NumPy or JAX arrays, nested or flat with names like `image_encoder/cls_token`.
      wanted: the parameters of the model, freshly initialised, or abstract (`jax.eval_shape`). A
        tensor that the weights lack is returned as it stands here; the report lists it as new.

    Image positions of another grid are resized as ALBEF does (`interpolate_pos_embed` in its
    models/vit.py, bicubic); longer text positions are cut. Other dtypes are converted.

    Raises CheckpointError for a tensor of another shape, for a text position table that is too
    short, and if not one tensor fits by name.
    """
    have, want = named_leaves(saved), named_leaves(wanted)
    if not have.keys() & want.keys():
        raise CheckpointError(
            f"weights with {len(have)} tensors such as {min(have, default='(none)')}",
            f"some of the model's {len(want)} tensors such as {min(want, default='(none)')}",
            "pass the parameters alone, under the model's names",
        )
    fitted, rows = {}, []
    for name, target in want.items():
        if name in have:
            fitted[name], row = _fit(name, have[name], target)
        else:
            fitted[name], row = target, Row(name, "new", "not in the weights")
        rows.append(row)
    rows += [Row(name, "unused", "not in the model") for name in have if name not in want]
    params = jax.tree.unflatten(jax.tree.structure(wanted), [fitted[name] for name in want])
    return params, Report(tuple(rows))


def _fit(name: str, array: Array | np.ndarray, target: Any) -> tuple[Array | np.ndarray, Row]:
    before, after, dtype = tuple(array.shape), tuple(target.shape), jax.numpy.dtype(target.dtype)
    if before == after and array.dtype == dtype:
        return array, Row(name, "used")  # wherever it is: a sharded array stays where it is
    array = np.asarray(array)
    action, detail = "used", ""
    if before != after:
        detail = f"{list(before)} -> {list(after)}"
        same_width = len(before) == len(after) and before[-1] == after[-1]
        if name.endswith(IMAGE_POSITIONS) and same_width:
            array, action = resize_image_positions(array, after[1]), "resized"
        elif name.endswith(TEXT_POSITIONS) and same_width:
            if before[0] < after[0]:
                raise CheckpointError(
                    f"weights with {before[0]} text positions in {name}",
                    f"at least the model's {after[0]}: positions that were never trained cannot "
                    "be made up",
                    f"set model.max_text_length={before[0]}",
                )
            array, action = array[: after[0]], "cut"
        else:
            raise CheckpointError(
                f"{name} has shape {list(before)} in the weights",
                f"the model's {list(after)}",
                "use the model size, patch size and tokenizer of the weights",
            )
    if array.dtype != dtype:
        detail = f"{detail} {array.dtype} -> {dtype}".strip()
    return array.astype(dtype), Row(name, action, detail)


def resize_image_positions(position_1xTxD: np.ndarray, tokens: int) -> np.ndarray:
    """Resizes position embeddings to a square grid of `tokens` - 1 patches; copies CLS."""
    old, new = math.isqrt(position_1xTxD.shape[1] - 1), math.isqrt(tokens - 1)
    if old * old + 1 != position_1xTxD.shape[1] or new * new + 1 != tokens:
        raise CheckpointError(
            f"image positions for {position_1xTxD.shape[1]} tokens, wanted for {tokens}",
            "one CLS token and a square number of patches",
            "use weights of a model with square pictures",
        )
    grid_SxSxD = position_1xTxD[0, 1:].astype(np.float64).reshape(old, old, -1)
    weights = bicubic_weights(old, new)
    grid_SxSxD = np.einsum("yi,xj,ijd->yxd", weights, weights, grid_SxSxD, optimize=True)
    patches = grid_SxSxD.reshape(1, new * new, -1).astype(position_1xTxD.dtype)
    return np.concatenate([position_1xTxD[:, :1], patches], axis=1)


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old) matrix that resizes one axis: pixel centres aligned, edges repeated.

    No antialiasing. That is torch.nn.functional.interpolate(mode="bicubic", align_corners=False);
    the kernel is that of Keys (1981).
    """
    centre_N = (np.arange(new) + 0.5) * old / new - 0.5
    first_N = np.floor(centre_N).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        source_N = first_N + tap
        np.add.at(
            weights,
            (np.arange(new), source_N.clip(0, old - 1)),
            _cubic(np.abs(centre_N - source_N)),
        )
    return weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    a, x = CUBIC_A, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def adapt_dictionary(
    saved: DictionaryState | Mapping[str, Any], codes: int, seed: int = 0
) -> DictionaryState:
    """A visual dictionary with another number of codes; the same number changes nothing.

    Fewer: the most used ones stay (largest counts), in their old order. More: the most used code is
    split in two until there are enough; each half takes half of the count, and the new one is moved
    by a little noise so that the two part. A code drawn at random would lie far from all features
    and die; the halves of a busy one are used at once.

    saved: a DictionaryState or its fields as `CheckpointManager.restore_params(which="dictionary")`
    gives them.
    """
    fields = saved if isinstance(saved, Mapping) else vars(saved)
    old = {
        name: np.asarray(fields[name])
        for name in ("codes_KxD", "counts_K", "sums_KxD", "last_use_K", "step")
    }
    size = len(old["counts_K"])
    if codes < 1:
        raise CheckpointError(
            f"a dictionary of {codes} codes", "at least 1", "set method.dictionary.codes"
        )
    if codes <= size:
        by_use = np.argsort(-old["counts_K"], kind="stable")
        rows_K, noise_KxD = np.sort(by_use[:codes]), 0.0
        counts_K = old["counts_K"][rows_K]
    else:
        rows_K, counts_K = _split(old["counts_K"], codes)
        scale = SPLIT_NOISE * np.sqrt(np.mean(np.square(old["codes_KxD"], dtype=np.float64)))
        noise_KxD = np.random.default_rng(seed).normal(0, scale, (codes, old["codes_KxD"].shape[1]))
        noise_KxD[:size] = 0
    if codes == size:
        codes_KxD, sums_KxD = old["codes_KxD"], old["sums_KxD"]
    else:
        codes_KxD = (old["codes_KxD"][rows_K] + noise_KxD).astype(np.float32)
        share_K = counts_K / np.maximum(old["counts_K"][rows_K], 1e-30)
        sums_KxD = (
            old["sums_KxD"][rows_K] * share_K[:, None] + noise_KxD * counts_K[:, None]
        ).astype(np.float32)
    return DictionaryState(
        codes_KxD=_array(codes_KxD),
        counts_K=_array(counts_K.astype(np.float32)),
        sums_KxD=_array(sums_KxD),
        last_use_K=_array(old["last_use_K"][rows_K]),
        step=_array(old["step"]),
    )


def _split(counts_K: np.ndarray, codes: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `codes` codes, the old one it is made of and its count; old ones come first."""
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


def _array(value: np.ndarray) -> Array:
    return jax.numpy.asarray(value)
