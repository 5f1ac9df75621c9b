"""Fits saved weights into a model of another image size, text length, number of codes or heads.

For a start from weights, not for going on with a run: moments of the optimizer have no meaning
after surgery.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from nas_jax.typing import Array, Params
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves

IMAGE_POSITIONS = "image_encoder/position_embedding"  # (1, 1 + N, D)
TEXT_POSITIONS = "text_encoder/position_embedding/embedding"  # (length, D)
TAKEN = ("used", "copied", "resized", "cut")  # actions of tensors that come from the weights
CUBIC_A = -0.75  # of the cubic kernel: PyTorch's; jax.image.resize has -0.5


@dataclass(frozen=True)
class FittedArray:
    """What became of one tensor."""

    name: str
    # "used", "copied" (from another name), "resized", "cut", "new" (as in the model) or "unused"
    action: str
    detail: str = ""


@dataclass(frozen=True)
class FitReport:
    """What became of all tensors."""

    rows: tuple[FittedArray, ...]

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
        used = sum(row.action in TAKEN for row in self.rows)
        return "\n".join([f"{used} of {len(self.rows)} tensors come from the weights", *lines])

    def account(self) -> str:
        """A line for each tensor, those that are used as they are too."""
        rows = sorted(self.rows, key=lambda row: (row.action in TAKEN, row.action, row.name))
        width = max((len(row.name) for row in rows), default=0)
        return "\n".join(f"{row.action:8}{row.name:{width}}  {row.detail}".rstrip() for row in rows)


def adapt(
    saved: Mapping[str, Any], wanted: Params, copies: Sequence[tuple[str, str]] = ()
) -> tuple[Params, FitReport]:
    """The parameters of a model, taken from `saved` weights as far as they go.

    Args:
      saved: NumPy or JAX arrays, nested or flat with names like `image_encoder/cls_token`.
      wanted: the parameters of the model, freshly initialised, or abstract (`jax.eval_shape`). A
        tensor that the weights lack is returned as it stands here; the report lists it as new.
      copies: (pattern of names in the model, name in the weights, which may refer to groups of the
        pattern): where a tensor that the weights lack begins, first match first.

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
    fitted, rows, copied = {}, [], set()
    for name, target in want.items():
        other = name if name in have else _copied_from(name, copies)
        if other in have:
            fitted[name], row = _fit(name, have[other], target)
            if other != name:
                row = replace(row, action="copied", detail=f"from {other} {row.detail}".strip())
                fitted[name] = fitted[name].copy()  # a step overwrites both in place
                copied.add(other)
        else:
            fitted[name], row = target, FittedArray(name, "new", "not in the weights")
        rows.append(row)
    rows += [
        FittedArray(name, "unused", "not in the model")
        for name in have
        if name not in want and name not in copied
    ]
    params = jax.tree.unflatten(jax.tree.structure(wanted), [fitted[name] for name in want])
    return params, FitReport(tuple(rows))


def _copied_from(name: str, copies: Sequence[tuple[str, str]]) -> str:
    """The name in the weights that the first matching pattern gives; "" where none matches."""
    for pattern, other in copies:
        if re.match(pattern, name):
            return re.sub(pattern, other, name, count=1)
    return ""


def _fit(
    name: str, array: Array | np.ndarray, target: Any
) -> tuple[Array | np.ndarray, FittedArray]:
    before, after, dtype = tuple(array.shape), tuple(target.shape), jax.numpy.dtype(target.dtype)
    if before == after and array.dtype == dtype:
        return array, FittedArray(name, "used")  # wherever it is: a sharded array stays where it is
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
    return array.astype(dtype), FittedArray(name, action, detail)


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
