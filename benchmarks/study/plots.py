"""The picture of a study: each variant's numbers, seed by seed, with the interval of their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.study.plan import BASELINE, Preset
from benchmarks.study.records import Record
from benchmarks.study.statistics import mean_over_seeds

# Okabe and Ito's blue and orange, which colour-blind readers tell apart
MEAN, SEED, INK, SOFT, GRID = "#0072b2", "#e69f00", "#202020", "#5a5a5a", "#dddddd"
LEAST_RANGE = 10.0  # percentage points of a panel: less would make noise look like news
COLUMNS, WIDTH, ROW, GAP = 4, 3.1, 0.34, 0.85  # panels in a row; inches


def draw(path: Path, preset: Preset, variants: Mapping[str, Mapping[int, Record]]) -> None:
    """Writes a PNG with one panel a metric that some run has, and one row a variant."""
    measured = {key for runs in variants.values() for one in runs.values() for key in one.metrics}
    metrics = [(key, title) for key, title in preset.metrics.items() if key in measured]
    lines = math.ceil(len(metrics) / COLUMNS)
    rows = ROW * len(variants)
    height = 0.75 + lines * (GAP + rows)
    figure = Figure(figsize=(1.4 + WIDTH * COLUMNS, height), dpi=90, facecolor="white")
    FigureCanvasAgg(figure)
    text = "bar: mean over seeds and its 95 % interval; points: seeds; dotted: albef's mean"
    figure.text(0.01, 1 - 0.3 / height, text, fontsize=10, color=SOFT)
    axes = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=1.35 / (1.4 + WIDTH * COLUMNS), right=0.985, wspace=0.16, hspace=GAP / rows,
        top=1 - 0.75 / height, bottom=0.35 / height,
    )  # fmt: skip
    for place, panel in enumerate(axes.flat):
        if place >= len(metrics):
            panel.set_visible(False)
            continue
        _panel(panel, *metrics[place], variants)
    figure.savefig(path, format="png")


def _panel(panel, key: str, title: str, variants: Mapping[str, Mapping[int, Record]]) -> None:
    panel.set_title(title, fontsize=11, color=INK, loc="left")
    panel.set(ylim=(len(variants) - 0.4, -0.6), yticks=range(len(variants)))
    panel.set_yticklabels(variants, parse_math=False)
    for row, runs in enumerate(variants.values()):
        values = [one.metrics[key] for one in runs.values() if key in one.metrics]
        if not values:
            continue
        found = mean_over_seeds(values)
        if math.isfinite(found.low):
            panel.plot([found.low, found.high], [row, row], color=MEAN, linewidth=5, alpha=0.45,
                       solid_capstyle="butt")  # fmt: skip
        panel.plot(values, [row] * len(values), "o", color=SEED, markersize=5, zorder=3,
                   markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
        panel.plot(found.mean, row, "|", color=MEAN, markersize=16, markeredgewidth=3, zorder=4)
    base = [one.metrics[key] for one in variants.get(BASELINE, {}).values() if key in one.metrics]
    if base:
        panel.axvline(sum(base) / len(base), color=INK, linewidth=1, linestyle=":")
    low, high = panel.get_xlim()
    missing = max(0.0, LEAST_RANGE - (high - low)) / 2
    # an interval of few seeds may be longer than all there is
    panel.set_xlim(max(low - missing, -3.0), min(high + missing, 103.0))
    panel.grid(axis="x", color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=INK, labelsize=9, length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
