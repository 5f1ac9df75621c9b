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


# benchmark, with which the names of published tables begin -> decimals that are printed
_DECIMALS = {"valse": 1, "winoground": 2, "vsr": 1, "svo": 1}
_KINDS = {"both": "", DIRECTIONS[0]: "txt_", DIRECTIONS[1]: "img_"}  # in the text files


def check(folder: Path) -> list[Compared]:
    """Every number of `expected.json` and of the text files beside the ranks, recomputed from the
    scores.

    A number is the same where rounding ours to the printed decimals gives it.
    """
    expected = read_json(folder / "expected.json", dict)
    out = []
    for table, models in expected.items():
        if not isinstance(models, dict):
            continue  # where the numbers are from
        name = table.lower().split("_")[0]
        if name not in _DECIMALS:
            known = ", ".join(_DECIMALS)
            remedy = "take it out; retrieval's numbers stand in text files beside the ranks"
            raise DataError(f"expected.json with {table!r}", f"numbers of {known}", remedy)
        for model, numbers in models.items():
            path = _existing(folder, name, model)
            values = _values(name, path)
            out += [
                _compared(
                    path, folder, what, number, values.get(_part(what), math.nan), _DECIMALS[name]
                )
                for what, number in numbers.items()
            ]
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


def _values(name: str, path: Path) -> dict[str, float]:
    """What is printed of a benchmark: of Winoground by quantity, else accuracy by part."""
    rows = score(name, path, resamples=1)
    if name == "winoground":
        return {row.quantity: row.value for row in rows if row.part == "all"}
    return {_part(row.part): row.value for row in rows if row.quantity == "accuracy"}


def _part(name: str) -> str:
    """A part under the name that the published tables give it."""
    short = {"overall": "all", "overall_micro": "all", "subj": "subject", "obj": "object"}
    return short.get(name.lower(), name.lower())


def _existing(folder: Path, name: str, model: str) -> Path:
    """The scores of a model, in a folder that begins with the name of the benchmark."""
    folders = [one for one in sorted(folder.iterdir()) if one.name.lower().startswith(name)]
    ends = (".jsonl.gz", ".jsonl", "_test.jsonl.gz", "_test.jsonl")
    for place in folders:
        for end in ends:
            for path in (place / (model + end), place / model / (model + end)):
                if path.is_file():
                    return path
    got = f"no scores of {model} in {folder / name}"
    raise DataError(got, f"{model}.jsonl or .jsonl.gz", "copy them there")


def _compared(
    path: Path, folder: Path, what: str, published: float, ours: float, decimals: int
) -> Compared:
    same = abs(ours - published) <= 0.5 * 10.0**-decimals + 1e-9  # NaN is never
    return Compared(str(path.relative_to(folder)), what, published, ours, bool(same))
