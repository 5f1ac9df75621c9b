"""A picture of what negative visual augmentation (NVA) does to a few images."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, withStroke

from nas_jax.utils.errors import DataError

PANEL = 192  # pixels of a panel's side, at least
GAP, MARGIN, HEAD, COLUMN_HEAD, CAPTION, LEGEND = 16, 24, 62, 44, 40, 48  # pixels
DPI = 100

REPLACED = "#e6007e"
FRAME = "#ffd400"
INK, SOFT = "#202020", "#5a5a5a"
HEAT = "inferno"
NEVER_SEEN_GREY = 127

TITLE = "How NVA makes a negative image"
SUBTITLE = "The patches that share the object's code are replaced by a neighbouring code."


@dataclass(frozen=True)
class NvaPictures:
    """B images with captions, and what NVA made of them."""

    images_BxHxWx3: np.ndarray  # uint8
    captions: Sequence[str]  # drawn beneath the rows
    # the patch that NVA took as the object, an index into the N patches in row-major order
    object_patch_B: np.ndarray
    replaced_BxN: np.ndarray  # True where the patch got the new code
    # that the object was chosen by; colours span its least and greatest value in an image
    similarity_BxN: np.ndarray
    # uint8, a picture of an example of each image's new code; adds a column
    nearest_Bxhxwx3: np.ndarray | None = None
    # code -> uint8 (p, p, 3), the mean training patch of the code; with `new_code_B` adds a column
    # with the replaced patches drawn as the mean patch of the new code, mid-grey where it has none
    code_patches: Mapping[int, np.ndarray] | None = None
    new_code_B: np.ndarray | None = None  # the code that was put in

    @property
    def columns(self) -> list[str]:
        """What stands above each column."""
        heads = ["picture", "similarity of each patch\n(bright: high)", "replaced patches"]
        if self.code_patches is not None:
            heads.append("the same, with the mean\npatch of the new code")
        if self.nearest_Bxhxwx3 is not None:
            heads.append("an example of\nthe new code")
        return heads


def draw_nva(path: str | os.PathLike[str], given: NvaPictures) -> None:
    """Writes a PNG with a row for each image: picture, similarity with the object patch framed,
    replaced patches. Makes the folder of the PNG.

    Raises DataError on arrays that do not fit each other.
    """
    side, heads = _check(given), given.columns
    sheet = _Sheet(len(given.captions), len(heads), side * -(-PANEL // side))
    sheet.write(MARGIN, 14, TITLE, 13, weight="bold")
    sheet.write(MARGIN, 38, textwrap.fill(SUBTITLE, sheet.width // 7), 9.5, color=SOFT)
    for column, head in enumerate(heads):
        middle, bottom = sheet.left(column) + sheet.panel / 2, HEAD + COLUMN_HEAD - 6
        style = {"va": "bottom", "ha": "center", "linespacing": 1.25}
        sheet.write(middle, bottom, head, 9, **style)
    for row in range(len(given.captions)):
        _draw_row(sheet, given, row, side)
    sheet.legend(grey=_without_patch(given))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # a box stands for the letter
        sheet.figure.savefig(path, format="png", dpi=DPI)


class _Sheet:
    """The figure: panels in rows and columns, and text, at pixels from the top left."""

    def __init__(self, rows: int, columns: int, panel: int):
        """panel: pixels of a panel's side, a whole number for each patch."""
        self.panel = panel
        self.width = 2 * MARGIN + columns * panel + (columns - 1) * GAP
        self.height = HEAD + COLUMN_HEAD + rows * (panel + CAPTION) + LEGEND
        size = (self.width / DPI, self.height / DPI)
        self.figure = Figure(figsize=size, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def left(self, column: int) -> int:
        """Where a column begins."""
        return MARGIN + column * (self.panel + GAP)

    def bottom(self, row: int) -> int:
        """Where the panels of a row end."""
        return HEAD + COLUMN_HEAD + row * (self.panel + CAPTION) + self.panel

    def write(self, x: float, y: float, text: str, size: float, **style) -> None:
        """Text, with its top at y unless `style` says otherwise."""
        given: dict[str, Any] = {"color": INK, "va": "top", "parse_math": False} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, **given)

    def draw(self, row: int, column: int, pixels: np.ndarray) -> Axes:
        """A panel with a picture in it; its axes count its pixels."""
        width, height, panel = self.width, self.height, self.panel
        place = self.left(column) / width, (height - self.bottom(row)) / height
        axes = self.figure.add_axes((*place, panel / width, panel / height))
        axes.set(xlim=(0, panel), ylim=(panel, 0), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="#b0b0b0", linewidth=0.8)
        axes.imshow(pixels, extent=(0, panel, panel, 0), interpolation="nearest")
        return axes

    def legend(self, grey: bool) -> None:
        """What the marks mean; grey: some patches are drawn in it."""
        framed = Patch(
            facecolor="#00000000", edgecolor=FRAME, linewidth=2.5, label="the object patch"
        )
        framed.set_path_effects([withStroke(linewidth=4.0, foreground="black"), Normal()])
        marked = Patch(
            facecolor=REPLACED + "66",
            edgecolor=REPLACED,
            hatch="////",
            label="shares its code, replaced",
        )
        handles = [framed, marked]
        if grey:
            colour = tuple(np.full(3, NEVER_SEEN_GREY) / 255)
            handles.append(Patch(facecolor=colour, label="grey: code without a training patch"))
        self.figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=((MARGIN - 6) / self.width, 8 / self.height),
            ncols=len(handles),
            frameon=False,
            fontsize=9,
            handlelength=1.6,
            handleheight=1.2,
            columnspacing=1.8,
            borderaxespad=0.0,
        )


