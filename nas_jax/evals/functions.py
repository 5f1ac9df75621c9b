"""A method's scoring functions, compiled, and the model that they score with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from nas_jax.methods.method import Method, MethodState
from nas_jax.parallel.mesh import pin_rows, row_devices
from nas_jax.typing import Array, Params


class TextEncoding(Protocol):
    """What the evaluations need of a tokenizer."""

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> token_ids_BxL int32 and token_mask_BxL bool, cut or padded to L = length."""
        ...


@dataclass(frozen=True)
class ScoringFunctions:
    """The functions of a method that evaluations call on the devices.

    Make them once and reuse them, so that each is compiled once for a shape.
    """

    method: Method  # gives the names of scores, and `compare`
    # (params, state, image_BxHxWx3) -> tokens (B, T, D), or None, and features (B, ...)
    encode_image: Callable[..., Any]
    # (params, token_ids_BxL, token_mask_BxL) -> tokens (B, L, D), or None, and features (B, ...)
    encode_text: Callable[..., Any]
    score: Callable[..., Any]  # see `score_beside`

    @classmethod
    def of(cls, method: Method, image_tokens: str = "method") -> ScoringFunctions:
        """Jitted functions of a method; without pair scores the encoders give no tokens.

        image_tokens: which ones pictures are matched by, see `Method.encode_image`.
        """
        encode_image: Callable[..., Any]
        encode_image = functools.partial(method.encode_image, tokens=image_tokens)
        encode_text: Callable[..., Any] = method.encode_text
        if not method.pair_scores:
            encode_image, encode_text = _features_only(encode_image), _features_only(encode_text)
        return cls(
            method, jax.jit(encode_image), jax.jit(encode_text), jax.jit(score_beside(method))
        )


def _features_only(encode: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs: (None, encode(*inputs)[1])


def score_beside(method: Method) -> Callable[..., dict[str, Array]]:
    """`Method.score` for G pictures out of a batch: (params, image_tokens_BxTxD, image_index_G,
    text_tokens_GxCxLxD, token_mask_GxCxL) -> {name: (G, C)}.

    An index is that of a row in its device's own part of the batch.
    """

    def score(params, image_tokens_BxTxD, image_index_G, text_tokens_GxCxLxD, token_mask_GxCxL):
        seen_GxTxD = _take_near(image_tokens_BxTxD, image_index_G)
        return method.score(params, seen_GxTxD, text_tokens_GxCxLxD, token_mask_GxCxL)

    return score


def _take_near(x: Array, index_G: Array) -> Array:
    """Rows of each device's part of x, so that no row leaves its device."""
    shards = row_devices()
    parts = pin_rows(x.reshape(shards, -1, *x.shape[1:]))
    index = pin_rows(index_G.reshape(shards, -1))
    taken = pin_rows(jax.vmap(lambda rows, index: rows[index])(parts, index))
    return pin_rows(taken.reshape(index_G.shape[0], *x.shape[1:]))


@dataclass(frozen=True)
class ScoredModel:
    """What is evaluated: a method with its weights, and how it reads pictures and texts."""

    functions: ScoringFunctions
    params: Params  # with several processes, whole on each of them
    state: MethodState  # at least the entries of `Method.scoring_state`
    tokenizer: TextEncoding
    image_size: int  # height and width of the pictures, pixels
