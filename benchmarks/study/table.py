"""The table of a study as text, for a screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.study.page import by_setting, of_metric
from benchmarks.study.plan import BASELINE, Preset
from benchmarks.study.records import Record
from benchmarks.study.statistics import Difference, difference
from nas_jax.utils.tables import aligned

Variants = Mapping[str, Mapping[int, Record]]  # variant -> seed -> record


def as_text(preset: Preset, records: Sequence[Record]) -> str:
    """For each setting, one line a metric and one column a variant: means over seeds in percent.

    Of two variants also their difference with its 95 % interval.
    """
    parts = []
    for setting, variants in by_setting(preset, records).items():
        parts += [f"{preset.title}{f', {setting}' if setting else ''}; in percent"]
        parts += [*_lines(preset, variants), ""]
    return "\n".join(parts)


def _lines(preset: Preset, variants: Variants) -> list[str]:
    others = [variant for variant in variants if variant != BASELINE]
    compared = others[0] if len(others) == 1 and BASELINE in variants else ""
    head = ["metric", *variants, *([f"{compared} - {BASELINE}"] if compared else [])]
    head += ["chance", "text-only", "n"]
    rows = [head]
    for key, name in preset.metrics.items():
        means = [of_metric(runs, key) for runs in variants.values()]
        row = [name, *(f"{mean.mean:.1f}" if mean else "-" for mean in means)]
        if compared:
            row.append(_difference(difference(variants[BASELINE], variants[compared], key)))
        rows.append(row + _beside(variants, key))
    lines = aligned(rows)
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _difference(found: Difference | None) -> str:
    """Over pictures where there is one seed, else over seeds."""
    if found is None:
        return "-"
    seeds = found.over_seeds
    low, high = (seeds.low, seeds.high) if math.isfinite(seeds.low) else (found.low, found.high)
    return f"{seeds.mean:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if math.isfinite(low) else "")


def _beside(variants: Variants, key: str) -> list[str]:
    """Chance, what the text alone gives, and the number of answers."""
    found = [one for runs in variants.values() for one in runs.values() if key in one.metrics]
    if not found:
        return ["-"] * 3
    blind = [one.blind[key] for one in found if key in one.blind]
    text_only = f"{max(blind):.1f}" if blind else "-"
    return [f"{found[0].chance[key]:.1f}", text_only, str(found[0].count[key])]
