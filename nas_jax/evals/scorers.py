"""Scores of (image, text) pairs under a method, with every image and every distinct text encoded
once.

Four scores have names:

``itc``        the cosine of the two unit features: the encoders alone, cheap for all pairs.
``itm``        the matching head's logit of "match" minus that of "no match". The same order as the probability of a
               match, but without the ties that a saturated softmax makes.
``itm_logit``  the logit of "match" alone, with which ALBEF ranks (ALBEF code, Retrieval.py).
``itm+itc``    ``itm_logit`` plus ``itc``, with which X-VLM and BLIP rank (ARO code, model_zoo).

The **blind** score of a text is its score with `BLANK`, a picture of constant mid-grey (the mean
that the pixels are normalised with). It shows what a score knows from the text alone: foils of
published benchmarks can be told apart at 60 % without an image (Parcalabescu et al. 2022, "VALSE",
table 2), so a number means little without it.

**Where the work is done.** Image tokens stay on the devices, split by rows; text tokens stay there
too, whole. A pair is matched where its picture is, and all texts beside a picture read the same
keys and values. With several processes each encodes and matches its share of the pictures, and the
scores are gathered; every process encodes all texts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from nas_jax.evals.config import SCORERS
from nas_jax.kernels.image_tokens import ImageTokens, QueryGroup
from nas_jax.methods import Method
from nas_jax.methods.albef import apply
from nas_jax.parallel.mesh import (
    batch_sharding,
    make_mesh,
    num_row_shards,
    pin_rows,
    replicated,
    row_devices,
)
from nas_jax.typing import Array, Params, PyTree
from nas_jax.utils.errors import ConfigError, DataError, DivergedError
from nas_jax.utils.logging import Console, format_seconds

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet
    from nas_jax.evals.questions import Benchmark

BLANK = -1
"""Image index of the blank image."""

BLANK_RGB = (123, 117, 104)
"""The mean of the pixel normalisation, in uint8: the blank image is zero everywhere for the model.
"""

TEXTS_BESIDE = (1, 2, 16)
"""Texts beside each picture of one matching call; which one is used depends on how many texts the
pictures have. Few choices, as each is compiled."""


RECENT = 3
"""Lists of pairs whose logits are kept: a set is asked for its retrieval, foils and quads under
each scorer in turn.
"""


class TextEncoding(Protocol):
    """What the scorer needs of a tokenizer."""

    def encode(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> token_ids_BxL int32 and token_mask_BxL bool, cut or padded to L = length."""
        ...


@dataclass(frozen=True)
class ScoringFunctions:
    """A method's three scoring functions, jitted.

    Make them once and reuse them, so that each compiles once a shape.
    """

    # (params, method_state, image_BxHxWx3) -> tokens_BxTxD, feature_BxE
    encode_image: Callable[..., Any]
    # (params, token_ids_BxL, token_mask_BxL) -> tokens_BxLxD, feature_BxE
    encode_text: Callable[..., Any]
    match: Callable[..., Any]  # see `match_beside`

    @classmethod
    def of(cls, method: Any, image_tokens: str = "method") -> ScoringFunctions:
        """From anything with `encode_image`, `encode_text` and `match` as `nas_jax.methods.Method`
        has them.

        image_tokens: "method", or "encoder" for those of the image encoder, past a dictionary;
        needs a `Method`.
        """

        def encoder_tokens(
            params: Params, method_state: PyTree, image_BxHxWx3: Array
        ) -> tuple[Array, Array]:
            return apply(method.ctx, params, "encode_image", image_BxHxWx3)

        encode_image = method.encode_image if image_tokens == "method" else encoder_tokens
        return cls(
            jax.jit(encode_image), jax.jit(method.encode_text), jax.jit(match_beside(method))
        )


