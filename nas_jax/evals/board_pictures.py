"""Bars and radars of several models, as SVG that needs nothing else.

Colours are those of Okabe and Ito, which people who see colours differently can tell apart; each
model also has a shape.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from nas_jax.evals.metrics import Metric

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7a00", "#444444")
MOST = len(COLOURS)  # models that a picture shows
_CHANCE = 'stroke="#c0392b" stroke-dasharray="3 2"'

Rows = Mapping[str, Sequence[Metric | None]]
"""Part -> the number of each model; None: it has none."""


def key(names: Sequence[str]) -> str:
    """Which colour and shape is whose."""
    lines = [
        f'<svg width="{14 + 7.4 * len(name):.0f}" height="18">{_mark(index, 7, 9)}'
        f'<text x="16" y="13" font-size="13">{html.escape(name)}</text></svg>'
        for index, name in enumerate(names)
    ]
    return f"<p>{' '.join(lines)}</p>"


def _mark(index: int, x: float, y: float, title: str = "") -> str:
    """A model's mark: circle, square, diamond, triangle, and so on again."""
    colour, r = COLOURS[index % MOST], 4.5
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"',
        f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"',
        f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l-{r + 1} {r + 1}l-{r + 1} -{r + 1}z"',
        f'<path d="M{x:.1f} {y - r:.1f}l{r} {2 * r}h-{2 * r}z"',
    )
    inner = f"<title>{html.escape(title)}</title>" if title else ""
    return f'{shapes[index % len(shapes)]} fill="{colour}">{inner}</{_tag(shapes, index)}>'


def _tag(shapes: Sequence[str], index: int) -> str:
    return shapes[index % len(shapes)][1:].split(" ")[0]


def bars(rows: Rows, chance: Mapping[str, float]) -> str:
    """Each part a block of lines, one a model: its mark at the value, with the interval."""
    left, width, step, gap = 190, 420, 15, 10
    y, parts = 24.0, []

    def at(value: float) -> float:
        return left + width * min(max(value, 0.0), 100.0) / 100

    for part, metrics in rows.items():
        top = y
        for index, metric in enumerate(metrics):
            if metric is not None:
                parts.append(_line(index, metric, at, y + step / 2))
            y += step
        parts.append(
            f'<text x="{left - 10}" y="{(top + y) / 2 + 4:.1f}" text-anchor="end" font-size="13">'
            f"{html.escape(part)}</text>"
        )
        x = at(chance[part])
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{y:.1f}" {_CHANCE}/>')
        y += gap
    grid = [
        f'<line x1="{at(value):.1f}" x2="{at(value):.1f}" y1="18" y2="{y:.1f}" stroke="#e5e5e5"/>'
        f'<text x="{at(value):.1f}" y="12" text-anchor="middle" font-size="11" fill="#777">'
        f"{value}</text>"
        for value in range(0, 101, 20)
    ]
    size = f'width="{left + width + 60}" height="{y:.0f}"'
    return f'<svg {size} role="img">{"".join(grid + parts)}</svg>'


def _line(index: int, metric: Metric, at, y: float) -> str:
    colour, words = COLOURS[index % MOST], f"{metric.value:.1f}"
    low, high = metric.low, metric.high
    whisker = ""
    if not math.isnan(low):
        words += f" ({low:.1f} to {high:.1f})"
        whisker = (
            f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
    number = (
        f'<text x="{at(max(metric.value, 0 if math.isnan(high) else high)) + 8:.1f}" '
        f'y="{y + 4}" font-size="11" fill="#555">{metric.value:.1f}</text>'
    )
    return whisker + _mark(index, at(metric.value), y, words) + number


def radar(rows: Rows, chance: Mapping[str, float]) -> str:
    """A spoke a part, from 0 in the middle to 100; chance is the dashed line."""
    radius, width, height = 130.0, 460.0, 320.0
    names = list(rows)

    def at(number: int, value: float) -> tuple[float, float]:
        angle = 2 * math.pi * number / len(names) - math.pi / 2
        length = radius * min(max(value, 0.0), 100.0) / 100
        return width / 2 + length * math.cos(angle), height / 2 + length * math.sin(angle)

    def ring(values: Sequence[float], style: str) -> str:
        points = " ".join("{:.1f},{:.1f}".format(*at(k, value)) for k, value in enumerate(values))
        return f'<polygon points="{points}" fill="none" {style}/>'

    parts = [ring([value] * len(names), 'stroke="#e5e5e5"') for value in (25, 50, 75, 100)]
    for number, name in enumerate(names):
        x, y = at(number, 100)
        spoke = f'x1="{width / 2}" y1="{height / 2}" x2="{x:.1f}" y2="{y:.1f}"'
        parts.append(f'<line {spoke} stroke="#e5e5e5"/>')
        x, y = (half + (end - half) * 1.12 for half, end in ((width / 2, x), (height / 2, y)))
        anchor = "middle" if abs(x - width / 2) < 20 else "start" if x > width / 2 else "end"
        parts.append(
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}" font-size="12">'
            f"{html.escape(name)}</text>"
        )
    parts.append(ring([chance[name] for name in names], _CHANCE))
    for index in range(max(map(len, rows.values()))):
        values = [one.value for name in names if (one := rows[name][index]) is not None]
        if len(values) < len(names):
            continue  # a hole cannot be drawn; the bars have the rest
        colour = COLOURS[index % MOST]
        parts.append(ring(values, f'stroke="{colour}" stroke-width="2"'))
        parts += [_mark(index, *at(k, value)) for k, value in enumerate(values)]
    return f'<svg width="{width:.0f}" height="{height:.0f}" role="img">{"".join(parts)}</svg>'
