"""Scores of (picture, text) pairs by the names that a method gives them.

A *feature score* compares the features of the two encoders and is cheap for all pairs: of ALBEF
``itc``, the cosine, on the host. A method may have another comparison (`Method.compare`): FILIP's
``late`` compares all tokens, on the device. A *pair score* needs picture and text read together:
``itm``, the logit of "match" minus that of "no match" (the order of the probability, but without
the ties that a saturated softmax makes), and ``itm_logit``, the logit of "match" alone, with which
ALBEF ranks (ALBEF code, Retrieval.py). A method without a fusion encoder has none. A *summed score*
is the sum of others: ``itm+itc``, with which X-VLM and BLIP rank (ARO code, model_zoo).

The **blind** score of a text is its score with `BLANK`, a picture of constant mid-grey (the mean
that the pixels are normalised with). It shows what a score knows from the text alone: foils of
published benchmarks can be told apart at 60 % without an image (Parcalabescu et al. 2022, "VALSE",
table 2), so a number means little without it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from nas_jax.evals.config import EvalConfig, check_scorers
from nas_jax.evals.encodings import BLANK, AnySet, Encodings, mine, slices, sum_of_processes
from nas_jax.evals.functions import ScoredModel
from nas_jax.evals.matching import score_pairs
from nas_jax.methods.method import Method
from nas_jax.parallel.mesh import batch_sharding, make_mesh, num_row_shards, replicated
from nas_jax.typing import Array, PyTree
from nas_jax.utils.errors import DivergedError
from nas_jax.utils.logging import Console

RECENT = 3
"""Lists of pairs whose pair scores are kept: a set is asked for its retrieval, foils and quads
under each scorer in turn.
"""

COMPARED = 4096  # texts that are compared with one picture at a time
TABLE = 1024  # pictures, and texts, whose features are put together for a part of a table


class Scorer:
    """A model on its devices, ready to score evaluation sets: `Scorer.on(eval_set)`."""

    def __init__(
        self,
        model: ScoredModel,
        config: EvalConfig,
        mesh: Mesh | None = None,
        console: Console | None = None,
    ):
        """All device calls have the same number of rows; the last one of a list is padded.

        Args:
          model: what is evaluated.
          config: sizes of calls, and what is kept where.
          mesh: the devices that share the work; None: the default one. With several processes each
            takes its own devices instead.
          console: shows progress.
        """
        self.model, self.config, self.functions = model, config, model.functions
        self.mesh = mesh if jax.process_count() == 1 else make_mesh(devices=jax.local_devices())
        self.shards = num_row_shards(self.mesh) if self.mesh else 1
        self.params, self.state = (
            _on_mesh(tree, self.mesh) for tree in (model.params, model.state)
        )
        self.batch_size, self.match_rows = (
            -(-size // self.shards) * self.shards for size in (config.batch_size, config.match_rows)
        )
        self.console = console or Console(enabled=False)
        self.images_encoded = 0  # rows encoded so far by this process, without padding
        self.texts_encoded = 0
        self.pairs_matched = 0

    @property
    def method(self) -> Method:
        """Whose scores these are."""
        return self.functions.method

    def on(
        self, eval_set: AnySet, texts: Sequence[str] = (), text_length: int = 0
    ) -> SetScores[AnySet]:
        """Scores of one evaluation set. The encodings live as long as the returned object.

        texts: if given, all that will be asked for; texts are then padded to the longest of them
        and no further. text_length: tokens of a text, in place of the config's.
        """
        return SetScores(Encodings(self, eval_set, texts, text_length or self.config.text_length))

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """A scoring function on the mesh."""
        if self.mesh is None:
            return function(self.params, *arrays)
        with jax.set_mesh(self.mesh):  # for the activations that models pin
            return function(self.params, *arrays)

    def by_rows(self, x: np.ndarray | Array | None) -> np.ndarray | Array | None:
        """An array split over the devices by its rows. None stays None."""
        return x if self.mesh is None else jax.device_put(x, batch_sharding(self.mesh))


class _Pairs(NamedTuple):
    """Distinct pairs, sorted by image."""

    codes_U: np.ndarray
    images_U: np.ndarray
    texts_U: np.ndarray


class SetScores(Generic[AnySet]):
    """Scores of pairs of one evaluation set."""

    def __init__(self, encodings: Encodings[AnySet]):
        self.encodings, self.scorer = encodings, encodings.scorer
        self.eval_set, self.method = encodings.eval_set, encodings.scorer.method
        self.text_indices = encodings.text_indices
        self.image_features, self.text_features = encodings.image_features, encodings.text_features
        # the pairs that were matched last, and their pair scores
        self._recent: list[tuple[np.ndarray, np.ndarray]] = []

    def scores(
        self, name: str, image_indices_P: np.ndarray, text_indices_P: np.ndarray
    ) -> np.ndarray:
        """Scores of P pairs, float32. Another score of the pairs that were asked for last reads
        nothing again.

        Args:
          name: one of the method's scores.
          image_indices_P: indices into the set's images, or `BLANK`.
          text_indices_P: numbers from `text_indices`.

        Raises:
          ConfigError: an unknown name.
          DivergedError: a score is not finite.
        """
        check_scorers((name,), self.method)
        # A pair is scored once: the same question cannot get two answers that differ in the last
        # bit.
        images_P, texts_P = (np.asarray(x, np.int64) for x in (image_indices_P, text_indices_P))
        codes_U, inverse_P = np.unique(((images_P + 1) << 32) + texts_P, return_inverse=True)
        pairs = _Pairs(codes_U, (codes_U >> 32) - 1, codes_U & (2**32 - 1))
        return _finite(self._scores(name, pairs), name)[inverse_P.reshape(-1)]

    def matrix(
        self, name: str, image_indices_R: np.ndarray, text_indices_C: np.ndarray
    ) -> np.ndarray:
        """A feature score of R images with C texts, float32 (R, C).

        In parts, as a feature may be many numbers: all tokens of a picture.
        """
        self.encodings.know_images(image_indices_R)
        self.encodings.encode_texts(text_indices_C)
        scores_RxC = np.empty((len(image_indices_R), len(text_indices_C)), np.float32)
        for rows in slices(len(image_indices_R), TABLE):
            images = self.image_features(image_indices_R[rows])
            for columns in slices(len(text_indices_C), TABLE):
                texts = self.text_features(text_indices_C[columns])
                scores_RxC[rows, columns] = self.method.compare(name, images, texts)
        return _finite(scores_RxC, name)

    def _scores(self, name: str, pairs: _Pairs) -> np.ndarray:
        if name in self.method.summed_scores:
            parts = (self._scores(part, pairs) for part in self.method.summed_scores[name])
            return functools.reduce(np.add, parts)
        if name in self.method.feature_scores:
            return self._compared(name, pairs)
        return self._matched(pairs)[self.method.pair_scores.index(name)]

    def _compared(self, name: str, pairs: _Pairs) -> np.ndarray:
        out_U = np.empty(len(pairs.images_U), np.float32)
        self.encodings.know_images(pairs.images_U)
        for rows in _runs(pairs.images_U):
            image, texts = pairs.images_U[rows][:1], pairs.texts_U[rows]
            features = self.image_features(image), self.text_features(texts)
            out_U[rows] = self.method.compare(name, *features)[0]
        return out_U

    def _matched(self, pairs: _Pairs) -> np.ndarray:
        """The pair scores (S, U)."""
        for known_U, scores_SxU in self._recent:
            if np.array_equal(known_U, pairs.codes_U):
                return scores_SxU
        # The pairs of a picture are the work of the process that has it; those of the blank one are
        # dealt by text.
        _, images_U, texts_U = pairs
        own = np.flatnonzero(np.where(images_U == BLANK, mine(texts_U), mine(images_U)))
        self.encodings.encode_images(images_U[own])
        self.encodings.encode_texts(texts_U)
        scores_SxU = np.zeros((len(self.method.pair_scores), len(images_U)), np.float32)
        scores_SxU[:, own] = score_pairs(self.encodings, images_U[own], texts_U[own])
        scores_SxU = sum_of_processes(scores_SxU)
        self._recent = [(pairs.codes_U, scores_SxU), *self._recent[: RECENT - 1]]
        return scores_SxU


def _runs(images_U: np.ndarray) -> Iterator[slice]:
    """Rows of one image after the other, at most `COMPARED` at a time."""
    ends = [*np.flatnonzero(images_U[1:] != images_U[:-1]) + 1, len(images_U)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        for part in slices(end - start, COMPARED):
            yield slice(start + part.start, start + part.stop)


def _on_mesh(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays that are on the mesh stay where they are; others are copied to all its devices."""
    if mesh is None:
        return tree

    def place(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        there = isinstance(sharding, NamedSharding) and sharding.mesh == mesh
        return leaf if there else jax.device_put(leaf, replicated(mesh))

    return jax.tree.map(place, tree)


def _finite(scores: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(scores).all():
        got = f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} {name} scores not finite"
        raise DivergedError(got, "finite scores", "evaluate an earlier checkpoint")
    return scores
