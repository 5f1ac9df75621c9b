"""Zero-shot classification: the class whose name, in a sentence, fits the picture best (Radford et
al. 2021, CLIP).

A class has the mean of its sentences: with "itc" and the like of their features, with other scorers
of their scores. Each picture is a question of form choice, the right class first, so ties count as
wrong here as everywhere.

Files: a folder with one folder of pictures a class, or `labels.jsonl` with lines {image, label};
and optionally `classes.txt`, one name a line, which fixes the classes and their order. The name of
a folder or label is that of the class, with blanks for underscores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas_jax.data.pair_lines import read_lines
from nas_jax.data.sources import Report
from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import SUFFIXES, Files, PictureRef
from nas_jax.evals.benchmarks.reading import each, text
from nas_jax.evals.encodings import BLANK
from nas_jax.evals.questions import Benchmark, Scored
from nas_jax.evals.scorers import SetScores
from nas_jax.utils.errors import ConfigError, DataError

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


def load(data_dir: Path, options: LoadOptions, prompts: str = "photo@1") -> Classes:
    """Reads the pictures and their labels.

    Raises:
      ConfigError: unknown `prompts`.
      DataError: no pictures, a label that is not in classes.txt, fewer than two classes.
    """
    if prompts not in PROMPTS:
        raise ConfigError(
            f"prompts {prompts!r}", f"one of {', '.join(PROMPTS)}", "name one of them"
        )
    report = Report()
    listed = (data_dir / "labels.jsonl").is_file()
    labelled = _from_lines(data_dir, report) if listed else _from_folders(data_dir)
    names = _class_names(data_dir, labelled)
    # One tuple of names a class, which all of its pictures share.
    texts = {name: (name, *(other for other in names if other != name)) for name in names}
    drafts = [Draft(key, label, (PictureRef(key),), texts[label]) for key, label in labelled]
    benchmark = assemble(
        f"classes:{prompts}",
        "choice",
        Items(drafts, report),
        Files(data_dir),
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


def _from_lines(data_dir: Path, report: Report) -> list[tuple[str, str]]:
    def pair(number: int, entry: Mapping) -> tuple[str, str]:
        return text(entry, "image"), _named(text(entry, "label"))

    return each(read_lines(data_dir / "labels.jsonl"), pair, report)


def _from_folders(data_dir: Path) -> list[tuple[str, str]]:
    if not data_dir.is_dir():
        raise DataError(
            f"no folder {data_dir}", "one with a folder of pictures a class", "check the path"
        )
    found = [
        (f"{folder.name}/{path.name}", _named(folder.name))
        for folder in sorted(data_dir.iterdir())
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise DataError(
            f"no pictures in folders of {data_dir}",
            "a folder a class, or labels.jsonl",
            "check the path",
        )
    return found


def _named(label: str) -> str:
    return " ".join(label.replace("_", " ").split())


def _class_names(data_dir: Path, labelled: list[tuple[str, str]]) -> tuple[str, ...]:
    path, labels = data_dir / "classes.txt", sorted({label for _, label in labelled})
    names = labels
    if path.is_file():
        names = [_named(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = tuple(dict.fromkeys(name for name in names if name))
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise DataError(
            f"label {unknown[0]!r}, which is not in {path}", "a line for each class", "add it"
        )
    if len(names) < 2:
        raise DataError(
            f"{len(names)} classes in {data_dir}", "two or more", "check the folders or labels"
        )
    return names


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
