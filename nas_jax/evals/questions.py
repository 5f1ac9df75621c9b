"""Questions: what every caption-or-foil benchmark is made of, whatever its files look like.

A question shows some pictures and some texts to a scorer, which gives every (picture, text) cell a
score. Its *form* says which cells must be strictly higher than which others. Loaders make questions
(`evals/benchmarks/`), scorers fill cells (`evals/scorers.py`), and `evals/outcomes.py` reads the
answers off.

| form | pictures | texts | right when |
|---|---|---|---|
| choice | 1 | 1 right, then the wrong ones | the right text beats every wrong one |
| picture | 1 right, then the wrong ones | 1 | the right picture beats every wrong one |
| quad | 2 | 2, text k belongs to picture k | text, image and group score (Thrush et al. 2022) |
| two_true | 1 | 2 right, 1 wrong | both right texts beat the wrong one (SugarCrepe++) |
| yes_no | 1 | 1 | the score is above the threshold if the text is true, else below it |
| texts | 0 | 2 of one meaning, then 1 of another | the first two are nearest to each other |

Of form texts there are no pictures: the cells are (text, text), a symmetric matrix of the likeness
of text features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Cells = Sequence[np.ndarray]
"""Scores of questions: for each an array (pictures, texts), or (texts, texts) of form texts."""

CORRECTED = "-blind"  # the end of such a scorer's name
FORMS = ("choice", "picture", "quad", "two_true", "yes_no", "texts")


@dataclass(frozen=True)
class Question:
    """One item of a benchmark.

    Its scores are an array (pictures, texts), or (texts, texts) of form texts.
    """

    key: str  # unique in the benchmark and stable between runs: paired comparisons join on it
    category: str  # piece, relation, tag: what tables are broken down by
    images: tuple[int, ...]  # indices into Benchmark.images
    texts: tuple[str, ...]
    true: bool = True  # of form yes_no: whether the text is true of the picture
    raw: tuple[str, ...] = ()  # the texts as the annotations have them; (): not known


@dataclass(frozen=True)
class Benchmark:
    """Questions of one form with their pictures, and what was left out on the way."""

    name: str  # "valse", "aro_relation", "own:noto-foils"
    form: str  # one of FORMS
    questions: tuple[Question, ...]
    # images[i] -> uint8 (H, W, 3) of the size asked for; decoded when asked for
    images: Sequence[np.ndarray]
    # rule -> value, e.g. {"filter": "mturk.caption >= 2", "crop": "bounding box"}
    protocol: Mapping[str, str]
    # reason -> items left out because of it
    dropped: Mapping[str, int] = field(default_factory=dict)
    # group -> its categories ("replace": ...)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    macro: tuple[str, ...] | None = None  # categories of the macro average; None: all
    headline: str = "all/accuracy"  # part/quantity of the number that papers print
    cuts: tuple[int, ...] = ()  # of form choice: also the share of right texts among the first k
    # of forms choice and picture, pairs: each cell is also judged by itself, at the threshold
    absolute: bool = False
    together: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """Quantity -> sets of keys; a set is right when all its questions are (What'sUp: "pair",
    "set").
    """


@dataclass(frozen=True)
class Scored:
    """The scores of a benchmark under one scorer."""

    scorer: str
    seen: Cells
    blind: Cells | None = None  # the same with a blank picture in place of each


def with_corrected(found: Sequence[Scored]) -> list[Scored]:
    """The scores, and after each that has scores without picture "SCORER-blind": minus those.

    What a text gets whatever the picture is then takes no part. It only ranks: no threshold.
    """
    out = []
    for one in found:
        out.append(one)
        if one.blind is not None:
            seen = [
                np.asarray(cell, np.float64) - np.asarray(blank, np.float64)
                for cell, blank in zip(one.seen, one.blind, strict=True)
            ]
            out.append(Scored(f"{one.scorer}{CORRECTED}", seen))
    return out


if __name__ == "__main__":
    import sys

    from nas_jax.evals.export import main

    sys.exit(main())
