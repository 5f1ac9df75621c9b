"""The pictures and texts of one evaluation set, each encoded once and kept.

Image tokens stay on the devices, split by rows; text tokens stay there too, whole. What is more
than `EvalConfig.device_gib` waits in host memory. Features are on the host. With several processes
each encodes its share of the pictures and every process encodes all texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from nas_jax.parallel.mesh import replicated
from nas_jax.typing import Array
from nas_jax.utils.errors import DataError

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet
    from nas_jax.evals.questions import Benchmark
    from nas_jax.evals.scorers import Scorer

AnySet = TypeVar("AnySet", bound="EvalSet | Benchmark")

BLANK = -1
"""Index of the blank picture."""

BLANK_RGB = (123, 117, 104)
"""The mean of the pixel normalisation, in uint8: to the model the blank picture is 0 everywhere."""


@dataclass
class ImageBatch:
    """Tokens of some pictures, row by row, on the devices or in host memory."""

    tokens_BxTxD: Array | np.ndarray | None  # None: the method has no pair scores
    rows: dict[int, int]  # image -> row


class Encodings(Generic[AnySet]):
    """What is known of the pictures and texts of one set."""

    def __init__(self, scorer: Scorer, eval_set: AnySet, texts: Sequence[str], text_length: int):
        """texts: if given, all that will be asked for; texts are then padded to the longest of them
        and no further.
        """
        self.scorer, self.eval_set, self.text_length = scorer, eval_set, text_length
        self.batches: list[ImageBatch] = []
        self._batch_of: dict[int, int] = {}  # image -> number of its batch
        # the tokens of the blank image in every row of a batch
        self._blank: Array | np.ndarray | None = None
        self._own_features: dict[int, np.ndarray] = {}  # of images that this process has encoded
        self._image_features: dict[int, np.ndarray] = {}  # of images that all processes know
        self._text_index: dict[str, int] = {}
        self._text_rows: dict[int, int] = {}  # text -> row of the two tables below
        self._text_tables: list[tuple[Any, np.ndarray]] = []  # tokens_JxLxD, mask_JxL; one, or none
        self._text_features: dict[int, np.ndarray] = {}
        self._held = 0.0  # bytes on each device
        self._known = math.inf  # texts that the padding is long enough for
        if texts:
            self.text_indices(texts)
            _, mask_JxL = scorer.model.tokenizer.encode(list(self._text_index), self.text_length)
            longest = int(mask_JxL.sum(axis=1).max())
            self.text_length = min(self.text_length, -(-longest // 8) * 8)
            self._known = len(self._text_index)

    def text_indices(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers of texts, for the other calls. Equal texts have equal numbers."""
        return np.array(
            [self._text_index.setdefault(text, len(self._text_index)) for text in texts], np.int64
        )

    # --------------------------------------------------------------------------------- features

    def know_images(self, images: np.ndarray) -> None:
        """Makes the features of images known to all processes. All of them must call it."""
        missing = np.array(_missing(images, self._image_features), np.int64)
        if len(missing):
            mine_W = mine(missing)
            self.encode_images(missing[mine_W])
            own = [self._own_features[int(index)] for index in missing[mine_W]]
            for index, feature in zip(missing, _gather_rows(own, mine_W), strict=True):
                self._image_features[int(index)] = feature

    def image_features(self, images_R: np.ndarray) -> np.ndarray:
        """Features (R, ...) of images."""
        self.know_images(images_R)
        return np.stack([self._image_features[int(index)] for index in images_R])

    def text_features(self, texts_C: np.ndarray) -> np.ndarray:
        """Features (C, ...) of texts."""
        self.encode_texts(texts_C)
        return np.stack([self._text_features[int(index)] for index in texts_C])

    # ----------------------------------------------------------------------------------- tokens

    def place(self, image: int) -> tuple[int, int]:
        """Batch and row of an encoded image; (-1, 0) for the blank one, which is in every row."""
        if image == BLANK:
            return -1, 0
        batch = self._batch_of[image]
        return batch, self.batches[batch].rows[image]

    def image_tokens(self, batch: int) -> Array | np.ndarray | None:
        """Tokens (B, T, D) of a batch of pictures on the devices; -1: of the blank one. None: the
        method has no pair scores.
        """
        if batch == -1:
            return self._blank
        return self.scorer.by_rows(self.batches[batch].tokens_BxTxD)

    def text_tokens(self, texts_GxC: np.ndarray) -> tuple[Any, Any]:
        """Tokens (G, C, L, D) and mask (G, C, L) of texts, split by rows."""
        ((tokens_JxLxD, mask_JxL),) = self._text_tables
        lookup_GxC = np.array(
            [[self._text_rows[int(text)] for text in texts_C] for texts_C in texts_GxC], np.int32
        )
        mask_GxCxL = self.scorer.by_rows(mask_JxL[lookup_GxC])
        if isinstance(tokens_JxLxD, np.ndarray):
            return self.scorer.by_rows(tokens_JxLxD[lookup_GxC]), mask_GxCxL
        return _take(tokens_JxLxD, self.scorer.by_rows(lookup_GxC)), mask_GxCxL

    # --------------------------------------------------------------------------------- encoding

    def encode_images(self, images: np.ndarray) -> None:
        """Encodes on this process those of the images that it has not encoded yet."""
        scorer, missing = self.scorer, _missing(images, self._batch_of)
        for rows in slices(len(missing), scorer.batch_size):
            chunk = missing[rows]
            shown = np.stack([self._picture(index) for index in chunk])
            tokens_BxTxD, features = scorer.call(
                scorer.functions.encode_image,
                scorer.state,
                scorer.by_rows(_pad(shown, scorer.batch_size)),
            )
            self._keep_images(chunk, tokens_BxTxD, np.asarray(features))
            done = rows.start + len(chunk)
            line = f"{self.eval_set.name}: {done}/{len(missing)} images encoded"
            scorer.console.progress(line, due=done == len(missing))

    def _keep_images(
        self, images: list[int], tokens_BxTxD: Array | None, features: np.ndarray
    ) -> None:
        scorer = self.scorer
        kept = self._kept(tokens_BxTxD, scorer.shards)
        rows = {index: row for row, index in enumerate(images)}
        for index, row in rows.items():
            self._batch_of[index], self._own_features[index] = len(self.batches), features[row]
        self.batches.append(ImageBatch(kept, rows))
        scorer.images_encoded += len(images)
        if BLANK in rows and kept is not None:
            one_TxD = np.asarray(kept[rows[BLANK]])
            self._blank = scorer.by_rows(
                np.broadcast_to(one_TxD, (scorer.batch_size, *one_TxD.shape))
            )

    def encode_texts(self, indices: np.ndarray) -> None:
        """Encodes those of the texts that are not encoded yet."""
        scorer, missing = self.scorer, _missing(indices, self._text_rows)
        if not missing:
            return
        if missing[-1] >= self._known:
            raise ValueError("a text that was not among those given to Scorer.on")
        texts = list(self._text_index)  # in the order of their numbers
        ids_MxL, mask_MxL = scorer.model.tokenizer.encode(
            [texts[index] for index in missing], self.text_length
        )
        tables = list(self._text_tables)
        for rows in slices(len(missing), scorer.batch_size):
            ids_BxL, mask_BxL = (_pad(x[rows], scorer.batch_size) for x in (ids_MxL, mask_MxL))
            tokens_BxLxD, features = scorer.call(
                scorer.functions.encode_text, scorer.by_rows(ids_BxL), scorer.by_rows(mask_BxL)
            )
            features, before = np.asarray(features), sum(len(mask) for _, mask in tables)
            tables.append((self._kept(tokens_BxLxD, 1), mask_BxL))
            for row, index in enumerate(missing[rows]):
                self._text_rows[index], self._text_features[index] = before + row, features[row]
        scorer.texts_encoded += len(missing)
        mask_JxL = np.concatenate([mask for _, mask in tables])
        self._text_tables = [(self._joined([tokens for tokens, _ in tables]), mask_JxL)]

    def _joined(self, parts: list[Any]) -> Any:
        """Text tokens as one table, on every device or, if a part of them is there, on the host."""
        if parts[0] is None:
            return None
        if any(isinstance(part, np.ndarray) for part in parts):
            return np.concatenate([np.asarray(part) for part in parts])
        whole, mesh = jnp.concatenate(parts), self.scorer.mesh
        return whole if mesh is None else jax.device_put(whole, replicated(mesh))

    def _kept(self, tokens: Array | None, shards: int) -> Array | np.ndarray | None:
        """Encoded tokens in the dtype they are kept in, on the devices while there is room.

        shards: each has a part.
        """
        if tokens is None:
            return None
        config = self.scorer.config
        tokens = tokens.astype(jnp.bfloat16) if config.store == "bfloat16" else tokens
        self._held += tokens.nbytes / shards
        return tokens if self._held <= config.device_gib * 2**30 else np.asarray(tokens)

    def _picture(self, index: int) -> np.ndarray:
        size = self.scorer.model.image_size
        if index == BLANK:
            return np.full((size, size, 3), BLANK_RGB, np.uint8)
        image_HxWx3 = np.asarray(self.eval_set.images[index])
        if image_HxWx3.shape != (size, size, 3) or image_HxWx3.dtype != np.uint8:
            kind = f"{image_HxWx3.dtype} {image_HxWx3.shape}"
            raise DataError(
                f"image {index} of evaluation set {self.eval_set.name!r}: {kind}",
                f"uint8 ({size}, {size}, 3)",
                "give the set and the model the same image_size",
            )
        return image_HxWx3