def match_beside(method: Any) -> Callable[..., Array]:
    """`match(params, image_tokens_BxTxD, image_index_G, text_tokens_RxLxD, token_mask_RxL) ->
    itm_logits_Rx2`.

    R / G texts stand beside each of the pictures `image_index_G`, whose keys and values are
    computed once for all of them. An index is that of a row in its device's own part of the
    pictures.
    """
    shares = isinstance(method, Method)

    def match(params, image_tokens_BxTxD, image_index_G, text_tokens_RxLxD, token_mask_RxL):
        seen_GxTxD = _take_near(image_tokens_BxTxD, image_index_G)
        beside = text_tokens_RxLxD.shape[0] // image_index_G.shape[0]
        seen = (
            (ImageTokens((seen_GxTxD,), (QueryGroup(beside),)),)
            if shares
            else jnp.repeat(seen_GxTxD, beside, axis=0)
        )
        return method.match(params, seen, text_tokens_RxLxD, token_mask_RxL)

    return match


def _take_near(x: Array, index_G: Array) -> Array:
    """Rows of each device's part of x, so that no row leaves its device."""
    shards = row_devices()
    parts = pin_rows(x.reshape(shards, -1, *x.shape[1:]))
    index = pin_rows(index_G.reshape(shards, -1))
    taken = pin_rows(jax.vmap(lambda rows, index: rows[index])(parts, index))
    return pin_rows(taken.reshape(index_G.shape[0], *x.shape[1:]))


