"""A page drawn at pixels from its top left: pictures, boxes, and text that fits its place."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import IdentityTransform

from nas_jax.inspect.negatives_picture import DPI, INK, SOFT

MARGIN = 24  # pixels
LINE = 1.45  # height of a line of text over its size
# in this order; those that the machine has are asked for letters that the first one lacks
FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "PingFang SC",
)

Word = tuple[str, bool]
"""A word, and whether it is marked."""


@functools.cache
def fonts() -> list[str]:
    """Those of FONTS that are there."""
    there = set(font_manager.get_font_names())
    return [name for name in FONTS if name in there]


class Sheet:
    """A white page; x and y count pixels from the top left, sizes of text are points."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self._pixels = np.full((height, width, 3), 255, np.uint8)
        self._figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)

    def head(self, title: str, *lines: str) -> None:
        """The title, and lines beneath it."""
        self.write(MARGIN, 14, title, 15, weight="bold")
        for number, line in enumerate(lines):
            self.write(MARGIN, 44 + 19 * number, line, 9.5, color=SOFT)

    def paste(self, x: int, y: int, pixels_HxWx3: np.ndarray) -> None:
        """A picture, pixel by pixel; what reaches over the page is cut."""
        height, width = self._pixels[y:, x:].shape[:2]
        part = pixels_HxWx3[:height, :width]
        self._pixels[y : y + len(part), x : x + part.shape[1]] = part

    def box(
        self, x: float, y: float, size: tuple[float, float], fill: str = "", edge: str = "", **style
    ) -> None:
        """A rectangle of (width, height), over the pictures."""
        bottom = self.height - y - size[1]
        style = {"facecolor": fill or "none", "edgecolor": edge or "none"} | style
        one = Rectangle((x, bottom), *size, transform=IdentityTransform(), **style)
        self._figure.add_artist(one)

    def write(self, x: float, y: float, text: str, size: float, **style) -> None:
        """Text, with its top at y unless `style` says otherwise."""
        own: dict[str, Any] = {"color": INK, "va": "top", "parse_math": False, "family": fonts()}
        self._figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, **own | style)

    def width_of(self, text: str, size: float, weight: str = "normal") -> float:
        """Pixels."""
        font = font_manager.FontProperties(family=fonts(), size=size, weight=weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that no font has: boxes are drawn for them
            return self._canvas.get_renderer().get_text_width_height_descent(text, font, False)[0]

    def fitted(self, text: str, size: float, width: float) -> str:
        """The text, or as much of its beginning as is not wider, with an ellipsis."""
        if self.width_of(text, size) <= width:
            return text
        kept = _most(text, lambda part: self.width_of(part.rstrip() + "…", size) <= width)
        return text[:kept].rstrip() + "…"

    def lines(
        self, words: Sequence[Word], size: float, width: float, most: int
    ) -> list[list[Word]]:
        """Words in at most `most` lines that are not wider; an ellipsis stands for the rest.

        A word that is wider than a line is cut into pieces, as texts without blanks are one word.
        """
        found: list[list[Word]] = [[]]
        for piece in (piece for word in words for piece in self._pieces(word, size, width)):
            if self._line_width([*found[-1], piece], size) > width and found[-1]:
                if len(found) == most:
                    found[-1] = self._with_ellipsis(found[-1], size, width)
                    return found
                found.append([])
            found[-1].append(piece)
        return found

    def _pieces(self, word: Word, size: float, width: float) -> Iterator[Word]:
        """A word, or the parts of it that are not wider."""
        rest, marked = word
        while rest:
            most = _most(rest, lambda part: self._word_width((part, marked), size) <= width)
            yield rest[: max(most, 1)], marked
            rest = rest[max(most, 1) :]

    def _with_ellipsis(self, line: list[Word], size: float, width: float) -> list[Word]:
        ended = [*line, ("…", False)]
        while len(ended) > 2 and self._line_width(ended, size) > width:
            ended.pop(-2)
        return ended

    def _line_width(self, line: Sequence[Word], size: float) -> float:
        return sum(self._word_width(word, size) + self._blank(size) for word in line)

    def _blank(self, size: float) -> float:
        return self.width_of("n n", size) - self.width_of("nn", size)

    def _word_width(self, word: Word, size: float) -> float:
        return self.width_of(word[0], size, "bold" if word[1] else "normal")

    def paragraph(
        self,
        at: tuple[float, float],
        words: Sequence[Word],
        size: float,
        width: float,
        most: int = 2,
        mark: str = INK,
    ) -> float:
        """Writes words in lines, those that are marked bold and underlined in the colour `mark`.

        at: x, y. Returns where the next line would begin.
        """
        (left, y), blank = at, self._blank(size)
        for line in self.lines(words, size, width, most):
            x = left
            for word, marked in line:
                wide = self._word_width((word, marked), size)
                style = {"weight": "bold", "color": mark} if marked else {}
                self.write(x, y, word, size, **style)
                if marked:
                    self.box(x, y + size * DPI / 72 * 1.12 + 1, (wide, 1.4), mark)
                x += wide + blank
            y += size * DPI / 72 * LINE
        return y

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG."""
        self._figure.figimage(self._pixels, zorder=-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # see `width_of`
            self._figure.savefig(path, format="png")


def _most(text: str, fits: Callable[[str], bool]) -> int:
    """How many letters of a text fit; 0 where none does."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    return low


def resized(image_HxWx3: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest neighbour, so that pixels stay pixels."""
    rows = np.arange(height) * image_HxWx3.shape[0] // height
    columns = np.arange(width) * image_HxWx3.shape[1] // width
    return image_HxWx3[rows][:, columns]


def percent(share: float) -> str:
    """0.123 -> "12 %", 0.0123 -> "1.2 %", 0.000123 -> "0.012 %"."""
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def probability(share: float) -> str:
    """With two digits, and with more where it is nearly 0 or 1."""
    text = f"{share:.2f}"
    if text in ("0.00", "1.00"):
        text = f"{share:.4f}"
    return {"0.0000": "<0.0001", "1.0000": ">0.9999"}.get(text, text)
