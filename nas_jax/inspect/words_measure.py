"""Where each word of a caption looks in its picture, as numbers: the attention of the fusion
encoder, and Grad-CAM of the match logit on it (`models/attention_maps.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.data.text_ops import FUNCTION_WORDS
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.inspect.negatives_found import probability_of
from nas_jax.methods.match_map import MIDDLE, check_fusion, fusion_layer, match_map
from nas_jax.methods.method import Method, MethodState
from nas_jax.models.attention_maps import grad_cam
from nas_jax.typing import Array, Params, Vocabulary
from nas_jax.utils.errors import ConfigError

WHOLE = "[CLS]"  # the token that the match is read off


class Looks(NamedTuple):
    """What the fusion encoder makes of pictures and captions. T: [CLS], then the patches."""

    score_B: Array  # logit of match minus that of no match
    attention_BxLxT: Array  # probabilities, the mean over heads
    grad_cam_BxLxT: Array  # of the logit of match


class Word(NamedTuple):
    """A word of a caption, or WHOLE."""

    text: str
    positions: tuple[int, ...]  # of its tokens, [CLS] is 0


@dataclass(frozen=True)
class WordMap:
    """Where a word looks. S: patches of a side."""

    word: str
    attention_SxS: np.ndarray  # the mean probability of its tokens
    grad_cam_SxS: np.ndarray  # the mean of its tokens
    times_even: float  # the greatest attention to a patch, over that of a word that looks evenly
    weight: float  # share of the caption's Grad-CAM that is this word's; NaN where there is none


@dataclass(frozen=True)
class PictureWords:
    """A picture and a caption with the maps of its words."""

    name: str
    image_HxWx3: np.ndarray
    caption: str
    match: float  # P(match)
    words: tuple[WordMap, ...]  # WHOLE first


@dataclass(frozen=True)
class Asked:
    """A picture and a caption to look at."""

    name: str
    image_HxWx3: np.ndarray  # uint8, of the model's size
    caption: str  # as the model reads it


def looks(
    method: Method,
    params: Params,
    state: MethodState,
    image_BxHxWx3: Array,
    text: tuple,
    layer: int = MIDDLE,
) -> Looks:
    """One fusion layer's view of captions. text: token_ids_BxL, token_mask_BxL; layer: see
    `match_map`.

    Raises ConfigError where the method has no fusion encoder, or no such layer.
    """
    check_fusion(method)
    ids_BxL, mask_BxL = text
    image_BxTxD, _ = method.encode_image(params, state, image_BxHxWx3)
    text_BxLxD, _ = method.encode_text(params, ids_BxL, mask_BxL)
    maps = match_map(method, params, (text_BxLxD, mask_BxL), image_BxTxD, layer)
    probabilities_BxHxLxT, gradient_BxHxLxT = (one.astype(jnp.float32) for one in maps)
    score = method.score(params, image_BxTxD, text_BxLxD[:, None], mask_BxL[:, None])["itm"]
    cam_BxLxT = grad_cam(probabilities_BxHxLxT, gradient_BxHxLxT)
    return Looks(score[:, 0].astype(jnp.float32), probabilities_BxHxLxT.mean(1), cam_BxLxT)


def gradient_reaches_words(method: Method, layer: int = MIDDLE) -> bool:
    """Whether words can have a Grad-CAM: of the last layer the match reads [CLS] alone."""
    return fusion_layer(method, layer) < method.network.config.fusion_layers - 1


def all_words(
    text: str, ids_L: np.ndarray, spans: Sequence[tuple[int, int]], vocabulary: Vocabulary
) -> list[Word]:
    """The words of a text.

    ids: of its tokens, [CLS] first. spans: where the tokens after [CLS] stand in the text.
    """
    found: list[tuple[list[int], int, int]] = []
    for position, (start, end) in enumerate(spans[: len(ids_L) - 1], 1):
        token = int(ids_L[position])
        if token in (vocabulary.pad, vocabulary.sep):
            break
        if found and vocabulary.continuation_V[token]:
            positions, first, _ = found[-1]
            found[-1] = ([*positions, position], first, end)
        else:
            found.append(([position], start, end))
    return [Word(text[first:end].strip(), tuple(places)) for places, first, end in found]


def content_words(words: Sequence[Word]) -> list[Word]:
    """Those that carry meaning, or all where none does: with a letter or digit, and none of
    FUNCTION_WORDS.
    """

    def has_meaning(text: str) -> bool:
        return any(map(str.isalnum, text)) and text.lower() not in FUNCTION_WORDS

    return [word for word in words if has_meaning(word.text)] or list(words)


def word_map(word: Word, attention_LxT: np.ndarray, grad_cam_LxT: np.ndarray) -> WordMap:
    """The means over the tokens of a word; without [CLS], which shows no place. The weight is left
    to `word_maps`.
    """
    positions = list(word.positions)
    attention_T, grad_cam_T = (one[positions].mean(0) for one in (attention_LxT, grad_cam_LxT))
    side = round((len(attention_T) - 1) ** 0.5)
    attention_SxS, grad_cam_SxS = (one[1:].reshape(side, side) for one in (attention_T, grad_cam_T))
    times_even = float(attention_T[1:].max() * len(attention_T))
    return WordMap(word.text, attention_SxS, grad_cam_SxS, times_even, float("nan"))


def word_maps(words: Sequence[Word], seen: Looks, row: int) -> tuple[WordMap, ...]:
    """The maps of some words of caption `row`; weights are shares of what these words have."""
    attention_LxT = np.asarray(seen.attention_BxLxT[row])
    grad_cam_LxT = np.asarray(seen.grad_cam_BxLxT[row])
    maps = [word_map(word, attention_LxT, grad_cam_LxT) for word in words]
    total = sum(float(one.grad_cam_SxS.sum()) for one in maps)
    return tuple(
        WordMap(
            *(one.word, one.attention_SxS, one.grad_cam_SxS, one.times_even),
            float(one.grad_cam_SxS.sum()) / total if total > 0 else float("nan"),
        )
        for one in maps
    )


def look_at(
    method: Method,
    arrays: tuple[Params, MethodState],
    tokenizer: TextTokenizer,
    asked: Sequence[Asked],
    text_length: int,
    layer: int = MIDDLE,
) -> list[PictureWords]:
    """The maps of all content words of some captions. layer: see `match_map`.

    Raises ConfigError: a method without a fusion encoder, a caption without a word, or with more
    tokens than `text_length`.
    """
    check_fusion(method)
    for one in asked:
        count = tokenizer.token_count(one.caption)
        if not one.caption.strip() or count > text_length:
            got = f"caption {one.caption!r} of {count} tokens"
            remedy = "give some words" if not one.caption.strip() else "shorten the caption"
            raise ConfigError(got, f"words in at most {text_length} tokens", remedy)
    captions = [one.caption for one in asked]
    ids_BxL, mask_BxL = tokenizer.encode(captions, text_length)
    images_BxHxWx3 = np.stack([one.image_HxWx3 for one in asked])
    read = jax.jit(
        lambda params, state, *inputs: looks(method, params, state, inputs[0], inputs[1:], layer)
    )
    seen = Looks(*jax.device_get(read(*arrays, images_BxHxWx3, ids_BxL, mask_BxL)))
    match_B = probability_of(seen.score_B)
    found = []
    for row, one in enumerate(asked):
        spans = tokenizer.spans(one.caption)
        words = content_words(
            all_words(one.caption, ids_BxL[row], spans, method.setting.vocabulary)
        )
        maps = word_maps([Word(WHOLE, (0,)), *words], seen, row)
        found.append(
            PictureWords(one.name, one.image_HxWx3, one.caption, float(match_B[row]), maps)
        )
    return found


def numbers(found: Sequence[PictureWords]) -> list[dict[str, Any]]:
    """For JSON."""
    return [
        {
            "picture": one.name,
            "caption": one.caption,
            "match": one.match,
            "words": [
                {
                    "word": word.word,
                    "times_even": word.times_even,
                    "weight": word.weight if np.isfinite(word.weight) else None,
                    "attention": word.attention_SxS.tolist(),
                    "grad_cam": word.grad_cam_SxS.tolist(),
                }
                for word in one.words
            ],
        }
        for one in found
    ]
