"""Word maps as a picture: for each caption the picture, and two small heat maps a word."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps

from nas_jax.inspect.negatives_picture import SOFT
from nas_jax.inspect.sheet import MARGIN, Sheet, percent, probability, resized
from nas_jax.inspect.words_measure import WHOLE, PictureWords, WordMap

PANEL, PICTURE, GAP = 96, 144, 6  # pixels of a map's side, of a picture's, between maps
A_LINE = 11  # maps beside a picture
SIDE = 84  # pixels for what stands before the maps
HEAD, CAPTION, WORD, FOOT = 92, 32, 22, 72
NUMBER = 16
HEAT = "inferno"


LEGEND = (
    "the greatest value of that map.   peak: the patch most looked at, over an even look.",
    f"{WHOLE}: the token that the match is read off.   % of all: share of the Grad-CAM of what is "
    "shown; words without meaning of their own are not.",
)
ONE_LAYER = f"Of the last fusion layer the match reads {WHOLE} alone: words have no Grad-CAM there."


def draw_words(
    path: str | os.PathLike[str], title: str, found: Sequence[PictureWords], note: str = ""
) -> None:
    """Writes a PNG. title: what was looked at with what; note: the last line of the legend."""
    width = 2 * MARGIN + PICTURE + SIDE + A_LINE * (PANEL + GAP)
    heights = [_height(one) for one in found]
    sheet = Sheet(width, HEAD + sum(heights) + FOOT)
    sheet.head(
        "Where the words look",
        "attention: which patches a word of the caption reads.  "
        "Grad-CAM: the part of it that speaks for a match.",
        title,
    )
    y = HEAD
    for one, height in zip(found, heights, strict=True):
        _block(sheet, y, one)
        y += height
    _legend(sheet, y + 8, note)
    sheet.save(path)


def _height(one: PictureWords) -> int:
    lines = math.ceil(len(one.words) / A_LINE)
    return CAPTION + max(lines * _line_height(), PICTURE + 8) + 18


def _line_height() -> int:
    return WORD + 2 * (PANEL + NUMBER) + 6


def _block(sheet: Sheet, y: int, one: PictureWords) -> None:
    """A picture with its caption above it and its words beside it."""
    right = sheet.width - MARGIN
    sheet.box(MARGIN, y - 4, (right - MARGIN, 1), "#cccccc")
    match = f"P(match) {probability(one.match)}"
    room = right - MARGIN - sheet.width_of(match, 10) - 20
    sheet.write(MARGIN, y + 5, sheet.fitted(f"“{one.caption}”", 10.5, room), 10.5)
    sheet.write(right, y + 5, match, 10, ha="right")
    top = y + CAPTION
    sheet.paste(MARGIN, top + WORD, resized(one.image_HxWx3, PICTURE, PICTURE))
    sheet.write(MARGIN, top + WORD + PICTURE + 4, one.name, 8.5, color=SOFT)
    for number, word in enumerate(one.words):
        line, column = divmod(number, A_LINE)
        x = MARGIN + PICTURE + SIDE + column * (PANEL + GAP)
        start = top + line * _line_height()
        if not column:
            for text, at in (("attention", 0), ("Grad-CAM", PANEL + NUMBER)):
                middle = start + WORD + at + PANEL / 2 - 8
                sheet.write(x - 8, middle, text, 9, ha="right", color=SOFT)
        _word(sheet, x, start, one.image_HxWx3, word)


def _word(sheet: Sheet, x: int, y: int, image_HxWx3: np.ndarray, word: WordMap) -> None:
    """The word above its two maps, each with a number beneath."""
    text = sheet.fitted(word.word, 10, PANEL)
    sheet.write(x + PANEL / 2, y + 2, text, 10, ha="center", weight="bold")
    _map(
        sheet, (x, y + WORD), image_HxWx3, word.attention_SxS, f"peak {word.times_even:.1f} × even"
    )
    weight = f"{percent(word.weight)} of all"
    _map(sheet, (x, y + WORD + PANEL + NUMBER), image_HxWx3, word.grad_cam_SxS, weight)


def _map(
    sheet: Sheet, at: tuple[int, int], image_HxWx3: np.ndarray, map_SxS: np.ndarray, note: str
) -> None:
    """A heat map with a note beneath; the word "none" where there is nothing in it."""
    (x, y), middle = at, at[0] + PANEL / 2
    if map_SxS.max() > 0:
        sheet.paste(x, y, heat(image_HxWx3, map_SxS, PANEL))
        sheet.write(middle, y + PANEL + 1, note, 8, ha="center", color=SOFT)
    else:
        sheet.box(x, y, (PANEL, PANEL), "#f4f4f4")
        sheet.write(middle, y + PANEL / 2 - 7, "none", 8, ha="center", color=SOFT)


def heat(image_HxWx3: np.ndarray, map_SxS: np.ndarray, side: int) -> np.ndarray:
    """The picture in grey under the colours of a map, from 0 to the map's greatest value."""
    top = float(map_SxS.max())
    scaled_SxS = map_SxS / top if top > 0 else np.zeros_like(map_SxS)
    colours = resized((colormaps[HEAT](scaled_SxS)[..., :3] * 255).astype(np.uint8), side, side)
    grey = 60 + 0.6 * resized(image_HxWx3, side, side).mean(axis=2, keepdims=True)
    return (0.35 * grey + 0.65 * colours).astype(np.uint8)


def _legend(sheet: Sheet, y: int, note: str) -> None:
    ramp = (colormaps[HEAT](np.linspace(0, 1, 120))[None, :, :3] * 255).astype(np.uint8)
    sheet.paste(MARGIN + 16, y + 3, resized(ramp, 12, 120))
    sheet.write(MARGIN, y, "0", 9, color=SOFT)
    for number, text in enumerate((*LEGEND, note)):
        sheet.write(MARGIN + 144, y + 17 * number, text, 9, color=SOFT)
