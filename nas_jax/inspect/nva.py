"""A picture of what negative visual augmentation (NVA) does to a few images."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

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


def draw_nva(
    path: str | os.PathLike[str],
    images_BxHxWx3: np.ndarray,
    captions: Sequence[str],
    object_patch_B: np.ndarray,
    replaced_BxN: np.ndarray,
    similarity_BxN: np.ndarray,
    nearest_Bxhxwx3: np.ndarray | None = None,
    code_patches: Mapping[int, np.ndarray] | None = None,
    new_code_B: np.ndarray | None = None,
) -> None:
    """Writes a PNG, a row an image: picture, similarity with the object patch, replaced patches.

    The object patch is framed.

    Args:
      path: the PNG; its folder is made.
      images_BxHxWx3: uint8 images.
      captions: B captions, drawn beneath the rows.
      object_patch_B: the patch that NVA took as the object, an index into the N patches in
      row-major order.
      replaced_BxN: True where the patch got the new code.
      similarity_BxN: similarity that the object was chosen by; colours span its least and greatest
      value in an image.
      nearest_Bxhxwx3: uint8, a picture of an example of each image's new code; adds a column.
      code_patches: code -> uint8 (p, p, 3), the mean training patch of the code; with `new_code_B`
        adds a column with the replaced patches drawn as the mean patch of the new code, mid-grey
        where the code has none.
      new_code_B: the code that was put in.

    Raises:
      DataError: arrays that do not fit each other.
    """
    images_BxHxWx3 = np.asarray(images_BxHxWx3)
    replaced_BxN, similarity_BxN = (
        np.asarray(replaced_BxN, bool),
        np.asarray(similarity_BxN, np.float64),
    )
    object_patch_B = np.asarray(object_patch_B)
    side = _check(images_BxHxWx3, captions, object_patch_B, replaced_BxN, similarity_BxN)
    if (code_patches is None) != (new_code_B is None):
        got = f"{'code_patches' if new_code_B is None else 'new_code_B'} alone"
        raise DataError(got, "code_patches and new_code_B together", "give both or none")

    heads = ["picture", "similarity of each patch\n(bright: high)", "replaced patches"]
    heads += ["the same, with the mean\npatch of the new code"] if code_patches is not None else []
    heads += ["an example of\nthe new code"] if nearest_Bxhxwx3 is not None else []
    rows, columns = len(images_BxHxWx3), len(heads)
    panel = side * -(-PANEL // side)  # whole pixels a patch
    width = 2 * MARGIN + columns * panel + (columns - 1) * GAP
    height = HEAD + COLUMN_HEAD + rows * (panel + CAPTION) + LEGEND
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float, **style) -> None:
        """Text at pixels from the top left."""
        figure.text(
            x / width,
            1 - y / height,
            text,
            fontsize=size,
            parse_math=False,
            **{"color": INK, **style},
        )

    def panel_at(row: int, column: int) -> Axes:
        left = MARGIN + column * (panel + GAP)
        bottom = height - (HEAD + COLUMN_HEAD + row * (panel + CAPTION) + panel)
        axes = figure.add_axes((left / width, bottom / height, panel / width, panel / height))
        axes.set(xlim=(0, panel), ylim=(panel, 0), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="#b0b0b0", linewidth=0.8)
        return axes

    write(MARGIN, 14, TITLE, 13, va="top", weight="bold")
    write(MARGIN, 38, textwrap.fill(SUBTITLE, width // 7), 9.5, va="top", color=SOFT)
    for column, head in enumerate(heads):
        middle = MARGIN + column * (panel + GAP) + panel / 2
        write(middle, HEAD + COLUMN_HEAD - 6, head, 9, va="bottom", ha="center", linespacing=1.25)

    grey_seen = False
    for row in range(rows):
        picture, where = _resize(images_BxHxWx3[row], panel), int(object_patch_B[row])
        replaced_SxS = replaced_BxN[row].reshape(side, side)
        drawn = [picture, _heat(picture, similarity_BxN[row].reshape(side, side)), picture]
        if code_patches is not None:
            patch = code_patches.get(int(new_code_B[row]))
            grey_seen |= patch is None
            drawn.append(_with_patches(picture, replaced_SxS, patch))
        if nearest_Bxhxwx3 is not None:
            drawn.append(_resize(np.asarray(nearest_Bxhxwx3[row]), panel))
        for column, pixels in enumerate(drawn):
            axes = panel_at(row, column)
            axes.imshow(pixels, extent=(0, panel, panel, 0), interpolation="nearest")
            if column == 1:
                _frame(axes, where, side, panel)
            if column == 2:
                _mark(axes, replaced_SxS, panel)
                _frame(axes, where, side, panel)
            if column == 3 and code_patches is not None:
                _outline(axes, replaced_SxS, panel)
        caption = textwrap.shorten(captions[row], (width - 160) // 7, placeholder=" …")
        count = int(replaced_SxS.sum())
        top = HEAD + COLUMN_HEAD + row * (panel + CAPTION) + panel + 6
        write(MARGIN, top, f"“{caption}”", 10, va="top", style="italic")
        write(
            width - MARGIN,
            top,
            f"{count} of {side * side} replaced",
            9,
            va="top",
            ha="right",
            color=SOFT,
        )

    handles = [
        Patch(facecolor="#00000000", edgecolor=FRAME, linewidth=2.5, label="the object patch"),
        Patch(
            facecolor=REPLACED + "66",
            edgecolor=REPLACED,
            hatch="////",
            label="shares its code, replaced",
        ),
    ]
    handles[0].set_path_effects([withStroke(linewidth=4.0, foreground="black"), Normal()])
    if grey_seen:
        grey = np.full(3, NEVER_SEEN_GREY) / 255
        handles.append(Patch(facecolor=tuple(grey), label="grey: code without a training patch"))
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=((MARGIN - 6) / width, 8 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1.6,
        handleheight=1.2,
        columnspacing=1.8,
        borderaxespad=0.0,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)


def _check(images, captions, object_patch_B, replaced_BxN, similarity_BxN) -> int:
    """Returns the side of the patch grid."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        got = f"images {images.dtype} {images.shape}"
        raise DataError(got, "uint8 (B, H, W, 3), B >= 1", "give pixels, not normalised images")
    batch, patches = len(images), replaced_BxN.shape[-1]
    side = int(round(patches**0.5))
    shapes = (len(captions), object_patch_B.shape, replaced_BxN.shape, similarity_BxN.shape)
    if side * side != patches or shapes != (batch, (batch,), (batch, patches), (batch, patches)):
        got = (
            f"{shapes[0]} captions, object_patch {shapes[1]}, replaced {shapes[2]}, "
            f"similarity {shapes[3]}"
        )
        raise DataError(
            got, f"{batch} rows, and N patches of a square grid", "leave out the CLS token"
        )
    if object_patch_B.min() < 0 or object_patch_B.max() >= patches:
        got = f"object patches {object_patch_B.tolist()}"
        raise DataError(got, f"0 to {patches - 1}", "count patches without the CLS token")
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
        box = {"xy": (x * size, y * size), "width": size, "height": size}
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
