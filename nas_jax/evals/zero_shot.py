"""Zero-shot classification: the class whose name, in a sentence, fits the picture best (Radford et
al. 2021, CLIP).

A class has the mean of its sentences: with "itc" and the like of their features, with other scorers
of their scores. Each picture is a question of form choice, the right class first, so ties count as
wrong here as everywhere.

What is read: nas_jax/evals/labelled.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import PictureRef
from nas_jax.evals.encodings import BLANK
from nas_jax.evals.labelled import Labelled, read_labelled
from nas_jax.evals.questions import Benchmark, Scored
from nas_jax.evals.scorers import SetScores
from nas_jax.utils.errors import ConfigError

# name@version -> sentences. A set is never changed: numbers are compared by its name. Add a new
# version.
PROMPTS = {
    "plain@1": ("{}",),
    "photo@1": ("a photo of a {}",),
    "views@1": (
        "a photo of a {}",
        "a close view of a {}",
        "a picture of one {}",
        "a {} in the middle of the picture",
        "a drawing of a {}",
        "a small {}",
        "a large {}",
    ),
}
TOP = (1, 5)


@dataclass(frozen=True)
class Classes:
    """Pictures with their class, as questions; and the sentences of every class."""

    benchmark: Benchmark  # of form choice: texts are class names, the right one first
    names: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]  # of each class, in the order of the names

    @property
    def name(self) -> str:
        """classes:PROMPTS."""
        return self.benchmark.name


def load(source: str | Path, options: LoadOptions, prompts: str = "photo@1") -> Classes:
    """Reads the pictures and their labels. source: a folder, or `tfds:NAME[:SPLIT]`.

    Raises ConfigError: unknown `prompts`. DataError: see `read_labelled`.
    """
    _check_prompts(prompts)
    return classes_of(read_labelled(str(source)), options, prompts)


def _check_prompts(prompts: str) -> None:
    if prompts not in PROMPTS:
        raise ConfigError(
            f"prompts {prompts!r}", f"one of {', '.join(PROMPTS)}", "name one of them"
        )


def classes_of(labelled: Labelled, options: LoadOptions, prompts: str = "photo@1") -> Classes:
    """Pictures with a class as questions. Raises ConfigError: unknown `prompts`."""
    _check_prompts(prompts)
    names = labelled.names
    # One tuple of names a class, which all of its pictures share.
    texts = {name: (name, *(other for other in names if other != name)) for name in names}
    drafts = [Draft(key, label, (PictureRef(key),), texts[label]) for key, label in labelled.pairs]
    benchmark = assemble(
        f"classes:{prompts}",
        "choice",
        Items(drafts, labelled.report),
        labelled.files,
        replace(options, clean=False),  # the names are cleaned in their sentences
        protocol={
            "prompts": prompts,
            "sentences": " | ".join(PROMPTS[prompts]),
            "classes": str(len(names)),
        },
        cuts=tuple(k for k in TOP if 1 < k < len(names)),
    )

    def cleaned(name: str) -> tuple[str, ...]:
        sentences = (prompt.format(name) for prompt in PROMPTS[prompts])
        return tuple(options.prepared(one) for one in sentences)

    return Classes(benchmark, names, tuple(map(cleaned, names)))


def class_scores(scores: SetScores, classes: Classes, scorer: str) -> Scored:
    """Scores of each picture with all classes, (1, classes), the right one first; and the same with
    a blank picture.
    """
    questions = classes.benchmark.questions
    column = {name: number for number, name in enumerate(classes.names)}
    texts_of = {question.texts[0]: question.texts for question in questions}
    order_of = {name: [column[text] for text in texts] for name, texts in texts_of.items()}
    orders = [order_of[question.texts[0]] for question in questions]
    images_N = np.array([question.images[0] for question in questions])
    seen_NxC = _class_scores(scores, classes, scorer, images_N)
    blind_C = _class_scores(scores, classes, scorer, np.array([BLANK]))[0]
    seen = [row_C[order][None] for row_C, order in zip(seen_NxC, orders, strict=True)]
    return Scored(scorer, seen, [blind_C[order][None] for order in orders])


def _class_scores(
    scores: SetScores, classes: Classes, scorer: str, images_N: np.ndarray
) -> np.ndarray:
    """(N, C)."""
    texts_CxP = np.stack([scores.text_indices(sentences) for sentences in classes.sentences])
    if scorer in scores.method.feature_scores:
        features = scores.text_features(texts_CxP.ravel())
        if features.ndim == 2:  # one vector a text
            features_CxE = features.reshape(*texts_CxP.shape, -1).mean(axis=1, dtype=float)
            features_CxE /= np.maximum(np.linalg.norm(features_CxE, axis=1, keepdims=True), 1e-12)
            images_NxE = scores.image_features(images_N)
            return scores.method.compare(scorer, images_NxE, features_CxE).astype(np.float32)
    images_P = np.repeat(images_N, texts_CxP.size)
    texts_P = np.tile(texts_CxP.ravel(), len(images_N))
    found_P = scores.scores(scorer, images_P, texts_P)
    return found_P.reshape(len(images_N), *texts_CxP.shape).mean(axis=2)
