"""Compares two models question by question.

    python -m nas_jax.evals.compare A B [--out DIR]

A and B are results.json files, or folders with one. For every benchmark, scorer and quantity that
both have: the difference B - A with its 95 % interval (paired bootstrap over pictures) and how
likely one at least as large is by chance. Where each picture has one question there is McNemar's
exact test beside it.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_jax.evals.results import Result, flat, page, read, table, whiskers
from nas_jax.evals.statistics import interval, mcnemar, resampled_weights
from nas_jax.storage.files import make_folder, write_whole
from nas_jax.storage.paths import as_path
from nas_jax.train.workdir import check_out, writing_out
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import DataError

# fields of the protocol in which A and B must agree
SAME = ("text_length", "text", "largest_share_dropped")
RESAMPLES = 10_000
LEVEL = 0.05  # a difference with a smaller p-value is marked
COMPARISON = "compare"  # .md, .html


@dataclass(frozen=True)
class Difference:
    """One number of two models, in percent."""

    benchmark: str
    part: str
    scorer: str
    quantity: str
    first: float
    second: float
    low: float  # of second - first
    high: float
    p: float  # two-sided, paired bootstrap
    # exact; None where pictures have several questions, or for averages of categories
    p_mcnemar: float | None
    count: int

    @property
    def difference(self) -> float:
        """Percentage points, second minus first."""
        return self.second - self.first


def compare(
    first: Sequence[Result], second: Sequence[Result], resamples: int = RESAMPLES
) -> list[Difference]:
    """All differences. Raises DataError where the two were not asked the same."""
    names = [[result.name for result in results] for results in (first, second)]
    if names[0] != names[1]:
        got = f"A has {', '.join(names[0])}, B has {', '.join(names[1])}"
        raise DataError(got, "the same benchmarks", "evaluate both on the same ones")
    return [row for a, b in zip(first, second, strict=True) for row in _compare(a, b, resamples)]


def check_protocols(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Raises DataError on the first field in which numbers would not be comparable."""
    for name in SAME:
        if first.get(name) != second.get(name):
            got = f"{name}={first.get(name)!r} in A, {second.get(name)!r} in B"
            raise DataError(got, "one protocol", "evaluate both alike")


def _compare(a: Result, b: Result, resamples: int) -> list[Difference]:
    _check_same(a, b)
    units_Q, categories_Q = np.array(a.units), np.array(a.categories)
    parts = {"all": None, **{name: members for name, members in a.averages.items()}}
    present = sorted(set(a.categories))
    parts |= {name: (name,) for name in present} if len(present) > 1 else {}
    out = []
    scorers = [name for name in a.hits if name in b.hits]
    if not scorers:
        got = f"{a.name}: scorers {', '.join(a.hits)} in A, {', '.join(b.hits)} in B"
        raise DataError(got, "one in common", "evaluate both with it")
    for scorer in scorers:
        for quantity in a.hits[scorer]:
            hits_2xQ = [_numbers(result.hits[scorer][quantity]) for result in (a, b)]
            for part, members in parts.items():
                made = _difference(hits_2xQ, _rows(categories_Q, members), units_Q, resamples)
                if made is not None:
                    out.append(Difference(a.name, part, scorer, quantity, *made))
    return out


def _check_same(a: Result, b: Result) -> None:
    for what in ("form", "protocol"):
        if getattr(a, what) != getattr(b, what):
            left, right = (_short(getattr(result, what)) for result in (a, b))
            got = f"{a.name}: {what} {left} in A, {right} in B"
            raise DataError(got, "one protocol", "evaluate both alike")
    if a.keys != b.keys:
        only_a, only_b = set(a.keys) - set(b.keys), set(b.keys) - set(a.keys)
        example = next(iter(sorted(only_a | only_b)), "their order")
        counts = f"{len(only_a)} items only in A and {len(only_b)} only in B"
        raise DataError(
            f"{a.name}: {counts}, like {example!r}",
            "the same items",
            "evaluate both on the same files",
        )


