"""The picture of a diagnosis of negatives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas_jax.inspect.negatives_found import (
    SHORTCUT,
    Found,
    KindFound,
    headline,
    percent,
    truth_lines,
)

# Okabe and Ito's colours, which colour-blind readers tell apart; lines differ in their dashes too.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
INK, SOFT, GRID = "#202020", "#5a5a5a", "#dddddd"
DPI = 100
WINDOW = 25  # points of a line; more are averaged


def draw_negatives(path: str | os.PathLike[str], found: Found) -> None:
    """Writes a PNG with four panels: P(match), AUC, accuracy in training, and the truth of the
    scenes or, where it is not known, how much of each row is changed.
    """
    rows = len(found.kinds)
    figure = Figure(figsize=(12, 7.8 + 0.3 * rows), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.03, 0.972, "What the negatives teach", fontsize=15, weight="bold", color=INK)
    figure.text(0.03, 0.942, headline(found), fontsize=9.5, color=SOFT, parse_math=False)
    grid = figure.add_gridspec(
        2, 2, left=0.1, right=0.975, top=0.87, bottom=0.13, hspace=0.62, wspace=0.3
    )
    axes = [figure.add_subplot(grid[place // 2, place % 2]) for place in range(4)]
    _match(axes[0], found.kinds)
    _auc(axes[1], found.kinds[1:])
    _training(axes[2], found)
    _truth(axes[3], found)
    for one in axes:
        one.set_axisbelow(True)
        one.tick_params(colors=INK, labelsize=9.5, length=0)
        for name, spine in one.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color("#b0b0b0")
    figure.savefig(path, format="png")


def _head(axes: Axes, text: str, note: str) -> None:
    axes.text(0, 1.13, text, transform=axes.transAxes, fontsize=11, weight="bold", color=INK)
    axes.text(0, 1.045, note, transform=axes.transAxes, fontsize=8.8, color=SOFT)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """One row for each name, the first on top; x from 0 to 1."""
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
    axes.set_yticklabels(names, parse_math=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def _match(axes: Axes, kinds: Sequence[KindFound]) -> None:
    _head(
        axes,
        "How likely the model thinks a match",
        "dot: mean; thick: half of the rows; thin: 90 %",
    )
    _rows(axes, [one.name for one in kinds])
    for row, one in enumerate(kinds):
        if not one.quantiles:
            continue
        low, first, _, third, high = one.quantiles
        colour = COLOURS[row % len(COLOURS)]
        axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
        axes.plot([first, third], [row, row], color=colour, linewidth=6, solid_capstyle="butt")
        axes.plot(
            one.match, row, "o", color=colour, markersize=9, markeredgecolor="white", zorder=4
        )
    axes.set_xlabel("P(match)", color=SOFT, fontsize=9)


def _auc(axes: Axes, kinds: Sequence[KindFound]) -> None:
    _head(
        axes,
        "How well a kind is told apart from true pairs",
        "dotted: chance; a diamond in the shaded part is a shortcut",
    )
    _rows(axes, [one.name for one in kinds])
    axes.axvspan(SHORTCUT, 1.02, color="#f3ede4", zorder=0)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=":")
    style: dict[str, Any] = {"linestyle": "", "markersize": 12, "zorder": 4}
    for row, one in enumerate(kinds):
        axes.plot([one.auc, one.auc_alone], [row, row], color="#b0b0b0", linewidth=1.5)
        axes.plot(one.auc, row, "o", markerfacecolor="white", markeredgecolor=COLOURS[0],
                  markeredgewidth=2, **style)  # fmt: skip
        axes.plot(one.auc_alone, row, "D", color=COLOURS[3], **style | {"markersize": 7})
    for marker, colour, face, label in (
        ("o", COLOURS[0], "white", "picture and caption"),
        ("D", COLOURS[3], COLOURS[3], "the changed side alone"),
    ):
        axes.plot([], [], marker, markeredgecolor=colour, markerfacecolor=face, label=label,
                  markeredgewidth=2, markersize=8)  # fmt: skip
    axes.set_xlabel("AUC", color=SOFT, fontsize=9)
    _legend(axes, 2)


def _training(axes: Axes, found: Found) -> None:
    _head(axes, "Accuracy of the matching loss in training", "share of rows judged right, smoothed")
    axes.set(ylim=(-0.03, 1.03))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    for row, one in enumerate(found.kinds):
        values = found.curves.get(one.name, ())
        if values:
            steps_S, values_S = _averaged(found.steps, values)
            axes.plot(
                steps_S,
                values_S,
                color=COLOURS[row % len(COLOURS)],
                linestyle=DASHES[row % len(DASHES)],
                linewidth=2,
                label=one.name,
            )
    if not found.curves:
        axes.text(0.5, 0.5, "no record of the training", ha="center", color=SOFT)
        axes.set(xticks=[], xlim=(0, 1))
        return
    axes.set_xlabel("step", color=SOFT, fontsize=9)
    _legend(axes, 5)


def _averaged(steps: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """About 2 * WINDOW points at most, each the mean of its neighbours."""
    size = max(1, len(steps) // WINDOW)
    starts = range(0, len(steps), size)
    parts = [np.asarray(values[start : start + size], float) for start in starts]
    means = [np.nanmean(part) if np.isfinite(part).any() else np.nan for part in parts]
    return np.array([steps[min(start + size, len(steps)) - 1] for start in starts]), np.array(means)


def _truth(axes: Axes, found: Found) -> None:
    if found.truth:
        truth = found.truth
        _head(
            axes,
            "What the scenes say of the changed pictures",
            "the generator knows where each shape lies",
        )
        bars = {
            "base rate:\na patch on a\nnamed shape": truth.base_rate,
            "object hit": truth.object_hit,
            "content\nchanged": truth.content_changed,
            "caption\ncontradicted": truth.caption_contradicted,
            "of the shape,\nreplaced": truth.shape_replaced,
        }
        colours = [SOFT, *[COLOURS[0]] * 4]
    else:
        _head(axes, "How much is changed", "share of the patches, or of the tokens")
        bars = {one.name: one.changed for one in found.kinds[1:]}
        colours = [COLOURS[row % len(COLOURS)] for row in range(1, len(found.kinds))]
    _rows(axes, list(bars))
    for row, (share, colour) in enumerate(zip(bars.values(), colours, strict=True)):
        shown = share if np.isfinite(share) else 0.0
        axes.barh(row, shown, height=0.6, color=colour)
        inside = shown > 0.85
        axes.text(shown + (-0.015 if inside else 0.015), row, percent(share), va="center",
                  ha="right" if inside else "left", fontsize=10,
                  color="white" if inside else INK)  # fmt: skip
    beside = found.published_truth
    if beside:
        shares = [share for _, share in truth_lines(beside)[1:]]
        axes.plot(shares, range(1, len(bars)), "D", label="the published form", color=COLOURS[3],
                  markersize=8, linestyle="", markeredgecolor="white")  # fmt: skip
        _legend(axes, 1)
        return
    axes.set_xlabel("share", color=SOFT, fontsize=9)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=2.6,
        columnspacing=1.4,
        labelcolor=INK,
    )
