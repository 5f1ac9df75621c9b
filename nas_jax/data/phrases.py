"""Noun phrases of captions, without a parser: the words between those that join phrases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.readers import Encode, Example, Field, Spec
from nas_jax.data.text_ops import FUNCTION_WORDS

# Words that say how things stand to each other, or that something is not there.
JOINING = FUNCTION_WORDS | frozenset(
    """
    left right above below over under beneath on onto in inside outside off up down near next beside
    behind front between among around along across through against before after toward towards
    during without within not no
    """.split()  # noqa: SIM905 - a table of words reads better as text
)


_ENDS = re.compile(r"[^\w\s'/-]+")  # punctuation between phrases


def noun_phrases(caption: str) -> list[str]:
    """The longest runs of words of a caption that join nothing, lower-cased, each once, in their
    order. Punctuation ends a run.

    Verbs are not known as such: "a dog runs on sand" gives "dog runs" and "sand".
    """
    runs: list[list[str]] = []
    for part in _ENDS.split(caption.lower()):
        runs.append([])
        for word in part.split():
            if word in JOINING:
                runs.append([])
            else:
                runs[-1].append(word)
    return list(dict.fromkeys(" ".join(run) for run in runs if run))


@dataclass(frozen=True)
class NounPhrases(Field):
    """Noun phrases of the drawn caption. Of more than `count`, some are drawn."""

    count: int = 4

    def spec(self, config: DataConfig) -> Spec:
        """phrase_ids_BxCxL, phrase_mask_BxCxL, and phrase_real_BxC: False where there is none."""
        shape = (self.count, config.text_length)
        return {
            "phrase_ids_BxCxL": (shape, np.int32),
            "phrase_mask_BxCxL": (shape, np.bool_),
            "phrase_real_BxC": ((self.count,), np.bool_),
        }

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        drawn = example.draw.text(example.record.captions, example.config.sentences)
        phrases = noun_phrases(drawn)
        found = [text for phrase in phrases if (text := example.prepared(phrase))]
        if len(found) > self.count:
            places = example.rng("noun phrases").permutation(len(found))[: self.count]
            found = [found[place] for place in sorted(places)]
        return {"phrases": found}

    def stack(self, values: Any, encode: Encode) -> Mapping[str, Any]:
        """See Field."""
        rows = [value["phrases"] for value in values]
        ids, mask = encode([row + [""] * (self.count - len(row)) for row in rows])
        real = np.arange(self.count)[None] < np.array([len(row) for row in rows])[:, None]
        return {"phrase_ids_BxCxL": ids, "phrase_mask_BxCxL": mask, "phrase_real_BxC": real}