class Scorer:
    """A method with its parameters, ready to score evaluation sets.

    `Scorer.on(eval_set)` gives the scores of one.
    """

    def __init__(
        self,
        method: Any,
        params: Params,
        method_state: PyTree,
        tokenizer: TextEncoding,
        text_length: int,
        batch_size: int,
        image_size: int,
        *,
        match_rows: int = 256,
        mesh: Mesh | None = None,
        store: str = "model",
        device_gib: float = 4.0,
        console: Console | None = None,
    ):
        """All device calls have the same number of rows; the last one of a list is padded.

        Args:
          method: a `Method`, or its `ScoringFunctions` where they are reused over calls.
          params: the method's parameters; with several processes, whole on each of them.
          method_state: the method's state (teacher, dictionary).
          tokenizer: gives token ids, see `TextEncoding`.
          text_length: tokens of a text; longer texts are cut.
          batch_size: images or texts of one device call.
          image_size: height and width of the images, pixels.
          match_rows: pairs of one call of the matching head.
          mesh: the devices that share the work; None: the default one. With several processes each
            takes its own devices instead.
          store, device_gib: see `EvalConfig`.
          console: shows progress.
        """
        self.functions = (
            method if isinstance(method, ScoringFunctions) else ScoringFunctions.of(method)
        )
        self.mesh = mesh if jax.process_count() == 1 else make_mesh(devices=jax.local_devices())
        self.shards = num_row_shards(self.mesh) if self.mesh else 1
        self.params, self.method_state = (
            _on_mesh(tree, self.mesh) for tree in (params, method_state)
        )
        self.tokenizer, self.text_length = tokenizer, text_length
        self.batch_size, self.match_rows = (
            -(-size // self.shards) * self.shards for size in (batch_size, match_rows)
        )
        self.image_size, self.store, self.device_bytes = image_size, store, device_gib * 2**30
        self.console = console or Console(enabled=False)
        self.images_encoded = 0  # rows encoded so far by this process, without padding
        self.texts_encoded = 0
        self.pairs_matched = 0

    def on(
        self, eval_set: EvalSet | Benchmark, texts: Sequence[str] = (), text_length: int = 0
    ) -> SetScores:
        """Scores of one evaluation set. The encodings live as long as the returned object.

        texts: if given, all that will be asked for; texts are then padded to the longest of them
        and no further. text_length: tokens of a text, in place of the scorer's.
        """
        return SetScores(self, eval_set, texts, text_length or self.text_length)

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """A scoring function on the mesh."""
        if self.mesh is None:
            return function(self.params, *arrays)
        with jax.set_mesh(self.mesh):  # for the activations that models pin
            return function(self.params, *arrays)

    def by_rows(self, x: np.ndarray | Array) -> np.ndarray | Array:
        """An array split over the devices by its rows."""
        return x if self.mesh is None else jax.device_put(x, batch_sharding(self.mesh))


@dataclass
class _ImageBatch:
    """Tokens of some pictures, row by row, on the devices or in host memory."""

    tokens_BxTxD: Array | np.ndarray
    rows: dict[int, int]  # image -> row


class SetScores:
    """Scores of pairs of one evaluation set; what is encoded is kept."""

    def __init__(
        self, scorer: Scorer, eval_set: EvalSet | Benchmark, texts: Sequence[str], text_length: int
    ):
        self.scorer, self.eval_set, self.text_length = scorer, eval_set, text_length
        self._text_index: dict[str, int] = {}
        # of the images that this process has encoded
        self._own_features: dict[int, np.ndarray] = {}
        self._image_features: dict[int, np.ndarray] = {}  # of those that all processes know
        self._batches: list[_ImageBatch] = []
        self._batch_of: dict[int, int] = {}  # image -> number of its batch
        self._blank: Array | None = None  # the tokens of the blank image in every row of a batch
        self._text_rows: dict[int, int] = {}  # text -> row of the two tables below
        self._text_tables: tuple[Any, Any] | None = None  # tokens_JxLxD, mask_JxL
        self._text_features: dict[int, np.ndarray] = {}
        self._held = 0.0  # bytes on each device
        # pairs that were matched last, and their logits
        self._recent: list[tuple[np.ndarray, np.ndarray]] = []
        self._known = math.inf  # texts that the padding is long enough for
        if texts:
            self.text_indices(texts)
            _, mask_JxL = scorer.tokenizer.encode(list(self._text_index), self.text_length)
            longest = int(mask_JxL.sum(axis=1).max())
            self.text_length = min(self.text_length, -(-longest // 8) * 8)
            self._known = len(self._text_index)

    def text_indices(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers of texts, for the other calls. Equal texts have equal numbers."""
        return np.array(
            [self._text_index.setdefault(text, len(self._text_index)) for text in texts], np.int64
        )

    def scores(
        self, name: str, image_indices_P: np.ndarray, text_indices_P: np.ndarray
    ) -> np.ndarray:
        """Scores of P pairs, float32. Another score of the pairs that were asked for last matches
        nothing again.

        Args:
          name: one of `SCORERS`.
          image_indices_P: indices into the set's images, or `BLANK`.
          text_indices_P: numbers from `text_indices`.

        Raises:
          ConfigError: an unknown name.
          DivergedError: a score is not finite.
        """
        if name not in SCORERS:
            raise ConfigError(f"scorer {name!r}", f"one of {SCORERS}", "set eval.scorers")
        # A pair is scored once: the same question cannot get two answers that differ in the last
        # bit.
        codes_P = ((np.asarray(image_indices_P, np.int64) + 1) << 32) + np.asarray(
            text_indices_P, np.int64
        )
        codes_U, inverse_P = np.unique(codes_P, return_inverse=True)
        images_U, texts_U = (codes_U >> 32) - 1, codes_U & (2**32 - 1)
        scores_U = np.zeros(len(codes_U), np.float32)
        if name != "itc":
            logits_Ux2 = self._logits(codes_U, images_U, texts_U)
            scores_U = logits_Ux2[:, 1] - logits_Ux2[:, 0] if name == "itm" else logits_Ux2[:, 1]
        if name in ("itc", "itm+itc"):
            scores_U = scores_U + self._cosines(images_U, texts_U)
        return _finite(scores_U, name)[inverse_P.reshape(-1)]

    def itc_matrix(self, image_indices_R: np.ndarray, text_indices_C: np.ndarray) -> np.ndarray:
        """The itc score of R images with C texts, float32 (R, C)."""
        image_RxE, text_CxE = (
            self.image_features(image_indices_R),
            self.text_features(text_indices_C),
        )
        # Summed in float64 and rounded, so that equal features tie whatever order BLAS adds them
        # in.
        return _finite(
            (image_RxE.astype(np.float64) @ text_CxE.astype(np.float64).T).astype(np.float32), "itc"
        )

    def image_features(self, image_indices_R: np.ndarray) -> np.ndarray:
        """Unit ITC features (R, E) of images."""
        wanted = np.unique(np.asarray(image_indices_R, np.int64))
        wanted = np.array(
            [index for index in wanted if int(index) not in self._image_features], np.int64
        )
        if len(wanted):
            mine = wanted[_mine(wanted)]
            self._encode_images(mine)
            own = [self._own_features[int(index)] for index in mine]
            for index, feature_E in zip(wanted, _gather_rows(own, _mine(wanted)), strict=True):
                self._image_features[int(index)] = feature_E
        return np.stack([self._image_features[int(index)] for index in image_indices_R])

    def text_features(self, text_indices_C: np.ndarray) -> np.ndarray:
        """Unit ITC features (C, E) of texts."""
        self._encode_texts(text_indices_C)
        return np.stack([self._text_features[int(index)] for index in text_indices_C])

    def _cosines(self, images_U: np.ndarray, texts_U: np.ndarray) -> np.ndarray:
        out = np.empty(len(images_U), np.float32)
        for rows in _slices(len(images_U), 2**16):
            images, image_P = np.unique(images_U[rows], return_inverse=True)
            texts, text_P = np.unique(texts_U[rows], return_inverse=True)
            image_PxE, text_PxE = (
                self.image_features(images)[image_P],
                self.text_features(texts)[text_P],
            )
            out[rows] = np.einsum(
                "pe,pe->p", image_PxE.astype(np.float64), text_PxE.astype(np.float64)
            )
        return out

    def _logits(self, codes_U: np.ndarray, images_U: np.ndarray, texts_U: np.ndarray) -> np.ndarray:
        """Logits (U, 2) of pairs that are sorted by image."""
        for known_U, logits_Ux2 in self._recent:
            if np.array_equal(known_U, codes_U):
                return logits_Ux2
        # The pairs of a picture are the work of the process that has it; those of the blank one are
        # dealt by text.
        mine_U = np.where(images_U == BLANK, _mine(texts_U), _mine(images_U))
        mine = np.flatnonzero(mine_U)
        self._encode_images(images_U[mine])
        self._encode_texts(texts_U)
        logits_Ux2 = np.zeros((len(codes_U), 2), np.float32)
        logits_Ux2[mine] = self._match(images_U[mine], texts_U[mine])
        logits_Ux2 = _sum_of_processes(logits_Ux2)
        self._recent = [(codes_U, logits_Ux2), *self._recent[: RECENT - 1]]
        return logits_Ux2

    def _match(self, images_U: np.ndarray, texts_U: np.ndarray) -> np.ndarray:
        """Logits (U, 2) of pairs that are sorted by image, all of this process."""
        out_Ux2 = np.zeros((len(images_U), 2), np.float32)
        if not len(images_U):
            return out_Ux2
        scorer, began, done = self.scorer, time.monotonic(), 0
        pictures, counts = np.unique(images_U, return_counts=True)
        beside = _texts_beside(counts)
        batch_of = np.array(
            [-1 if image == BLANK else self._batch_of[int(image)] for image in pictures]
        )
        row_of = np.array(
            [
                0 if image == BLANK else self._batches[batch].rows[int(image)]
                for image, batch in zip(pictures, batch_of, strict=True)
            ]
        )
        groups = [np.flatnonzero(batch_of == batch) for batch in np.unique(batch_of)]
        # A quarter of the rows a call where no batch of pictures has more.
        most = beside * max(int((-(-counts[group] // beside)).sum()) for group in groups)
        rows_a_call = scorer.match_rows if most > scorer.match_rows // 4 else scorer.match_rows // 4
        a_device = max(1, rows_a_call // beside // scorer.shards)
        starts = np.concatenate([[0], np.cumsum(counts)])
        for group in groups:
            pairs = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in group])
            rows = np.repeat(row_of[group], counts[group])
            order = np.argsort(rows, kind="stable")
            blank = batch_of[group[0]] == -1
            tokens_BxTxD = (
                self._blank
                if blank
                else scorer.by_rows(self._batches[batch_of[group[0]]].tokens_BxTxD)
            )
            # every row of its batch is the blank picture, so any device may take its texts
            if blank:
                rows = (
                    np.arange(len(rows))
                    // beside
                    % scorer.shards
                    * (scorer.batch_size // scorer.shards)
                )
                order = np.argsort(rows, kind="stable")
            pairs, rows = pairs[order], rows[order]
            waiting = []
            for call in _deal(
                rows, scorer.batch_size // scorer.shards, scorer.shards, beside, a_device
            ):
                asked = np.where(call.pair_R < 0, 0, call.pair_R)
                tokens_RxLxD, mask_RxL = self._text_tokens(texts_U[pairs[asked]])
                logits = scorer.call(
                    scorer.functions.match,
                    tokens_BxTxD,
                    scorer.by_rows(call.image_G),
                    tokens_RxLxD,
                    mask_RxL,
                )
                waiting.append((pairs[call.pair_R[call.pair_R >= 0]], call.pair_R >= 0, logits))
                while len(waiting) > 2:  # two calls run ahead of the reading
                    done += _write(out_Ux2, waiting.pop(0))
                    self._progress(done, len(images_U), began)
            while waiting:
                done += _write(out_Ux2, waiting.pop(0))
            self._progress(done, len(images_U), began, due=done == len(images_U))
        scorer.pairs_matched += len(images_U)
        return out_Ux2

    def _progress(self, done: int, total: int, began: float, due: bool = False) -> None:
        spent = max(time.monotonic() - began, 1e-9)
        line = f"{self.eval_set.name}: {done}/{total} pairs matched  {done / spent:.0f} pairs/s"
        self.scorer.console.progress(
            f"{line}  left {format_seconds((total - done) * spent / max(done, 1))}", due
        )

    def _text_tokens(self, texts_R: np.ndarray) -> tuple[Any, Any]:
        """Tokens (R, L, D) and mask (R, L) of texts, split by rows."""
        lookup = np.fromiter(
            (self._text_rows[int(text)] for text in texts_R), np.int32, len(texts_R)
        )
        tokens_JxLxD, mask_JxL = self._text_tables
        mask_RxL = self.scorer.by_rows(mask_JxL[lookup])
        if isinstance(tokens_JxLxD, np.ndarray):
            return self.scorer.by_rows(tokens_JxLxD[lookup]), mask_RxL
        return _take(tokens_JxLxD, self.scorer.by_rows(lookup)), mask_RxL

    def _encode_images(self, indices: np.ndarray) -> None:
        scorer = self.scorer
        missing = [int(index) for index in np.unique(indices) if int(index) not in self._batch_of]
        for rows in _slices(len(missing), scorer.batch_size):
            chunk = missing[rows]
            images_BxHxWx3 = _pad(
                np.stack([self._picture(index) for index in chunk]), scorer.batch_size
            )
            tokens_BxTxD, feature_BxE = scorer.call(
                scorer.functions.encode_image, scorer.method_state, scorer.by_rows(images_BxHxWx3)
            )
            feature_BxE = np.asarray(feature_BxE)
            self._batches.append(_ImageBatch(self._kept(tokens_BxTxD, scorer.shards), {}))
            for row, index in enumerate(chunk):
                self._batches[-1].rows[index], self._batch_of[index] = row, len(self._batches) - 1
                self._own_features[index] = feature_BxE[row]
                if index == BLANK:
                    one_TxD = np.asarray(self._batches[-1].tokens_BxTxD[row])
                    self._blank = scorer.by_rows(
                        np.broadcast_to(one_TxD, (scorer.batch_size, *one_TxD.shape))
                    )
            scorer.images_encoded += len(chunk)
            done = rows.start + len(chunk)
            line = f"{self.eval_set.name}: {done}/{len(missing)} images encoded"
            scorer.console.progress(line, due=done == len(missing))

    def _encode_texts(self, indices: np.ndarray) -> None:
        scorer = self.scorer
        missing = [int(index) for index in np.unique(indices) if int(index) not in self._text_rows]
        if not missing:
            return
        if missing[-1] >= self._known:
            raise ValueError("a text that was not among those given to Scorer.on")
        texts = list(self._text_index)  # in the order of their numbers
        ids_MxL, mask_MxL = scorer.tokenizer.encode(
            [texts[index] for index in missing], self.text_length
        )
        tables = [] if self._text_tables is None else [self._text_tables]
        for rows in _slices(len(missing), scorer.batch_size):
            chunk = missing[rows]
            ids_BxL, mask_BxL = (_pad(x[rows], scorer.batch_size) for x in (ids_MxL, mask_MxL))
            tokens_BxLxD, feature_BxE = scorer.call(
                scorer.functions.encode_text, scorer.by_rows(ids_BxL), scorer.by_rows(mask_BxL)
            )
            feature_BxE, before = np.asarray(feature_BxE), sum(len(mask) for _, mask in tables)
            tables.append((self._kept(tokens_BxLxD, 1), mask_BxL))
            for row, index in enumerate(chunk):
                self._text_rows[index], self._text_features[index] = before + row, feature_BxE[row]
            scorer.texts_encoded += len(chunk)
        tokens = [tokens for tokens, _ in tables]
        if any(isinstance(one, np.ndarray) for one in tokens):
            whole_JxLxD = np.concatenate([np.asarray(one) for one in tokens])
        else:
            whole_JxLxD = jnp.concatenate(tokens)
            if scorer.mesh is not None:
                whole_JxLxD = jax.device_put(whole_JxLxD, replicated(scorer.mesh))
        self._text_tables = whole_JxLxD, np.concatenate([mask for _, mask in tables])

    def _kept(self, tokens: Array, shards: int) -> Array | np.ndarray:
        """Encoded tokens in the dtype they are kept in, on the devices while there is room.

        shards: each has a part.
        """
        tokens = tokens.astype(jnp.bfloat16) if self.scorer.store == "bfloat16" else tokens
        self._held += tokens.nbytes / shards
        return tokens if self._held <= self.scorer.device_bytes else np.asarray(tokens)

    def _picture(self, index: int) -> np.ndarray:
        size = self.scorer.image_size
        if index == BLANK:
            return np.full((size, size, 3), BLANK_RGB, np.uint8)
        image_HxWx3 = np.asarray(self.eval_set.images[index])
        if image_HxWx3.shape != (size, size, 3) or image_HxWx3.dtype != np.uint8:
            got = f"image {index} of evaluation set {self.eval_set.name!r}: {image_HxWx3.dtype} {image_HxWx3.shape}"
            raise DataError(
                got, f"uint8 ({size}, {size}, 3)", "give the set and the model the same image_size"
            )
        return image_HxWx3


@dataclass(frozen=True)
class _Call:
    """One call of the matching head: G pictures, by their row in their device's part, and R texts
    beside them.
    """

    image_G: np.ndarray
    pair_R: np.ndarray  # which pair each row is; -1 for padding


def _deal(rows_P: np.ndarray, part: int, shards: int, beside: int, a_device: int) -> list[_Call]:
    """Spreads pairs over calls.

    Args:
      rows_P: row of each pair's picture in its batch, rising.
      part: rows of the batch on each of the `shards` devices; a pair stays on the device of its
      picture.
      beside: texts beside a picture; a picture with more of them takes several places.
      a_device: pictures of one call on each device.
    """
    first_P = np.searchsorted(rows_P, rows_P)  # where each picture's pairs begin
    new_block_P = (np.arange(len(rows_P)) - first_P) % beside == 0
    block_P = np.cumsum(new_block_P) - 1
    block_row = rows_P[new_block_P]
    shard = block_row // part
    # of the block in its device's queue
    place = np.arange(len(block_row)) - np.searchsorted(shard, shard)
    calls = int(place.max()) // a_device + 1
    image = np.zeros((calls, shards, a_device), np.int32)
    image[place // a_device, shard, place % a_device] = block_row % part
    pair = np.full((calls, shards, a_device, beside), -1, np.int64)
    slot_P = (np.arange(len(rows_P)) - first_P) % beside
    pair[place[block_P] // a_device, shard[block_P], place[block_P] % a_device, slot_P] = np.arange(
        len(rows_P)
    )
    return [_Call(image[call].ravel(), pair[call].ravel()) for call in range(calls)]


def _texts_beside(counts: np.ndarray) -> int:
    """How many texts to put beside each picture, given how many each has: the least work, padding
    included.
    """
    # work for a picture in a call, in that of a pair; about T / L * 2 / 14 of a fusion layer
    keys_and_values = 0.5
    return min(
        TEXTS_BESIDE,
        key=lambda beside: float((-(-counts // beside)).sum() * (beside + keys_and_values)),
    )


def _write(out_Ux2: np.ndarray, waited: tuple[np.ndarray, np.ndarray, Array]) -> int:
    pairs, real_R, logits_Rx2 = waited
    out_Ux2[pairs] = np.asarray(logits_Rx2, np.float32)[real_R]
    return len(pairs)


@jax.jit
def _take(table: Array, index: Array) -> Array:
    return table[index]


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _on_mesh(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays that are on the mesh stay where they are; others are copied to all its devices."""
    if mesh is None:
        return tree

    def place(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        there = isinstance(sharding, NamedSharding) and sharding.mesh == mesh
        return leaf if there else jax.device_put(leaf, replicated(mesh))

    return jax.tree.map(place, tree)


def _mine(numbers: np.ndarray) -> np.ndarray:
    """True on the share of this process."""
    return np.asarray(numbers) % jax.process_count() == jax.process_index()


def _sum_of_processes(x: np.ndarray) -> np.ndarray:
    """The sum of an array over the processes; each row is 0 on all but one, so it is exact."""
    return (
        x
        if jax.process_count() == 1
        else np.asarray(multihost_utils.process_allgather(x)).sum(axis=0)
    )


def _gather_rows(own: list[np.ndarray], mine_W: np.ndarray) -> np.ndarray:
    """Rows (W, E) of all processes, each of which has those where its `mine` is True.

    All must call it.
    """
    if jax.process_count() == 1:
        return np.stack(own)
    width = int(multihost_utils.process_allgather(np.int32(len(own[0]) if own else 0)).max())
    rows_WxE = np.zeros((len(mine_W), width), np.float32)
    for row, feature_E in zip(np.flatnonzero(mine_W), own, strict=True):
        rows_WxE[row] = feature_E
    return _sum_of_processes(rows_WxE)


def _pad(rows_: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last row up to `length` rows (a row of zeros could be an all-masked text)."""
    return np.concatenate([rows_, np.repeat(rows_[-1:], length - len(rows_), axis=0)])


def _finite(scores: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(scores).all():
        got = f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} {name} scores not finite"
        raise DivergedError(got, "finite scores", "evaluate an earlier checkpoint")
    return scores
