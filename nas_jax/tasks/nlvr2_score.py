"""NLVR2's accuracy and consistency, from a file of anyone's predictions.

    python -m nas_jax.tasks.nlvr2_score dev.json predictions.csv

The first file is the authors' (an object a line) or ALBEF's list. The second has a line for each
item, `identifier,prediction`, where a prediction is True or False, as the script of the data set's
authors reads it; ALBEF's items, which have no identifier, are their places in the list.
"""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Sequence

import numpy as np

from nas_jax.storage.paths import as_path, in_words
from nas_jax.tasks.nlvr2 import LABELS, all_of, read_statements
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import DataError

# (items, sentences) of the published splits; another number is told
PUBLISHED = {"dev": (6982, 2018), "test1": (6967, 1995)}
NAMES = ("accuracy", "consistency")
_LOG = logging.getLogger(__name__)


def read_predictions(path: str) -> dict[str, int]:
    """Identifier -> index in LABELS. Raises DataError on another form, or one given twice."""
    try:
        text = as_path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        got = f"{path}: {in_words(error) if isinstance(error, OSError) else error}"
        raise DataError(got, "identifier,prediction on each line", "check the path") from error
    found: dict[str, int] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        if not row or (number == 1 and row[-1].strip().lower() == "prediction"):
            continue
        cells = [cell.strip() for cell in row]
        if len(cells) != 2 or cells[1].capitalize() not in LABELS:
            got = f"{path}:{number}: {','.join(row)!r}"
            raise DataError(got, "identifier,True or identifier,False", "write each line so")
        if cells[0] in found:
            got = f"{path}:{number}: {cells[0]} for the second time"
            raise DataError(got, "one prediction an item", "remove one of them")
        found[cells[0]] = LABELS.index(cells[1].capitalize())
    return found


def score(path: str, predictions: str) -> dict[str, tuple[float, int]]:
    """ "accuracy" and "consistency" -> percent, and of how many.

    Raises DataError: items without a prediction, predictions of other items, other forms.
    """
    entries, said = read_statements(path), read_predictions(predictions)
    keys = [entry.key for entry in entries]
    missing, others = [key for key in keys if key not in said], said.keys() - set(keys)
    if missing or others:
        got = f"{len(missing)} items of {path} without a prediction, {len(others)} of other items"
        example = (missing or sorted(others))[0]
        raise DataError(f"{got}, like {example}", "one prediction an item", "check the two files")
    hit_N = np.array([said[entry.key] == entry.gold for entry in entries])
    _, sentence_N = np.unique([entry.about for entry in entries], return_inverse=True)
    right = all_of(hit_N, sentence_N)
    counts = len(hit_N), len(right)
    for split, known in PUBLISHED.items():
        if keys[0].startswith(f"{split}-") and counts != known:
            text = "%s: %d items on %d sentences; %s has %d on %d"
            _LOG.warning(text, path, *counts, split, *known)
    means = 100 * float(hit_N.mean()), 100 * float(right.mean())
    return {name: (mean, count) for name, mean, count in zip(NAMES, means, counts, strict=True)}


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    flags = Parser("python -m nas_jax.tasks.nlvr2_score", description=__doc__.split("\n\n")[0])
    flags.add_argument("data", help="dev.json, test1.json, or a list of ALBEF's")
    flags.add_argument("predictions", help="csv: identifier,True or identifier,False")
    args = flags.parse_args(argv)
    for name, (value, count) in score(args.data, args.predictions).items():
        print(f"{name:<12} {value:.2f}  of {count}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
