"""Benchmarks by name, under a scorer: loaded, checked and scored."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import nas_jax
from nas_jax.evals import karpathy, zero_shot
from nas_jax.evals.benchmarks import BENCHMARKS, LoadOptions, load_with
from nas_jax.evals.benchmarks.fits import FITS
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.detail import question_result, score_questions, score_retrieval
from nas_jax.evals.functions import TextEncoding
from nas_jax.evals.pairs import check_answers_differ
from nas_jax.evals.questions import Benchmark
from nas_jax.evals.results import Result
from nas_jax.evals.scorers import Scorer
from nas_jax.utils.errors import ConfigError

CLASSES = "classes"
OWN_SETS = "val"
TABLE = {name: entry.about for name, entry in BENCHMARKS.items()} | {
    "coco": "COCO retrieval, Karpathy's test split, 25,010 and 25,000 texts; ECCV Caption, CxC",
    "flickr30k": "Flickr30k retrieval, Karpathy's test split",
    "urban1k": "Urban1k retrieval: 1,000 long captions",
    "dci": "DCI retrieval: 7,805 long captions",
    "docci": "DOCCI retrieval, test split: 5,000 long captions",
    "iiw": "IIW retrieval: 400 long captions, or LoTLIP's 612",
    "sharegpt4v": "ShareGPT4V retrieval: the first 1,000 long captions, or LoTLIP's 10,000",
    "retrieval": "your own list of pictures with captions, as retrieval; no caption is cut",
    CLASSES: "zero-shot classification: a folder of pictures a class, or labels.jsonl",
}
"""Name of a benchmark -> what it is, for --help."""

Loaded = Benchmark | karpathy.Collection | zero_shot.Classes


@dataclass(frozen=True)
class Texts:
    """How a model reads texts."""

    tokenizer: TextEncoding
    clean: bool  # lower case, without punctuation, as in its training
    positions: int  # rows of its position table: no text may have more tokens
    cased: bool = False  # its tokenizer tells capitals apart: cleaning leaves them


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError on a name that is no benchmark."""
    for name in names:
        if name not in TABLE:
            known = ", ".join(TABLE)
            raise ConfigError(f"benchmark {name!r}", f"one of {known}", "check the spelling")


def check_length(length: int, texts: Texts, field: str) -> None:
    """Raises ConfigError where texts may have more tokens than the model has positions."""
    if length > texts.positions:
        raise ConfigError(
            f"{field}={length} for a model with {texts.positions} text positions",
            f"at most {texts.positions}",
            f"set {field} to {texts.positions}; it is checked that no pair is cut to the same "
            "tokens",
        )


def load(
    name: str,
    folder: Path,
    image_size: int,
    config: EvalConfig,
    texts: Texts,
    prompts: str = "photo@1",
    image_range: tuple[float, ...] = (),
) -> list[Loaded]:
    """The benchmarks of a name, with pictures; no answer is cut off. image_range: data.image_range.

    Raises ConfigError: a name or text length that does not fit. DataError: those of the loaders.
    """
    check_names([name])
    options = LoadOptions(
        image_size,
        config.max_dropped,
        texts.clean,
        cased=texts.cased,
        fit=config.fit,
        image_range=tuple(image_range),
    )
    if name in karpathy.FILES:
        return [karpathy.load(name, folder, options)]
    if name == CLASSES:
        return [zero_shot.load(folder, options, prompts)]
    found = load_with(name, folder, options)
    for benchmark in found:
        check_answers_differ(benchmark, texts.tokenizer, config.text_length)
    return list(found)


def load_all(
    config: EvalConfig, image_size: int, texts: Texts, image_range: tuple[float, ...] = ()
) -> list[Loaded]:
    """All of `config.benchmarks`, each from the folder of its name in `config.data`.

    Errors: as `load`.
    """
    if not config.benchmarks:
        return []
    check_names(config.benchmarks)
    check_length(config.text_length, texts, "eval.text_length")
    out = []
    for name in config.benchmarks:
        out += load(
            name, Path(config.data) / name, image_size, config, texts, image_range=image_range
        )
    return out


def score(scorer: Scorer, loaded: Loaded, config: EvalConfig, rerank_k: int = 0) -> list[Result]:
    """All numbers of a benchmark under `config.scorers`.

    rerank_k: of retrieval; 0: the published one.
    """
    if isinstance(loaded, karpathy.Collection):
        return score_retrieval(scorer, loaded, config, rerank_k)
    if isinstance(loaded, zero_shot.Classes):
        sentences = [text for texts in loaded.sentences for text in texts]
        scores = scorer.on(loaded.benchmark, sentences, config.text_length)
        found = [zero_shot.class_scores(scores, loaded, name) for name in config.scorers]
        return [question_result(loaded.benchmark, found, config.bootstrap, ranks_only=True)]
    texts = [text for question in loaded.questions for text in question.texts]
    scores = scorer.on(loaded, texts, config.text_length)
    return [score_questions(scores, loaded, config)]


def protocol(
    config: EvalConfig, texts: Texts, image_size: int, checkpoint: Mapping[str, Any]
) -> dict[str, Any]:
    """How numbers were made, for results.json. checkpoint: what is known of the weights."""
    return {
        "checkpoint": dict(checkpoint),
        "scorers": list(config.scorers),
        "image_size": image_size,
        "pictures": FITS[config.fit],
        "image_tokens": config.image_tokens,
        "stored_as": config.store,
        "text_length": config.text_length,
        "text": "cleaned as ALBEF does" if texts.clean else "as written",
        "bootstrap": {"resamples": config.bootstrap, "seed": 0, "level": 95},
        "largest_share_dropped": config.max_dropped,
        "devices": f"{jax.device_count()} {jax.devices()[0].platform}",
        "versions": {
            "nas_jax": nas_jax.__version__,
            "jax": jax.__version__,
            "numpy": version("numpy"),
            "python": platform.python_version(),
        },
    }
