"""The atlas of a visual dictionary: a row for each of the most used codes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from nas_jax.inspect.dictionary_measure import (
    NEIGHBOURS,
    PATCHES,
    CodeFound,
    DictionaryFound,
    headline,
    source,
)
from nas_jax.inspect.negatives_picture import COLOURS, GRID, SOFT
from nas_jax.inspect.sheet import MARGIN, Sheet, percent, resized

THUMB = 56  # pixels of a patch with its surroundings, about
GAP, LABEL, BETWEEN, ROW_GAP = 6, 92, 22, 12
HEAD, COLUMN_HEAD, FOOT = 90, 26, 44
ONE_COLUMN = 8  # rows that stand in one column
OUTSIDE = 205  # grey of what is beyond the picture's edge


def patch_with_surroundings(image_HxWx3: np.ndarray, patch: int, size: int) -> np.ndarray:
    """The patch of `size` pixels in the middle of a square of twice its side; grey beyond the
    picture.
    """
    around = size // 2
    padded = np.pad(image_HxWx3, ((around, around), (around, around), (0, 0)),
                    constant_values=OUTSIDE)  # fmt: skip
    row, column = divmod(patch, image_HxWx3.shape[1] // size)
    side = size + 2 * around
    return padded[row * size : row * size + side, column * size : column * size + side]


def draw_dictionary(
    path: str | os.PathLike[str],
    found: DictionaryFound,
    images: Sequence[np.ndarray],
    patch_size: int,
) -> None:
    """Writes a PNG. images: those that were read, uint8 (H, W, 3)."""
    crop = patch_size + 2 * (patch_size // 2)
    thumb = crop * max(1, round(THUMB / crop))
    columns = 1 if len(found.most_used) <= ONE_COLUMN else 2
    rows = -(-len(found.most_used) // columns)
    wide = LABEL + (PATCHES + NEIGHBOURS) * (thumb + GAP) + BETWEEN
    width = 2 * MARGIN + columns * wide + (columns - 1) * 2 * BETWEEN
    top = HEAD + COLUMN_HEAD
    height = top + rows * (thumb + ROW_GAP) + FOOT
    sheet = Sheet(max(width, 760), height)
    sheet.head("What the visual dictionary has learned", headline(found), source(found))
    painter = _Painter(sheet, images, patch_size, thumb, found.most_used[0].share)
    for number, code in enumerate(found.most_used):
        column, row = divmod(number, rows)
        x, y = MARGIN + column * (wide + 2 * BETWEEN), top + row * (thumb + ROW_GAP)
        if not row:
            _column_head(sheet, x, HEAD, thumb)
        painter.row(x, y, code)
    foot = height - FOOT + 12
    sheet.box(MARGIN, foot, (13, 13), edge=COLOURS[1], linewidth=2)
    last = found.first + len(found.most_used) - 1
    text = "the patch itself, with its surroundings; grey: beyond the picture's edge"
    text += f".   Codes {found.first} to {last} of {found.used} by their use."
    sheet.write(MARGIN + 22, foot - 1, text, 9, color=SOFT)
    sheet.save(path)


def _column_head(sheet: Sheet, x: int, y: int, thumb: int) -> None:
    sheet.write(x, y, "share of all", 8, color=SOFT)
    sheet.write(x + LABEL, y, "nearest patches, of different pictures", 8, color=SOFT)
    left = x + LABEL + PATCHES * (thumb + GAP) + BETWEEN
    sheet.write(left, y, "nearest codes in use", 8, color=SOFT)


class _Painter:
    """Draws rows."""

    def __init__(
        self,
        sheet: Sheet,
        images: Sequence[np.ndarray],
        patch_size: int,
        thumb: int,
        greatest: float,
    ):
        """thumb: pixels of a patch on the page. greatest: the share that fills a bar."""
        self.sheet, self.images, self.greatest = sheet, images, greatest
        self.patch_size, self.thumb = patch_size, thumb

    def row(self, x: int, y: int, code: CodeFound) -> None:
        """A code, from its top left."""
        sheet, thumb, middle = self.sheet, self.thumb, y + self.thumb / 2
        sheet.write(x, middle - 22, f"code {code.code}", 8.5, weight="bold")
        sheet.write(x, middle - 6, percent(code.share), 8.5)
        long = LABEL - 18
        sheet.box(x, middle + 12, (long, 7), GRID)
        sheet.box(x, middle + 12, (max(1.0, long * code.share / self.greatest), 7), COLOURS[0])
        for number, patch in enumerate(code.patches):
            self.patch(x + LABEL + number * (thumb + GAP), y, patch)
        left = x + LABEL + PATCHES * (thumb + GAP) + BETWEEN
        for number, (other, patch) in enumerate(
            zip(code.neighbours, code.neighbour_patches, strict=True)
        ):
            at = left + number * (thumb + GAP)
            self.patch(at, y, patch)
            wide = sheet.width_of(str(other), 7.5)
            sheet.box(at, y + thumb - 13, (wide + 6, 13), "white", alpha=0.85)
            sheet.write(at + 3, y + thumb - 12, str(other), 7.5)

    def patch(self, x: int, y: int, patch: tuple[int, int]) -> None:
        """A patch with its surroundings and a frame around it."""
        pixels = patch_with_surroundings(self.images[patch[0]], patch[1], self.patch_size)
        self.sheet.paste(x, y, resized(pixels, self.thumb, self.thumb))
        inner = self.thumb * self.patch_size / len(pixels)
        start = (self.thumb - inner) / 2
        for colour, line in (("black", 2.4), (COLOURS[1], 1.2)):
            self.sheet.box(x + start, y + start, (inner, inner), edge=colour, linewidth=line)
