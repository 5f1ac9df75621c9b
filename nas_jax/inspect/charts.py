"""Charts as SVG text, drawn for a page that loads nothing."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 460, 220  # of a chart's own units; it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26
COLOURS = 10  # classes c0 to c9 of the style
MOST_POINTS = 240  # of a line; more are averaged
SMOOTH_ABOVE = 60  # points: from here on a bold moving average stands over the thin line
LEGEND_DIGITS = 3


@dataclass(frozen=True)
class Series:
    """One line. steps rise; values that are not finite leave a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """What a chart shows. marks: level -> what it is, as dashed lines."""

    title: str
    series: Sequence[Series]
    note: str = ""
    unit: str = ""
    log: bool = False
    marks: Mapping[float, str] = field(default_factory=dict)
    least: float | None = None  # of the axis; None: from the values
    most: float | None = None


def draw(chart: Chart) -> str:
    """A `<figure>`: title, SVG with one path a line, legend with the last values.

    "" if there is no finite value.
    """
    whole = [one for one in (_finite(one, chart.log) for one in chart.series) if one.steps]
    series = [_averaged(one) for one in whole]
    if not series:
        return ""
    low, high = _range(chart, series)
    first = min(one.steps[0] for one in series)
    last = max(max(one.steps[-1] for one in series), first + 1)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)

    def y(value: float) -> float:
        share = (_scale(value, chart.log) - _scale(low, chart.log)) / (
            (_scale(high, chart.log) - _scale(low, chart.log)) or 1
        )
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    parts = [_axis(low, high, first, last, x, y, chart)]
    for index, one in enumerate(series):
        colour = f"c{index % COLOURS}"
        if len(one.steps) == 1:
            at = f'cx="{x(one.steps[0]):.1f}" cy="{y(one.values[0]):.1f}"'
            parts.append(f'<circle class="dot {colour}" {at} r="3.5"/>')
            continue
        smooth = len(one.steps) > SMOOTH_ABOVE
        parts.append(
            f'<path class="line {colour}{" thin" if smooth else ""}" d="{_path(one, x, y)}"/>'
        )
        if smooth:
            parts.append(
                f'<path class="line {colour}" d="{_path(_smoothed(one, chart.log), x, y)}"/>'
            )
        elif len(one.steps) <= 12:
            for step, value in zip(one.steps, one.values, strict=True):
                parts.append(
                    f'<circle class="dot {colour}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5"/>'
                )
    for level, name in chart.marks.items():
        if low <= level <= high:
            height = y(level)
            parts.append(
                f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
                f'y2="{height:.1f}"/>'
            )
            label = html.escape(f"{name} {number(level)}".strip())
            parts.append(
                f'<text class="mark" x="{WIDTH - RIGHT - 2}" y="{height - 4:.1f}">{label}</text>'
            )
    data = {
        "x": [LEFT, WIDTH - RIGHT, first, last],
        "series": [
            [one.name, list(one.steps), [float(f"{v:.4g}") for v in one.values]] for one in series
        ],
        "unit": chart.unit,
    }
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(chart.title)}">{"".join(parts)}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>'
    )
    legend = "".join(
        f'<li><i class="c{index % COLOURS}"></i>{html.escape(one.name)} '
        f"<b>{number(one.values[-1])}{html.escape(chart.unit)}</b></li>"
        for index, one in enumerate(whole)
    )
    note = f"<p>{html.escape(chart.note)}</p>" if chart.note else ""
    packed = html.escape(json.dumps(data, separators=(",", ":")))
    return (
        '<figure class="chart" '
        f'data-chart="{packed}"><figcaption>{html.escape(chart.title)}</figcaption>{note}'
        f'{svg}<ul class="legend">{legend}</ul></figure>'
    )


def split_bar(parts: Mapping[str, float]) -> str:
    """One bar of the shares of a whole, with a legend."""
    total = sum(parts.values())
    if total <= 0:
        return ""
    bars, legend, at = [], [], 0.0
    for index, (name, value) in enumerate(parts.items()):
        width = 100 * value / total
        title = f"<title>{html.escape(name)} {value / total:.1%}</title>"
        bars.append(
            f'<rect class="c{index}" x="{at:.2f}%" width="{width:.2f}%" y="0" '
            f'height="26">{title}</rect>'
        )
        legend.append(
            f'<li><i class="c{index}"></i>{html.escape(name)} <b>{value / total:.1%}</b></li>'
        )
        at += width
    return (
        f'<figure class="split"><svg width="100%" height="26" role="img">{"".join(bars)}</svg>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>'
    )