def _draw_row(sheet: _Sheet, given: NvaPictures, row: int, side: int) -> None:
    """The panels of an image, and its caption."""
    panel, object_patch = sheet.panel, int(given.object_patch_B[row])
    picture = _resize(np.asarray(given.images_BxHxWx3[row]), panel)
    replaced_SxS = np.asarray(given.replaced_BxN[row], bool).reshape(side, side)
    similarity_SxS = np.asarray(given.similarity_BxN[row], np.float64).reshape(side, side)
    sheet.draw(row, 0, picture)
    _frame(sheet.draw(row, 1, _heat(picture, similarity_SxS)), object_patch, side, panel)
    axes = sheet.draw(row, 2, picture)
    _mark(axes, replaced_SxS, panel)
    _frame(axes, object_patch, side, panel)
    if given.code_patches is not None and given.new_code_B is not None:
        patch = given.code_patches.get(int(given.new_code_B[row]))
        axes = sheet.draw(row, 3, _with_patches(picture, replaced_SxS, patch))
        _outline(axes, replaced_SxS, panel)
    if given.nearest_Bxhxwx3 is not None:
        nearest = _resize(np.asarray(given.nearest_Bxhxwx3[row]), panel)
        sheet.draw(row, len(given.columns) - 1, nearest)
    caption = textwrap.shorten(given.captions[row], (sheet.width - 160) // 7, placeholder=" …")
    count, top = int(replaced_SxS.sum()), sheet.bottom(row) + 6
    sheet.write(MARGIN, top, f"“{caption}”", 10, style="italic")
    right, text = sheet.width - MARGIN, f"{count} of {side * side} replaced"
    sheet.write(right, top, text, 9, ha="right", color=SOFT)


def _without_patch(given: NvaPictures) -> bool:
    """Whether some new code has no mean patch."""
    patches, codes_B = given.code_patches, given.new_code_B
    if patches is None or codes_B is None:
        return False
    return any(int(code) not in patches for code in codes_B)


def _check(given: NvaPictures) -> int:
    """Returns the side of the patch grid."""
    images, count = np.asarray(given.images_BxHxWx3), len(given.captions)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        got = f"images {images.dtype} {images.shape}"
        raise DataError(got, "uint8 (B, H, W, 3), B >= 1", "give pixels, not normalised images")
    names = ("object_patch_B", "replaced_BxN", "similarity_BxN")
    arrays = {name: np.asarray(getattr(given, name)) for name in names}
    batch, patches = len(images), arrays["replaced_BxN"].shape[-1]
    side = int(round(patches**0.5))
    shapes = tuple(array.shape for array in arrays.values())
    wanted = ((batch,), (batch, patches), (batch, patches))
    if side * side != patches or (count, shapes) != (batch, wanted):
        got = (
            f"{count} captions, object_patch {shapes[0]}, replaced {shapes[1]}, "
            f"similarity {shapes[2]}"
        )
        raise DataError(
            got, f"{batch} rows, and N patches of a square grid", "leave out the CLS token"
        )
    object_B = arrays["object_patch_B"]
    if object_B.min() < 0 or object_B.max() >= patches:
        got = f"object patches {object_B.tolist()}"
        raise DataError(got, f"0 to {patches - 1}", "count patches without the CLS token")
    if (given.code_patches is None) != (given.new_code_B is None):
        got = f"{'code_patches' if given.new_code_B is None else 'new_code_B'} alone"
        raise DataError(got, "code_patches and new_code_B together", "give both or none")
    return side


def _resize(image_HxWx3: np.ndarray, panel: int) -> np.ndarray:
    """Nearest neighbour to (panel, panel, 3)."""
    height, width = image_HxWx3.shape[:2]
    return image_HxWx3[np.arange(panel) * height // panel][:, np.arange(panel) * width // panel]


def _heat(picture: np.ndarray, similarity_SxS: np.ndarray) -> np.ndarray:
    """The picture in grey under the colours of the similarity."""
    low, high = similarity_SxS.min(), similarity_SxS.max()
    scaled = (similarity_SxS - low) / (high - low) if high > low else np.zeros_like(similarity_SxS)
    colours = _resize((colormaps[HEAT](scaled)[..., :3] * 255).astype(np.uint8), len(picture))
    # less contrast, so that the colours carry
    grey = 60 + 0.6 * picture.mean(axis=2, keepdims=True)
    return (0.3 * grey + 0.7 * colours).astype(np.uint8)


def _with_patches(
    picture: np.ndarray, replaced_SxS: np.ndarray, patch: np.ndarray | None
) -> np.ndarray:
    out, size = picture.copy(), len(picture) // len(replaced_SxS)
    pixels = (
        np.full((size, size, 3), NEVER_SEEN_GREY, np.uint8)
        if patch is None
        else _resize(np.asarray(patch), size)
    )
    for y, x in np.argwhere(replaced_SxS):
        out[y * size : (y + 1) * size, x * size : (x + 1) * size] = pixels
    return out


def _mark(axes: Axes, replaced_SxS: np.ndarray, panel: int) -> None:
    """Tints and hatches the replaced patches."""
    size = panel / len(replaced_SxS)
    for y, x in np.argwhere(replaced_SxS):
        box: dict[str, Any] = {"xy": (x * size, y * size), "width": size, "height": size}
        axes.add_patch(Rectangle(**box, facecolor=REPLACED, alpha=0.4, linewidth=0))
        axes.add_patch(Rectangle(**box, fill=False, edgecolor=REPLACED, linewidth=0, hatch="////"))
    _outline(axes, replaced_SxS, panel)


def _outline(axes: Axes, replaced_SxS: np.ndarray, panel: int) -> None:
    """Lines around each connected group of replaced patches."""
    size = panel / len(replaced_SxS)
    padded = np.pad(replaced_SxS, 1)
    for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        axes.plot(
            [x * size, (x + 1) * size],
            [y * size] * 2,
            color=REPLACED,
            linewidth=2,
            solid_capstyle="projecting",
        )
    for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        axes.plot(
            [x * size] * 2,
            [y * size, (y + 1) * size],
            color=REPLACED,
            linewidth=2,
            solid_capstyle="projecting",
        )


def _frame(axes: Axes, patch: int, side: int, panel: int) -> None:
    """A bright frame with a dark edge, to be seen on any ground."""
    size = panel / side
    y, x = divmod(patch, side)
    for colour, width in (("black", 4.5), (FRAME, 2.5)):
        box = Rectangle(
            (x * size, y * size),
            size,
            size,
            fill=False,
            edgecolor=colour,
            linewidth=width,
            zorder=5,
        )
        box.set_clip_on(False)
        axes.add_patch(box)