def _short(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return "; ".join(f"{name}: {text}" for name, text in value.items())


def _numbers(hits: Sequence[bool | float | None]) -> np.ndarray:
    """1, 0, of mAP@R something between, and NaN where a question is not counted."""
    return np.array([np.nan if hit is None else float(hit) for hit in hits])


def _rows(categories_Q: np.ndarray, members: Sequence[str] | None) -> list[np.ndarray]:
    """Rows of each category; None: all as one."""
    if members is None:
        return [np.arange(len(categories_Q))]
    return [np.flatnonzero(categories_Q == name) for name in members]


def _difference(
    hits_2xQ: Sequence[np.ndarray],
    groups: Sequence[np.ndarray],
    units_Q: np.ndarray,
    resamples: int,
) -> tuple | None:
    """What `Difference` holds after its names; the mean over the groups of the means in them.

    None: nothing counted.
    """
    counted = ~np.isnan(hits_2xQ[0])
    groups = [rows[counted[rows]] for rows in groups]
    groups = [rows for rows in groups if len(rows)]
    if not groups:
        return None
    rows = np.concatenate(groups)
    first, second = (
        float(np.mean([100 * hits[group].mean() for group in groups])) for hits in hits_2xQ
    )
    _, units = np.unique(units_Q[rows], return_inverse=True)
    gain = hits_2xQ[1][rows] - hits_2xQ[0][rows]
    ends = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    samples = np.concatenate(
        [_drawn(weights, gain, ends) for weights in resampled_weights(units, resamples)]
    )
    samples = samples[~np.isnan(samples)]
    tail = min(np.count_nonzero(samples <= 0), np.count_nonzero(samples >= 0))
    p_mcnemar = None
    right_or_wrong = np.isin([hits[rows] for hits in hits_2xQ], (0, 1)).all()
    if right_or_wrong and len(groups) == 1 and len(np.unique(units)) == len(units):
        p_mcnemar = mcnemar(int((gain < 0).sum()), int((gain > 0).sum()))
    return (
        first,
        second,
        *interval(samples),
        min(1.0, 2 * (tail + 1) / (len(samples) + 1)),
        p_mcnemar,
        len(rows),
    )


def _drawn(weights_RxQ: np.ndarray, gain_Q: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The difference in each resample (R,): groups that are not drawn are left out of the mean."""
    total = np.add.reduceat(weights_RxQ, ends[:-1], axis=1, dtype=np.float64)
    sums = np.add.reduceat(weights_RxQ * gain_Q, ends[:-1], axis=1, dtype=np.float64)
    means = np.divide(100 * sums, total, out=np.full(total.shape, np.nan), where=total > 0)
    known = ~np.isnan(means)
    count = known.sum(axis=1)
    gain = np.where(known, means, 0).sum(axis=1)
    return np.divide(gain, count, out=np.full(len(count), np.nan), where=count > 0)


# ------------------------------------------------------------------------------------------- output

COLUMNS = (
    *("benchmark", "part", "scorer", "quantity"),
    *("A", "B", "B - A", "95 % interval", "p", "McNemar", "n"),
)


def _cells(row: Difference) -> list[str]:
    mark = " *" if row.p < LEVEL else ""
    exact = "-" if row.p_mcnemar is None else f"{row.p_mcnemar:.4f}"
    numbers = [f"{row.first:.1f}", f"{row.second:.1f}", f"{row.difference:+.1f}"]
    numbers.append(f"{row.low:+.1f} to {row.high:+.1f}")
    names = [row.benchmark, row.part, row.scorer, row.quantity]
    return [*names, *numbers, f"{row.p:.4f}{mark}", exact, str(row.count)]


def heading(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """What A and B are, and how their protocols differ."""
    a, b = (flat(one) for one in protocols)
    lines = [f"A: {a.get('checkpoint.name')} ({a.get('checkpoint.path')})"]
    lines += [f"B: {b.get('checkpoint.name')} ({b.get('checkpoint.path')})"]
    others = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    shown = [name for name in others if not name.startswith("checkpoint.")]
    lines += [f"{name}: {a.get(name)} in A, {b.get(name)} in B" for name in shown]
    note = (
        f"* p below {LEVEL}: paired bootstrap, {RESAMPLES} resamples, not corrected for the number "
        "of comparisons"
    )
    return [*lines, note]


def to_markdown(protocols: Sequence[Mapping[str, Any]], differences: Sequence[Difference]) -> str:
    """One table."""
    rows = [COLUMNS, ("---",) * 4 + ("---:",) * 7, *(_cells(row) for row in differences)]
    lines = ["| " + " | ".join(value.replace("|", "\\|") for value in row) + " |" for row in rows]
    about = [f"{line}  " for line in heading(protocols)]
    return "\n".join(["# A against B", "", *about, "", *lines, ""])


def to_html(protocols: Sequence[Mapping[str, Any]], differences: Sequence[Difference]) -> str:
    """A page that needs nothing else, with a picture of each difference and its interval."""
    bounds = [abs(bound) for row in differences for bound in (row.low, row.high)]
    most = max(bounds, default=1.0) or 1.0

    def dot(x: float) -> str:
        return f'<circle class="bar" cx="{x:.1f}" cy="8" r="4"/>'

    def drawing(row: Difference) -> str:
        return whiskers((row.difference, row.low, row.high), (-most, most), 0.0, dot)

    lines = "".join(f"<li>{html.escape(line)}</li>" for line in heading(protocols))
    rows = [(_cells(row), drawing(row)) for row in differences]
    return page("A against B", [f"<ul>{lines}</ul>", table((*COLUMNS, ""), rows)])


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    parser = Parser(
        prog="python -m nas_jax.evals.compare",
        description="Paired differences of two models on the same benchmarks, B - A.",
        allow_abbrev=False,
    )
    parser.add_argument("first", metavar="A", help="results.json, or the folder with it")
    parser.add_argument("second", metavar="B")
    parser.add_argument(
        "--out", default="", metavar="DIR", help=f"also write {COMPARISON}.md and .html there"
    )
    args = parser.parse_args(argv)
    folder = check_out(as_path(args.out)) if args.out else None
    (protocol_a, a), (protocol_b, b) = read(args.first), read(args.second)
    check_protocols(protocol_a, protocol_b)
    differences = compare(a, b)
    text = to_markdown((protocol_a, protocol_b), differences)
    print(text)
    if folder is not None:
        with writing_out(folder):
            make_folder(folder)
            write_whole(folder / f"{COMPARISON}.md", text)
            write_whole(
                folder / f"{COMPARISON}.html", to_html((protocol_a, protocol_b), differences)
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