def value_bar(value: float, chance: float, blind: float | None) -> str:
    """A small bar of a percentage, with a dashed line at chance and a dot at text alone."""
    width = 160

    def at(percent: float) -> float:
        return width * min(max(percent, 0.0), 100.0) / 100

    dot = f'<circle class="blind" cx="{at(blind):.1f}" cy="8" r="3"/>' if blind is not None else ""
    return (
        f'<svg class="bar" width="{width}" height="16" role="img"><title>{value:.1f} %, chance '
        f"{chance:.1f} %</title>"
        f'<rect class="ground" width="{width}" height="8" y="4" rx="2"/>'
        f'<rect class="{"over" if value > chance else "under"}" width="{at(value):.1f}" '
        'height="8" y="4" rx="2"/>'
        f'<line class="mark" x1="{at(chance):.1f}" x2="{at(chance):.1f}" y1="0" '
        f'y2="16"/>{dot}</svg>'
    )


def number(value: float, digits: int = LEGEND_DIGITS) -> str:
    """Short: 1234567 -> 1.23 M, 0.00012 -> 1.2e-4, 12.34 -> 12.3."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.{digits}g} {letter}"
    if abs(value) < 1e-3:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.{max(digits - 4, 0)}f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def labels(levels: Sequence[float]) -> list[str]:
    """The numbers beside an axis, with enough digits to differ: 0.07, 0.07002, 0.07004."""
    space = levels[1] - levels[0] if len(levels) > 1 else math.inf
    digits = LEGEND_DIGITS
    while digits < 12 and any(
        abs(float(f"{level:.{digits}g}") - level) > 0.01 * space for level in levels
    ):
        digits += 1
    return [number(level, digits) for level in levels]


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    start = math.ceil(low / step - 1e-9)
    return [count * step for count in range(start, math.floor(high / step + 1e-9) + 1)]


def _scale(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _finite(one: Series, log: bool) -> Series:
    kept = [
        (step, value)
        for step, value in zip(one.steps, one.values, strict=True)
        if math.isfinite(value) and (value > 0 or not log)
    ]
    return Series(one.name, [step for step, _ in kept], [value for _, value in kept])


def _averaged(one: Series) -> Series:
    """At most MOST_POINTS points, each the mean of its neighbours; the last step stays."""
    size = -(-len(one.steps) // MOST_POINTS)
    if size == 1:
        return one
    starts = range(0, len(one.steps), size)
    steps = [one.steps[min(start + size, len(one.steps)) - 1] for start in starts]
    values = [
        sum(one.values[start : start + size]) / len(one.values[start : start + size])
        for start in starts
    ]
    return Series(one.name, steps, values)


def _smoothed(one: Series, log: bool) -> Series:
    half = max(1, len(one.steps) // 30)
    logs = [_scale(value, log) for value in one.values]
    means = [
        sum(near) / len(near)
        for near in (logs[max(0, at - half) : at + half + 1] for at in range(len(logs)))
    ]
    return Series(one.name, one.steps, [10**mean for mean in means] if log else means)


def _range(chart: Chart, series: Sequence[Series]) -> tuple[float, float]:
    values = sorted(value for one in series for value in one.values)
    low, high = values[0], values[-1]
    usual = values[int(0.99 * (len(values) - 1))]
    if len(values) > 50 and high > 4 * usual > 0:
        high = 1.5 * usual  # a few peaks would flatten the rest; they are cut off at the frame
    low, high = min([low, *chart.marks]), max([high, *chart.marks])
    if chart.log:
        return low / 1.2, high * 1.2
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    if chart.least is None:
        low = 0.0 if 0 <= low < 0.5 * high else low - pad
    high = high + pad
    low = low if chart.least is None else chart.least
    return low, high if chart.most is None else chart.most


def _axis(low: float, high: float, first: float, last: float, x, y, chart: Chart) -> str:
    if chart.log:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        levels = [10.0**power for power in powers][:: max(1, len(powers) // 5)] or [low, high]
    else:
        levels = ticks(low, high)
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(level):.1f}" '
        f'y2="{y(level):.1f}"/>'
        f'<text class="y" x="{LEFT - 6}" y="{y(level) + 4:.1f}">{label}</text>'
        for level, label in zip(levels, labels(levels), strict=True)
    ]
    # there is no step 1.5
    steps = [step for step in ticks(first, last, 5) if abs(step - round(step)) < 1e-6]
    lines += [
        f'<text class="x" x="{x(step):.1f}" y="{HEIGHT - 8}">{label}</text>'
        for step, label in zip(steps, labels(steps), strict=True)
    ]
    lines.append(f'<text class="y" x="{LEFT - 12}" y="{HEIGHT - 8}">step</text>')
    return "".join(lines)


def _path(one: Series, x, y) -> str:
    points = [
        f"{x(step):.1f},{y(value):.1f}" for step, value in zip(one.steps, one.values, strict=True)
    ]
    return "M" + "L".join(points)
