"""The page of a study: tables with intervals, what differs from the baseline, how it was run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.study import losses
from benchmarks.study.plan import BASELINE, Preset
from benchmarks.study.plots import draw
from benchmarks.study.records import Record
from benchmarks.study.statistics import Difference, Mean, difference, mean_over_seeds
from nas_jax.storage.files import write_whole
from nas_jax.utils.tables import markdown

Variants = Mapping[str, Mapping[int, Record]]  # variant -> seed -> record


def by_setting(preset: Preset, records: Sequence[Record]) -> dict[str, dict[str, dict]]:
    """setting -> variant -> seed -> record, in the preset's order, of what has a record."""
    found: dict[str, dict[str, dict]] = {}
    for setting in preset.settings:
        for variant in preset.variants:
            which = setting, variant
            runs = {one.seed: one for one in records if (one.setting, one.variant) == which}
            if runs:
                found.setdefault(setting, {})[variant] = runs
    return found


def write_page(folder: Path, name: str, preset: Preset, records: Sequence[Record]) -> Path:
    """Writes the page, and a PNG for each setting in the folder of that name; returns the page.

    name: of the preset.
    """
    settings, files = by_setting(preset, records), preset.page or name
    (folder / files).mkdir(parents=True, exist_ok=True)
    lines = [f"# {preset.title}", "", *_how(name, preset, records)]
    for setting, variants in settings.items():
        lines += [f"## {setting}" if setting else "## Results", ""]
        if preset.settings[setting].about:
            lines += [preset.settings[setting].about, ""]
        picture = folder / files / f"{setting or 'results'}.png"
        draw(picture, preset, variants)
        alt = f"{setting}: {preset.title}" if setting else preset.title
        lines += [f"![{alt}]({files}/{picture.name})", ""]
        lines += _numbers(preset, variants)
        lines += _differences(preset, variants)
        lines += _negatives(variants)
        if preset.losses:
            lines += losses.section(folder / files / "curves", tuple(variants))
    page = folder / f"{files}.md"
    write_whole(page, "\n".join(lines).rstrip() + "\n")
    return page


# ---------------------------------------------------------------------------------- parts


def _how(name: str, preset: Preset, records: Sequence[Record]) -> list[str]:
    hours = sum(one.seconds for one in records) / 3600
    seeds = 1 + max(one.seed for one in records)
    lines = [
        f"    python -m benchmarks.study --preset {name} --seeds {seeds}",
        "",
        f"{len(records)} run{'s' * (len(records) > 1)} of {min(one.pairs for one in records):,} "
        "pairs or more, "
        f"{hours:.1f} hours of training in all; {_listed(one.hardware for one in records)}; "
        f"{_listed(one.date for one in records)}; code {_listed(one.code for one in records)}.",
        "",
        "In percent: the mean over seeds and its 95 % interval by Student's t, cut at 0 and 100. "
        "All variants of a seed see the same pictures in the same order and answer the same "
        "questions.",
        "",
    ]
    ran = {one.variant for one in records}
    rows = [(f"`{key}`", one.about) for key, one in preset.variants.items() if key in ran]
    return lines + markdown(("variant", "what it is"), rows)


def _numbers(preset: Preset, variants: Variants) -> list[str]:
    head = ("variant", "seeds", "pairs", "pairs/s", *preset.metrics.values())
    rows = []
    for variant, runs in variants.items():
        any_run = next(iter(runs.values()))
        speed = sum(one.pairs_per_second for one in runs.values()) / len(runs)
        values = [of_metric(runs, key) for key in preset.metrics]
        cells = [number(value) if value else "-" for value in values]
        about = (f"`{variant}`", str(len(runs)), f"{any_run.pairs:,}", f"{speed:.0f}")
        rows.append((*about, *cells))
    blind = [_blind(variants, key) for key in preset.metrics]
    rows.append(("text alone", "", "", "", *blind))
    return markdown(head, rows)


def of_metric(runs: Mapping[int, Record], key: str) -> Mean | None:
    """Over the seeds; None where a run has no such number."""
    values = [one.metrics.get(key) for one in runs.values()]
    return None if None in values else mean_over_seeds(values)


def _blind(variants: Variants, key: str) -> str:
    values = [one.blind[key] for runs in variants.values() for one in runs.values()
              if key in one.blind]  # fmt: skip
    return f"{min(values):.0f} to {max(values):.0f}" if values else "-"


def _differences(preset: Preset, variants: Variants) -> list[str]:
    if BASELINE not in variants or len(variants) < 2:
        return []
    rows = []
    for variant, runs in variants.items():
        if variant != BASELINE:
            found = [difference(variants[BASELINE], runs, key) for key in preset.metrics]
            rows.append((f"`{variant}`", *map(signed, found)))
    text = (
        f"Against `{BASELINE}`, in percentage points: the mean over seeds, its interval over seeds "
        "and, where there are questions, over pictures (paired bootstrap). Bold where neither "
        "contains 0."
    )
    return [text, "", *markdown(("variant", *preset.metrics.values()), rows)]


def _negatives(variants: Variants) -> list[str]:
    rows = []
    for variant, runs in variants.items():
        for kind in ("nva", "nta"):
            found = [one for run in runs.values() for one in run.negatives if one["name"] == kind]
            if found:
                rows.append((f"`{variant}`", kind, *_kind(found), *_truth(runs, kind)))
    if not rows:
        return []
    head = ("variant", "kind", "P(match)", "AUC", "alone", "object hit", "caption contradicted")
    text = (
        "The negatives at the end of training (`python -m nas_jax.inspect.negatives`). AUC: told "
        "apart from true pairs; alone: without the caption, or without the picture."
    )
    return [text, "", *markdown(head, rows)]


def _kind(found: Sequence[Mapping]) -> tuple[str, str, str]:
    return tuple(
        f"{_mean(one[name] for one in found):.2f}" for name in ("match", "auc", "auc_alone")
    )


def _truth(runs: Mapping[int, Record], kind: str) -> tuple[str, str]:
    told = [one.truth for one in runs.values() if one.truth]
    if kind != "nva" or not told:
        return "-", "-"
    names = "object_hit", "caption_contradicted"
    return tuple(f"{100 * _mean(one[name] for one in told):.0f} %" for name in names)


# ---------------------------------------------------------------------------------- cells


def number(mean: Mean) -> str:
    """71.0 (66.2 to 75.8): the mean and what of its interval lies in 0 to 100."""
    if not math.isfinite(mean.low):
        return f"{mean.mean:.1f}"
    return f"{mean.mean:.1f} ({max(mean.low, 0):.1f} to {min(mean.high, 100):.1f})"


def signed(found: Difference | None) -> str:
    """+3.0 (-1.2 to 7.2; pictures 1.0 to 5.0); bold where both intervals leave out 0."""
    if found is None:
        return "-"
    seeds, inside = found.over_seeds, []
    if math.isfinite(seeds.low):
        inside.append(f"{seeds.low:.1f} to {seeds.high:.1f}")
    if math.isfinite(found.low):
        inside.append(f"pictures {found.low:.1f} to {found.high:.1f}")
    text = f"{seeds.mean:+.1f}" + (f" ({'; '.join(inside)})" if inside else "")
    return f"**{text}**" if is_sure(found) else text


def is_sure(found: Difference) -> bool:
    """Whether the interval over seeds, and that over pictures where there is one, leave out 0."""
    seeds = found.over_seeds
    apart = math.isfinite(seeds.low) and not seeds.low <= 0 <= seeds.high
    return apart and not (math.isfinite(found.low) and found.low <= 0 <= found.high)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value)) or "unknown"
