"""Files of VQA v2 as ALBEF has them, and their answers in a batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.readers import Encode, Example, Field, Spec
from nas_jax.data.scene_tasks import Answers
from nas_jax.storage import reading
from nas_jax.tasks.records import Entry, asked, is_text, read_list
from nas_jax.utils.errors import DataError

VISUAL_GENOME = 0.5  # weight of the one answer of a question of vg_qa.json, as in ALBEF


@dataclass(frozen=True)
class PeopleAnswers(Field):
    """The different answers to a question with their weights; what is left of K has weight 0."""

    count: int
    length: int

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        shape = self.count, min(self.length, config.text_length)
        return {
            "answer_ids_BxKxA": (shape, np.int32),
            "answer_mask_BxKxA": (shape, np.bool_),
            "answer_weight_BxK": (shape[:1], np.float32),
        }

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        answers: Answers = asked(example.record).gold
        given, weight = answers.spelt or answers.given, answers.weight
        counts = Counter(given).most_common(self.count)
        texts = [text for text, _ in counts] + [""] * (self.count - len(counts))
        weights_K = np.zeros(self.count, np.float32)
        weights_K[: len(counts)] = [weight * count / len(given) for _, count in counts]
        return {"texts": texts, "weights_K": weights_K}

    def stack(self, values: Sequence[Mapping[str, Any]], encode: Encode) -> Mapping[str, Any]:
        """See Field."""
        ids_BxKxA, mask_BxKxA = (
            x[..., : self.length] for x in encode([v["texts"] for v in values])
        )
        return {
            "answer_ids_BxKxA": ids_BxKxA,
            "answer_mask_BxKxA": mask_BxKxA,
            "answer_weight_BxK": np.stack([value["weights_K"] for value in values]),
        }


def _are_answers(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and bool(texts) and all(isinstance(one, str) for one in texts)


def read_questions(path: str, answered: bool) -> list[Entry]:
    """The questions of a file. answered: each must have answers; else all or none must.

    Raises DataError.
    """
    fields = {
        "question_id": (lambda one: type(one) in (int, str), "a number"),
        "question": (is_text, "a text"),
        "image": (is_text, "a path"),
    }
    entries = read_list(path, fields)
    with_answers = [one for one in entries if "answer" in one]
    if answered or with_answers:
        fields["answer"] = (_are_answers, "a text, or a list of texts")
        read_list(path, fields)
    found = []
    for one in entries:
        given = one.get("answer", [])
        given = (given,) if isinstance(given, str) else tuple(given)
        weight = VISUAL_GENOME if one.get("dataset") == "vg" else 1.0
        gold = Answers(given, weight)
        found.append(Entry(str(one["question_id"]), (one["image"],), one["question"], gold))
    return found


def read_answer_list(path: str) -> tuple[str, ...]:
    """The closed list of answers, each once. Raises DataError."""
    try:
        found = json.loads(reading.read_bytes(path))
    except OSError as error:
        remedy = "set method.answers to ALBEF's answer_list.json"
        raise DataError(f"{path}: {error.strerror}", "a list of answers", remedy) from error
    except ValueError as error:
        raise DataError(f"{path}: {error}", "a json list of texts", "copy it again") from error
    if not isinstance(found, list) or not found or not all(map(is_text, found)):
        got = f"{path} with a {type(found).__name__}" + (" of other things" if found else "")
        raise DataError(got, "a json list of texts", "use ALBEF's answer_list.json")
    return tuple(dict.fromkeys(found))
