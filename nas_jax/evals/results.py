"""What an evaluation leaves behind: results.json with every score, results.md and results.html to
read.

results.json is one object: `protocol` (checkpoint, sizes, versions) and `results`, a list with one
entry a benchmark (of retrieval, one a direction). In an entry, `keys`, `categories`, `units`, and
the lists in `scores`, `blind` and `hits` are columns over the same questions; scores[scorer][q] is
a list of lists, (pictures, texts), of retrieval and of classes the rank of the right answer (0 =
first).
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.checkpoint.stored import Damage, read_record
from nas_jax.evals.metrics import Metric
from nas_jax.methods.method import Method
from nas_jax.storage.files import make_folder, write_whole
from nas_jax.storage.paths import as_path, failures, in_words
from nas_jax.train.workdir import CHECKPOINTS
from nas_jax.utils.errors import CheckpointError, DataError

RESULTS = "results"  # .json, .md, .html
FORMAT = 1


@dataclass(frozen=True)
class Result:
    """One benchmark under some scorers, question by question."""

    name: str
    form: str  # one of questions.FORMS, or "retrieval"
    protocol: Mapping[str, str]  # the rules of this benchmark
    dropped: Mapping[str, int]  # reason -> items left out
    counts: Mapping[str, int]  # questions, images, texts
    rows: tuple[Metric, ...]
    keys: tuple[str, ...]
    categories: tuple[str, ...]
    units: tuple[int, ...]  # questions of one unit are drawn together, see evals/statistics.py
    # "macro" or a group -> its categories
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # scorer -> quantity -> True, False, None; of mAP@R and R-Precision a share
    hits: Mapping[str, Mapping[str, list]] = field(default_factory=dict)
    # scorer -> cells or rank of each question
    scores: Mapping[str, list] = field(default_factory=dict)
    blind: Mapping[str, list] = field(default_factory=dict)  # the same without pictures
    headline: str = ""  # part/quantity of the number that papers print; "": the first row's


def plain(cell: np.ndarray) -> list:
    """Scores as numbers that give back the same float32."""
    return [[float(f"{value:.9g}") for value in row] for row in np.atleast_2d(cell)]


def write(
    folder: str | os.PathLike[str], protocol: Mapping[str, Any], results: Sequence[Result]
) -> Path:
    """Writes results.json, .md and .html; returns the folder. Each is whole or not there."""
    target = as_path(folder)
    make_folder(target)
    content = {
        "format": FORMAT,
        "protocol": dict(protocol),
        "results": [_entry(result) for result in results],
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    write_whole(target / f"{RESULTS}.json", text + "\n")
    write_whole(target / f"{RESULTS}.md", to_markdown(protocol, results))
    write_whole(target / f"{RESULTS}.html", to_html(protocol, results))
    return target


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Result]]:
    """Protocol and results of a results.json, or of the folder with it.

    Raises DataError where it is none.
    """
    file = as_path(path)
    file = file / f"{RESULTS}.json" if file.is_dir() else file
    try:
        content = json.loads(file.read_bytes())
        if (found := content["format"]) != FORMAT:
            raise DataError(f"{file}: format {found}", f"format {FORMAT}", "evaluate again")
        return content["protocol"], [_result(entry) for entry in content["results"]]
    except failures() as error:
        raise DataError(
            f"{file}: {in_words(error)}", "a results.json, or a folder with one", "check the path"
        ) from error
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: {error!r}", "a file that nas_jax.evals wrote", "evaluate again"
        ) from error


def _result(entry: dict[str, Any]) -> Result:
    entry = {name: tuple(at) if isinstance(at, list) else at for name, at in entry.items()}
    entry["rows"] = tuple(
        Metric(**{name: _number(name, value) for name, value in row.items()})
        for row in entry["rows"]
    )
    for name in ("protocol", "hits", "scores", "blind"):
        entry[name] = dict(entry[name])
    entry["averages"] = {name: tuple(members) for name, members in entry["averages"].items()}
    entry.setdefault("headline", "")  # of files that are older than the field
    return Result(**{one.name: entry[one.name] for one in fields(Result)})


def _entry(result: Result) -> dict[str, Any]:
    # JSON has no NaN: an interval that could not be drawn is null.
    entry = asdict(result)
    for row in entry["rows"]:
        row |= {name: None for name in ("low", "high") if math.isnan(row[name])}
    return entry


def _number(name: str, value: Any) -> Any:
    if name in ("value", "chance") and not math.isfinite(value):
        raise ValueError(f"{name} {value}, which is no finite number")
    return math.nan if name in ("low", "high") and value is None else value


def about_checkpoint(workdir: Path, step: int, name: str, method: Method) -> dict[str, Any]:
    """What a protocol says of the weights. name: of the run."""
    return {
        "name": name,
        "method": method.config.name,
        "path": f"{workdir.name}/{CHECKPOINTS}/{step}",
        "step": step,
        "digest": digest(workdir / CHECKPOINTS / str(step), method.scoring_state),
    }


def digest(checkpoint: Path, scoring_state: Sequence[str]) -> str:
    """Of the arrays that an evaluation reads: the parameters and some entries of the state.

    "" where there is no checkpoint, or one without checksums.
    """
    try:
        arrays = read_record(checkpoint).get("arrays", {}) if checkpoint.is_dir() else {}
    except Damage as error:
        raise CheckpointError(
            f"{checkpoint}: {error}", "the files as they were saved", "copy them again"
        ) from error
    parts = tuple(f"{part}/" for part in ("params", *map("method_state/{}".format, scoring_state)))
    read_arrays = {name: kind for name, kind in arrays.items() if f"{name}/".startswith(parts)}
    found = hashlib.sha256(json.dumps(read_arrays, sort_keys=True).encode()).hexdigest()[:16]
    return found if read_arrays else ""


# ------------------------------------------------------------------------------------------- tables

COLUMNS = (
    *("part", "scorer", "quantity", "value", "95 % interval"),
    *("chance", "text-only", "ties", "n"),
)


def to_markdown(protocol: Mapping[str, Any], results: Sequence[Result]) -> str:
    """One table a benchmark, its rules under it, and the protocol at the end."""
    lines = ["# Results", ""]
    for result in results:
        lines += [f"## {result.name}", ""]
        lines += [_markdown_row(COLUMNS), _markdown_row(["---"] * 3 + ["---:"] * 6)]
        lines += [_markdown_row(_cells(row)) for row in result.rows]
        lines += ["", *(f"* {line}" for line in describe(result)), ""]
    rules = [f"* {name}: {value}" for name, value in flat(protocol).items()]
    return "\n".join([*lines, "## Protocol", "", *rules, ""])


def _markdown_row(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _cells(row: Metric) -> list[str]:
    blind = "-" if row.blind is None else f"{row.blind:.1f}"
    interval = f"{row.low:.1f} to {row.high:.1f}"
    numbers = [f"{row.value:.1f}", interval, f"{row.chance:.1f}", blind]
    return [row.part, row.scorer, row.quantity, *numbers, str(row.ties), str(row.count)]


def describe(result: Result) -> list[str]:
    """Counts, losses and rules of a benchmark, a line each."""
    counts = ", ".join(f"{count} {what}" for what, count in result.counts.items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in result.dropped.items()) or "none"
    return [
        f"counts: {counts}",
        f"dropped: {dropped}",
        *(f"{rule}: {value}" for rule, value in result.protocol.items()),
    ]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested names joined by dots; lists as text."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= {f"{name}.{inner}": found for inner, found in flat(value).items()}
        else:
            out[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return out


# --------------------------------------------------------------------------------------------- page

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
table { border-collapse: collapse; margin: .6rem 0 1rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
ul, dl { color: #555; font-size: 13px; }
.bar { fill: #4878a8; } .whisker { stroke: #222; }
.chance { stroke: #c0392b; stroke-dasharray: 3 2; }
.low { fill: #c0392b; } .axis { stroke: #999; }
"""


