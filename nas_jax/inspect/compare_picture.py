"""The picture of a comparison: each curve of a run over the band in which it agrees."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas_jax.inspect.curves import Entries
from nas_jax.inspect.departures import Verdict
from nas_jax.inspect.negatives_picture import COLOURS, DPI, GRID, INK, SOFT
from nas_jax.inspect.references import Reference

COLUMNS, PANELS = 3, 15
RUN, BAND, EDGE = COLOURS[0], "#d9d9d9", COLOURS[3]


def draw_comparison(
    path: str | os.PathLike[str],
    run: Entries,
    references: Sequence[Reference],
    verdicts: Sequence[Verdict],
) -> None:
    """Writes a PNG with a panel for each metric, PANELS at most: departures, then the training's
    curves, then evaluations.
    """
    shown = sorted(verdicts, key=lambda one: (one.departure is None, one.evaluation))[:PANELS]
    rows = math.ceil(len(shown) / COLUMNS)
    height = 1.6 + 2.3 * rows
    figure = Figure(figsize=(12, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    seeds = f"{len(references)} reference{'s' if len(references) > 1 else ''}"
    hidden = len(verdicts) - len(shown)
    left_out = f"; {hidden} metrics not shown" if hidden else ""
    name = os.path.basename(os.path.normpath(run.name))
    figure.text(0.06, 1 - 0.32 / height, name, fontsize=14, weight="bold", color=INK,
                parse_math=False)  # fmt: skip
    note = f"blue: the run; grey: the mean of {seeds} and what it tolerates; dashed: a departure"
    figure.text(0.06, 1 - 0.6 / height, note + left_out, fontsize=9.5, color=SOFT)
    grid = figure.add_gridspec(
        rows, COLUMNS, left=0.06, right=0.985, top=1 - 1.3 / height, bottom=0.45 / height,
        hspace=0.5, wspace=0.22,
    )  # fmt: skip
    for place, one in enumerate(shown):
        _panel(figure.add_subplot(grid[place // COLUMNS, place % COLUMNS]), one)
    figure.savefig(path, format="png")


def _panel(axes: Axes, one: Verdict) -> None:
    low_P, high_P = one.centre_P - one.tolerance_P, one.centre_P + one.tolerance_P
    steps_P, dot = one.run.steps_P, "o" if len(one.centre_P) < 3 else ""
    if dot:  # a band needs two points
        errors = one.tolerance_P
        axes.errorbar(steps_P, one.centre_P, errors, color="#a0a0a0", fmt="_", linewidth=6)
    axes.fill_between(steps_P, low_P, high_P, color=BAND, linewidth=0)
    axes.plot(steps_P, one.centre_P, color="#8a8a8a", linewidth=1, marker=dot, markersize=3)
    values_P = np.where(np.isfinite(one.run.values_P), one.run.values_P, np.nan)
    axes.plot(steps_P, values_P, color=RUN, linewidth=1.6, marker=dot, markersize=5)
    said = f"agrees to step {one.compared_to}" if one.enough else "too few entries to tell"
    first = one.first_step
    if first is not None:
        said = f"departs at step {first}"
        axes.axvline(first, color=EDGE, linewidth=1.2, linestyle="--")
    axes.set_title(one.metric, fontsize=10, color=INK, loc="left", parse_math=False, pad=16)
    axes.text(0, 1.03, said, transform=axes.transAxes, fontsize=8.5,
              color=EDGE if one.departure else SOFT)  # fmt: skip
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.7)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#b0b0b0")
