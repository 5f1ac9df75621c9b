"""Published numbers against those that the published scores give (`evals/score.py --check`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nas_jax.evals.benchmarks.reading import read_json
from nas_jax.evals.metrics import DIRECTIONS
from nas_jax.evals.rank_files import retrieval_numbers
from nas_jax.evals.rescore import score
from nas_jax.utils.errors import DataError


@dataclass(frozen=True)
class Compared:
    """A published number and ours."""

    file: str
    what: str
    published: float
    ours: float
    same: bool


_KINDS = {"both": "", DIRECTIONS[0]: "txt_", DIRECTIONS[1]: "img_"}  # in the text files


def check(folder: Path) -> list[Compared]:
    """Every number of `expected.json` and of the text files beside the ranks, recomputed from the
    scores.

    A number is the same where rounding ours to the printed decimals gives it.
    """
    expected = read_json(folder / "expected.json", dict)
    out = []
    for model, numbers in expected.get("valse_acc_r", {}).items():
        path = _existing(folder / "valse", model)
        found = score("valse", path, resamples=1)
        values = {one.part: one.value for one in found if one.quantity == "accuracy"}
        for piece, number in numbers.items():
            got = values.get("all" if piece == "overall_micro" else piece, math.nan)
            out.append(_compared(path, folder, piece, number, got, decimals=1))
    for model, numbers in expected.get("winoground", {}).items():
        path = _existing(folder / "winoground", model)
        values = {one.quantity: one.value for one in score("winoground", path, resamples=1)}
        for name, number in numbers.items():
            out.append(_compared(path, folder, name, number, values[name], decimals=2))
    for text_file in sorted(folder.glob("retrieval/*/*.txt")):
        ours = {
            f"test_{_KINDS[one.part]}{one.quantity.replace('@', '')}": one.value
            for one in retrieval_numbers(text_file.parent, resamples=1)
        }
        for name, number in read_json(text_file, dict).items():
            decimals = len(repr(number).partition(".")[2])
            got = ours.get(name, math.nan)
            out.append(_compared(text_file, folder, name, number, got, decimals))
    if not out:
        raise DataError(
            f"{folder}: no published numbers", "expected.json with some", "check --check"
        )
    return out


def _existing(folder: Path, model: str) -> Path:
    for suffix in (".jsonl.gz", ".jsonl"):
        if (folder / (model + suffix)).is_file():
            return folder / (model + suffix)
    raise DataError(
        f"no scores of {model} in {folder}", f"{model}.jsonl or .jsonl.gz", "check --check"
    )


def _compared(
    path: Path, folder: Path, what: str, published: float, ours: float, decimals: int
) -> Compared:
    same = abs(ours - published) <= 0.5 * 10.0**-decimals + 1e-9  # NaN is never
    return Compared(str(path.relative_to(folder)), what, published, ours, bool(same))
