"""Hardest and easiest foils as a picture: cards in two columns, in three groups."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from nas_jax.inspect.foils_measure import FoilScored, FoilsFound, headline, marked_changes
from nas_jax.inspect.negatives_picture import COLOURS, GRID, SOFT
from nas_jax.inspect.sheet import MARGIN, Sheet, probability, resized

PICTURE, CARD, CARD_GAP = 144, 610, 26  # pixels: a picture's side, a card's width
ROW, GROUP, HEAD, FOOT = 172, 40, 96, 56
BAR = 9
TRUE, FALSE = COLOURS[0], COLOURS[3]
NOTE = (
    "+ or - on the right: the logit of the caption minus that of the foil. Cards are sorted by it, "
    "as probabilities near 0 and 1 look alike."
)


def draw_foils(
    path: str | os.PathLike[str], found: FoilsFound, images: Sequence[np.ndarray]
) -> None:
    """Writes a PNG. images: of the evaluation set."""
    wrong = found.count - found.right
    groups = [
        (f"Wrong, the surest first ({wrong} in all)", found.wrong, "none is wrong"),
        (f"Right, but only just ({found.right} in all)", found.close, "none is right"),
        ("Right, the surest first", found.sure, "no more are right"),
    ]
    rows = sum(max(1, -(-len(items) // 2)) for _, items, _ in groups)
    sheet = Sheet(2 * (MARGIN + CARD) + CARD_GAP, HEAD + 3 * GROUP + rows * ROW + FOOT)
    sheet.head("Hardest and easiest foils", headline(found), found.run)
    y = HEAD
    for name, items, nothing in groups:
        sheet.box(MARGIN, y, (sheet.width - 2 * MARGIN, 1), "#b0b0b0")
        sheet.write(MARGIN, y + 9, name, 11.5, weight="bold")
        y += GROUP
        if not items:
            sheet.write(MARGIN, y + 8, nothing, 10, color=SOFT)
        for number, item in enumerate(items):
            row, column = divmod(number, 2)
            x = MARGIN + column * (CARD + CARD_GAP)
            _card(sheet, (x, y + row * ROW), item, images[item.image])
        y += max(1, -(-len(items) // 2)) * ROW
    _legend(sheet, y + 4)
    sheet.save(path)


def _card(sheet: Sheet, at: tuple[int, int], item: FoilScored, image_HxWx3: np.ndarray) -> None:
    """A picture with its category, and beside it caption and foil, each with its P(match)."""
    x, y = at
    sheet.paste(x, y, resized(image_HxWx3, PICTURE, PICTURE))
    sheet.box(x, y, (PICTURE, PICTURE), edge="#b0b0b0", linewidth=0.8)
    left, width = x + PICTURE + 16, CARD - PICTURE - 16
    margin = f"{item.margin:+.2f}"
    sheet.write(left, y - 3, sheet.fitted(item.category, 8.5, width - 70), 8.5, color=SOFT)
    sheet.write(x + CARD - 20, y - 3, margin, 8.5, color=SOFT, ha="right")
    for top, name, texts, match, colour in (
        (y + 16, "true", (item.caption, item.foil), item.caption_match, TRUE),
        (y + 82, "foil", (item.foil, item.caption), item.foil_match, FALSE),
    ):
        sheet.write(left, top + 1, name, 9, color=colour, weight="bold")
        text_width = width - 40
        words = marked_changes(*texts)
        end = sheet.paragraph((left + 40, top), words, 10, text_width, most=2, mark=colour)
        _bar(sheet, (left + 40, end + 4), text_width - 60, match, colour)


def _bar(sheet: Sheet, at: tuple[float, float], width: float, share: float, colour: str) -> None:
    """P(match) between 0 and 1, with its number, and a line at one half."""
    x, y = at
    sheet.box(x, y, (width, BAR), GRID)
    sheet.box(x, y, (max(1.0, share * width), BAR), colour)
    sheet.box(x + width / 2 - 0.5, y - 2, (1, BAR + 4), "#707070")
    sheet.write(x + width + 8, y - 3, probability(share), 9)


def _legend(sheet: Sheet, y: float) -> None:
    x: float = MARGIN
    for colour, text in (
        (TRUE, "P(match) of the true caption"),
        (FALSE, "P(match) of the foil"),
    ):
        sheet.box(x, y + 3, (24, BAR), colour)
        sheet.write(x + 32, y, text, 9, color=SOFT)
        x += 62 + sheet.width_of(text, 9)
    sheet.write(MARGIN, y + 20, NOTE, 9, color=SOFT)
    text = "bold, underlined: words that differ.   Line in a bar: one half."
    sheet.write(x, y, text, 9, color=SOFT)