@jax.jit
def _take(table: Array, index: Array) -> Array:
    return table[index]


def _missing(indices: np.ndarray, known: dict[int, Any]) -> list[int]:
    """What is not known, rising, each once."""
    return [int(index) for index in np.unique(indices) if int(index) not in known]


def slices(count: int, size: int) -> Iterable[slice]:
    """All of `count` rows, at most `size` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _pad(x: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last row up to `length` rows (a row of zeros could be an all-masked text)."""
    return np.concatenate([x, np.repeat(x[-1:], length - len(x), axis=0)])


# -------------------------------------------------------------------------------- several processes


def mine(numbers: np.ndarray) -> np.ndarray:
    """True on the share of this process."""
    return np.asarray(numbers) % jax.process_count() == jax.process_index()


def sum_of_processes(x: np.ndarray) -> np.ndarray:
    """The sum of an array over the processes.

    Exact where each number is 0 on all processes but one. All must call it.
    """
    if jax.process_count() == 1:
        return x
    return np.asarray(multihost_utils.process_allgather(x)).sum(axis=0)


def _gather_rows(own: list[np.ndarray], mine_W: np.ndarray) -> np.ndarray:
    """Rows (W, ...) of all processes, each of which has those where its `mine` is True.

    All must call it.
    """
    if jax.process_count() == 1:
        return np.stack(own)
    shape = np.zeros(8, np.int32)  # a process without rows learns their shape from the others
    if own:
        shape[: own[0].ndim] = own[0].shape
    shape = np.asarray(multihost_utils.process_allgather(shape)).max(axis=0)
    rows = np.zeros((len(mine_W), *shape[shape > 0]), np.float32)
    if own:
        rows[mine_W] = np.stack(own)
    return sum_of_processes(rows)
