"""Scores of (image, text) pairs under a method, with every image and every distinct text encoded once.

Two scores have names:

``itc``  the cosine of the two unit features: the encoders alone, cheap for all pairs.
``itm``  the matching head's logit of "match" minus that of "no match". The same order as the probability of a match,
         but without the ties that a saturated softmax makes.

The **blind** score of a text is its score with `BLANK`, a picture of constant mid-grey (the mean that the pixels are
normalised with). It shows what a score knows from the text alone: foils of published benchmarks can be told apart at
60 % without an image (Parcalabescu et al. 2022, "VALSE", table 2), so a number means little without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from nas_jax.evals.config import SCORERS
from nas_jax.typing import Params, PyTree
from nas_jax.utils.errors import ConfigError, DataError, DivergedError

if TYPE_CHECKING:
    from nas_jax.data.eval_sets import EvalSet

BLANK = -1
"""Image index of the blank image."""

BLANK_RGB = (123, 117, 104)
"""The mean of the pixel normalisation, in uint8: the blank image is zero everywhere for the model."""


class TextEncoding(Protocol):
    """What the scorer needs of a tokenizer."""

    def encode(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> token_ids_BxL int32 and token_mask_BxL bool, cut or padded to L = length."""
        ...


@dataclass(frozen=True)
class ScoringFunctions:
    """A method's three scoring functions, jitted. Make them once and reuse them, so that each compiles once."""

    encode_image: Callable[..., Any]
    encode_text: Callable[..., Any]
    match: Callable[..., Any]

    @classmethod
    def of(cls, method: Any) -> ScoringFunctions:
        """From anything with `encode_image`, `encode_text` and `match` as `nas_jax.methods.Method` has them."""
        return cls(jax.jit(method.encode_image), jax.jit(method.encode_text), jax.jit(method.match))


class Scorer:
    """A method with its parameters, ready to score evaluation sets. `Scorer.on(eval_set)` gives the scores of one."""

    def __init__(
        self,
        method: Any,
        params: Params,
        method_state: PyTree,
        tokenizer: TextEncoding,
        text_length: int,
        batch_size: int,
        image_size: int,
    ):
        """All device calls have `batch_size` rows; the last one of a list is padded.

        Args:
          method: a `Method`, or its `ScoringFunctions` where they are reused over calls.
          params: the method's parameters.
          method_state: the method's state (teacher, dictionary).
          tokenizer: gives token ids, see `TextEncoding`.
          text_length: tokens of a text; longer texts are cut.
          batch_size: images, texts or pairs of one device call.
          image_size: height and width of the images, pixels.
        """
        self.functions = method if isinstance(method, ScoringFunctions) else ScoringFunctions.of(method)
        self.params, self.method_state = params, method_state
        self.tokenizer, self.text_length = tokenizer, text_length
        self.batch_size, self.image_size = batch_size, image_size
        self.images_encoded = 0  # rows encoded so far, without padding
        self.texts_encoded = 0

    def on(self, eval_set: EvalSet) -> SetScores:
        """Scores of one evaluation set. The encodings live as long as the returned object."""
        return SetScores(self, eval_set)