def to_html(protocol: Mapping[str, Any], results: Sequence[Result]) -> str:
    """A page that needs nothing else: tables, and beside each value a bar with its interval and the
    chance level.
    """
    parts = []
    for result in results:
        parts.append(f"<h2>{html.escape(result.name)}</h2>")
        parts.append(table(COLUMNS + ("",), [(_cells(row), _bar(row)) for row in result.rows]))
        parts.append(_list(describe(result)))
    rules = _list(f"{name}: {value}" for name, value in flat(protocol).items())
    return page("Results", [*parts, "<h2>Protocol</h2>", rules])


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML document."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def table(header: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> str:
    """Rows of text, each with a picture (SVG) at its end."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = ""
    for values, drawing in rows:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        body += f"<tr>{cells}<td>{drawing}</td></tr>\n"
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _list(lines: Any) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(str(line))}</li>" for line in lines) + "</ul>"


def _bar(row: Metric) -> str:
    def bar(x: float) -> str:
        return f'<rect class="bar" x="0" y="3" width="{x:.1f}" height="10"/>'

    return whiskers((row.value, row.low, row.high), (0.0, 100.0), row.chance, bar)


def whiskers(
    numbers: tuple[float, float, float],
    axis: tuple[float, float],
    mark: float,
    shape: Callable[[float], str],
) -> str:
    """An SVG of a value with its interval and a dashed mark.

    Args:
      numbers: the value, and the ends of its interval.
      axis: the least and the greatest number that can be shown.
      mark: where the dashed line is.
      shape: draws the value at x.
    """
    (value, low, high), (least, most), width, height = numbers, axis, 200, 16

    def at(number: float) -> float:
        return width * (min(max(number, least), most) - least) / (most - least)

    bottom = height - 0.5
    label = f"<title>{value:.1f} ({low:.1f} to {high:.1f})</title>"
    parts = [
        f'<line class="axis" x1="0" x2="{width}" y1="{bottom}" y2="{bottom}"/>',
        shape(at(value)),
        f'<line class="whisker" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="8" y2="8"/>',
        f'<line class="chance" x1="{at(mark):.1f}" x2="{at(mark):.1f}" y1="0" y2="{height}"/>',
    ]
    size = f'width="{width}" height="{height}"'
    return f'<svg {size} role="img">{label}{"".join(parts)}</svg>'