class SetScores:
    """Scores of pairs of one evaluation set; what is encoded is kept, in host memory."""

    def __init__(self, scorer: Scorer, eval_set: EvalSet):
        self.scorer, self.eval_set = scorer, eval_set
        self._text_index: dict[str, int] = {}
        self._images: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # index -> tokens_TxD, feature_E
        self._texts: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # index -> tokens_LxD, feature_E, mask_L

    def text_indices(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers of texts, for the other calls. Equal texts have equal numbers."""
        return np.array([self._text_index.setdefault(text, len(self._text_index)) for text in texts], np.int64)

    def scores(self, name: str, image_indices_P: np.ndarray, text_indices_P: np.ndarray) -> np.ndarray:
        """Scores of P pairs, float32.

        Args:
          name: "itc" or "itm".
          image_indices_P: indices into the set's images, or `BLANK`.
          text_indices_P: numbers from `text_indices`.

        Raises:
          ConfigError: an unknown name.
          DivergedError: a score is not finite.
        """
        if name not in SCORERS:
            raise ConfigError(f"scorer {name!r}", f"one of {SCORERS}", "set eval.scorers")
        # A pair is scored once: the same question cannot get two answers that differ in the last bit.
        pairs_Px2 = np.stack([np.asarray(image_indices_P), np.asarray(text_indices_P)], axis=1).astype(np.int64)
        distinct_Ux2, inverse_P = np.unique(pairs_Px2, axis=0, return_inverse=True)
        self._encode_images(distinct_Ux2[:, 0])
        self._encode_texts(distinct_Ux2[:, 1])
        scores_U = (self._itc if name == "itc" else self._itm)(distinct_Ux2)
        return _finite(scores_U, name)[inverse_P.reshape(-1)]

    def itc_matrix(self, image_indices_R: np.ndarray, text_indices_C: np.ndarray) -> np.ndarray:
        """The itc score of R images with C texts, float32 (R, C)."""
        self._encode_images(image_indices_R)
        self._encode_texts(text_indices_C)
        image_RxE = np.stack([self._images[int(index)][1] for index in image_indices_R])
        text_CxE = np.stack([self._texts[int(index)][1] for index in text_indices_C])
        # Summed in float64 and rounded, so that equal features tie whatever order BLAS adds them in.
        return _finite((image_RxE.astype(np.float64) @ text_CxE.astype(np.float64).T).astype(np.float32), "itc")

    def _itc(self, pairs_Ux2: np.ndarray) -> np.ndarray:
        out = [
            np.dot(self._images[int(i)][1].astype(np.float64), self._texts[int(t)][1].astype(np.float64))
            for i, t in pairs_Ux2
        ]
        return np.array(out, np.float32)

    def _itm(self, pairs_Ux2: np.ndarray) -> np.ndarray:
        scorer, out = self.scorer, []
        for start in range(0, len(pairs_Ux2), scorer.batch_size):
            chunk = pairs_Ux2[start : start + scorer.batch_size]
            padded = _pad(chunk, scorer.batch_size)
            logits_Bx2 = scorer.functions.match(
                scorer.params,
                np.stack([self._images[int(index)][0] for index in padded[:, 0]]),
                np.stack([self._texts[int(index)][0] for index in padded[:, 1]]),
                np.stack([self._texts[int(index)][2] for index in padded[:, 1]]),
            )
            logits_Bx2 = np.asarray(logits_Bx2, np.float32)[: len(chunk)]
            out.append(logits_Bx2[:, 1] - logits_Bx2[:, 0])
        return np.concatenate(out) if out else np.zeros(0, np.float32)

    def _encode_images(self, indices: np.ndarray) -> None:
        scorer = self.scorer
        missing = [int(index) for index in np.unique(indices) if int(index) not in self._images]
        for start in range(0, len(missing), scorer.batch_size):
            chunk = missing[start : start + scorer.batch_size]
            images_BxHxWx3 = _pad(np.stack([self._picture(index) for index in chunk]), scorer.batch_size)
            encoded = scorer.functions.encode_image(scorer.params, scorer.method_state, images_BxHxWx3)
            tokens_BxTxD, feature_BxE = (np.asarray(x) for x in encoded)
            for row, index in enumerate(chunk):
                self._images[index] = tokens_BxTxD[row], feature_BxE[row]
            scorer.images_encoded += len(chunk)

    def _encode_texts(self, indices: np.ndarray) -> None:
        scorer = self.scorer
        missing = [int(index) for index in np.unique(indices) if int(index) not in self._texts]
        if not missing:
            return
        texts = list(self._text_index)  # in the order of their numbers
        ids_MxL, mask_MxL = scorer.tokenizer.encode([texts[index] for index in missing], scorer.text_length)
        for start in range(0, len(missing), scorer.batch_size):
            chunk = missing[start : start + scorer.batch_size]
            rows = slice(start, start + len(chunk))
            mask_BxL = _pad(mask_MxL[rows], scorer.batch_size)
            encoded = scorer.functions.encode_text(scorer.params, _pad(ids_MxL[rows], scorer.batch_size), mask_BxL)
            tokens_BxLxD, feature_BxE = (np.asarray(x) for x in encoded)
            for row, index in enumerate(chunk):
                self._texts[index] = tokens_BxLxD[row], feature_BxE[row], mask_BxL[row]
            scorer.texts_encoded += len(chunk)

    def _picture(self, index: int) -> np.ndarray:
        size = self.scorer.image_size
        if index == BLANK:
            return np.full((size, size, 3), BLANK_RGB, np.uint8)
        image_HxWx3 = np.asarray(self.eval_set.images[index])
        if image_HxWx3.shape != (size, size, 3) or image_HxWx3.dtype != np.uint8:
            got = f"image {index} of evaluation set {self.eval_set.name!r}: {image_HxWx3.dtype} {image_HxWx3.shape}"
            raise DataError(got, f"uint8 ({size}, {size}, 3)", "give the set and the model the same image_size")
        return image_HxWx3


def _pad(rows_: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last row up to `length` rows (a row of zeros could be an all-masked text)."""
    return np.concatenate([rows_, np.repeat(rows_[-1:], length - len(rows_), axis=0)])


def _finite(scores: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(scores).all():
        got = f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} {name} scores not finite"
        raise DivergedError(got, "finite scores", "evaluate an earlier checkpoint")
    return scores
