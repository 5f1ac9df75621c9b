"""Any number of models beside each other, on one page.

    python -m nas_jax.evals.leaderboard albef=runs/demo/albef/evals/3000 \\
        nas=runs/demo/nas/evals/3000 --out runs/demo/board

Each argument is NAME=RESULTS, where RESULTS is a results.json or the folder with it; a name may
come several times, with results of other benchmarks. Of each benchmark the number that papers print
stands in the first table, then every category as bars and, from three categories on, as a radar.
Writes leaderboard.html, which needs nothing else, and leaderboard.md.
"""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas_jax.evals.board_pictures import MOST, bars, key, radar
from nas_jax.evals.metrics import Metric
from nas_jax.evals.results import Result, page, read
from nas_jax.storage.files import make_folder, write_whole
from nas_jax.storage.paths import as_path
from nas_jax.train.workdir import writing_out
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import DataError

LEADERBOARD = "leaderboard"  # .md, .html
# fields of the protocol that change numbers: where models differ in one, the page says so
COMPARED = ("text_length", "text", "pictures", "image_size", "largest_share_dropped")
AVERAGES = ("all", "macro")
RADAR_FROM = 3  # categories
USUAL = {"quad": "all/group"}  # headlines of results that are older than `Result.headline`


@dataclass(frozen=True)
class Entry:
    """A model under one scorer, on one benchmark."""

    model: str
    scorer: str
    headline: Metric
    parts: Mapping[str, Metric]  # category -> the same quantity

    @property
    def name(self) -> str:
        """As the page calls it."""
        return f"{self.model}, {self.scorer}"


@dataclass(frozen=True)
class Board:
    """A benchmark with its models, the best first."""

    benchmark: str
    quantity: str  # part/quantity
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]  # why numbers may not be comparable

    @property
    def parts(self) -> tuple[str, ...]:
        """The categories of all models."""
        return tuple(dict.fromkeys(part for one in self.entries for part in one.parts))


def collect(
    found: Sequence[tuple[str, Mapping, Sequence[Result]]], scorers: Sequence[str] = ()
) -> list[Board]:
    """A board a benchmark, in the order in which they come.

    Args:
      found: (model, protocol, results) of each file.
      scorers: of the page; (): all.

    Raises:
      DataError: a model twice on one benchmark, a model without results, or a scorer that none of
        them has.
    """
    for model, _, results in found:
        if not any(result.rows for result in results):
            raise DataError(f"{model} without results", "some", "leave it out, or evaluate again")
    known = sorted({row.scorer for *_, results in found for one in results for row in one.rows})
    if unknown := [name for name in scorers if name not in known]:
        expected = f"one of {', '.join(known)}"
        raise DataError(f"no result under {unknown[0]}", expected, "correct --scorer")
    names = dict.fromkeys(result.name for _, _, results in found for result in results)
    boards = []
    for name in names:
        asked = [
            (model, protocol, one)
            for model, protocol, results in found
            for one in results
            if one.name == name
        ]
        models = [model for model, _, _ in asked]
        if twice := next((model for model in models if models.count(model) > 1), ""):
            remedy = "give the second file another name: NAME=RESULTS"
            raise DataError(f"{name} of {twice} twice", "one result a model", remedy)
        wanted = next(filter(None, (_headline(result) for *_, result in asked)), "")
        entries = [
            entry
            for model, _, result in asked
            for entry in _entries(model, result, scorers, wanted)
        ]
        if entries:
            best_first = sorted(entries, key=lambda one: -one.headline.value)
            quantity = _quantity(entries[0])
            notes = _notes(asked) + [
                f"{one.name} has no {quantity}; its number is {_quantity(one)}"
                for one in entries
                if _quantity(one) != quantity
            ]
            boards.append(Board(name, quantity, tuple(best_first), tuple(notes)))
    return boards


def _headline(result: Result) -> str:
    return result.headline or USUAL.get(result.form, "")


def _quantity(entry: Entry) -> str:
    return f"{entry.headline.part}/{entry.headline.quantity}"


def _entries(model: str, result: Result, scorers: Sequence[str], wanted: str) -> list[Entry]:
    """wanted: part/quantity of the number of the board; a result without it gives its first."""
    out = []
    for scorer in dict.fromkeys(row.scorer for row in result.rows):
        if scorers and scorer not in scorers:
            continue
        rows = [row for row in result.rows if row.scorer == scorer]
        headline = next((row for row in rows if f"{row.part}/{row.quantity}" == wanted), rows[0])
        parts = {
            row.part: row
            for row in rows
            if row.quantity == headline.quantity and row.part not in (*AVERAGES, *result.averages)
        }
        out.append(Entry(model, scorer, headline, parts))
    return out


def _notes(asked: Sequence[tuple[str, Mapping, Result]]) -> list[str]:
    """In what the models were asked differently, a line each."""
    (first, protocol, one), *others = asked
    notes = []
    for model, other, result in others:
        if result.keys != one.keys:
            notes.append(f"{model} was asked {len(result.keys)} items, {first} {len(one.keys)}, "
                         "and not the same ones")  # fmt: skip
        rules = {
            **{name: (protocol.get(name), other.get(name)) for name in COMPARED},
            **{name: (one.protocol.get(name), result.protocol.get(name))
               for name in {**one.protocol, **result.protocol}},
        }  # fmt: skip
        notes += [
            f"{name}: {left} for {first}, {right} for {model}"
            for name, (left, right) in rules.items()
            if left != right and None not in (left, right)
        ]
    return notes


# ------------------------------------------------------------------------------------------ output


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    if math.isnan(metric.low):
        return f"{metric.value:.1f}"
    return f"{metric.value:.1f} ({metric.low:.1f} to {metric.high:.1f})"


def _off_chance(metric: Metric) -> bool:
    return math.isnan(metric.low) or not metric.low <= metric.chance <= metric.high


def first_table(boards: Sequence[Board]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row a model and scorer, a column a benchmark; the best in each is marked.

    A value whose interval holds chance is marked too.
    """
    names = dict.fromkeys(entry.name for board in boards for entry in board.entries)
    header = ["", *(f"{board.benchmark} {board.quantity}" for board in boards)]
    rows = []
    for name in names:
        row = [name]
        for board in boards:
            here = next((one for one in board.entries if one.name == name), None)
            if here is None:
                row.append("-")
                continue
            best = here.headline.value == board.entries[0].headline.value
            mark = " *" if best and len(board.entries) > 1 else ""
            low = "" if _off_chance(here.headline) else " (chance)"
            row.append(_cell(here.headline) + mark + low)
        rows.append(row)
    chances = [board.entries[0].headline.chance for board in boards]
    rows.append(["chance", *(f"{chance:.1f}" for chance in chances)])
    return header, rows


LEGEND = (
    "In percent, in brackets the 95 % interval over pictures. * the best; (chance): the interval "
    "holds what random scores give. Whether two models differ: python -m nas_jax.evals.compare."
)


def to_markdown(boards: Sequence[Board]) -> str:
    """The first table, the categories of each benchmark, and the notes."""
    header, rows = first_table(boards)
    lines = ["# Leaderboard", "", *_table(header, rows), "", LEGEND, ""]
    for board in boards:
        if len(board.parts) > 1:
            cells = [
                [one.name, *(_cell(one.parts.get(part)) for part in board.parts)]
                for one in board.entries
            ]
            lines += [f"## {board.benchmark}", "", *_table(["", *board.parts], cells), ""]
        if board.notes:
            lines += [f"Not asked alike in {board.benchmark}:", ""]
            lines += [*(f"* {note}" for note in board.notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(one.replace("|", "\\|") for one in row) + " |" for row in cells]


def to_html(boards: Sequence[Board]) -> str:
    """A page that needs nothing else."""
    header, rows = first_table(boards)
    parts = [_html_table(header, rows), f"<p>{html.escape(LEGEND)}</p>"]
    names = list(dict.fromkeys(one.name for board in boards for one in board.entries))
    if len(names) > MOST:
        parts.append(f"<p>The pictures show the first {MOST} of {len(names)}.</p>")
    parts.append(key(names[:MOST]))
    for board in boards:
        of_name = {one.name: one for one in board.entries}
        shown = [of_name.get(name) for name in names[:MOST]]  # a model has one colour on the page
        numbers = {board.quantity: [one.headline if one else None for one in shown]}
        spokes = {
            part: [one.parts.get(part) if one else None for one in shown] for part in board.parts
        }
        numbers |= spokes if len(spokes) > 1 else {}
        usual = board.entries[0].headline.chance
        chance = {part: _chance(metrics, usual) for part, metrics in numbers.items()}
        parts.append(f"<h2>{html.escape(board.benchmark)}</h2>")
        if len(spokes) >= RADAR_FROM:
            parts.append(radar(spokes, chance))
        parts.append(bars(numbers, chance))
        if board.notes:
            lines = "".join(f"<li>{html.escape(note)}</li>" for note in board.notes)
            parts.append(f"<p>Not asked alike:</p><ul>{lines}</ul>")
    return page("Leaderboard", parts)


def _chance(row: Sequence[Metric | None], usual: float) -> float:
    return next((metric.chance for metric in row if metric is not None), usual)


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(one)}</th>" for one in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>\n" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    parser = Parser(
        prog="python -m nas_jax.evals.leaderboard",
        description="Models beside each other, from their results: a page of tables and pictures.",
        allow_abbrev=False,
    )
    parser.add_argument("results", nargs="+", metavar="NAME=RESULTS",
                        help="a model and its results.json, or the folder with it")  # fmt: skip
    parser.add_argument("--scorer", default="", metavar="NAME[,NAME]", help="default: all")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the page goes")
    args = parser.parse_args(argv)
    found = []
    for given in args.results:
        name, sign, path = given.partition("=")
        if not (name and sign and path):
            raise DataError(repr(given), "NAME=RESULTS", "put the model's name before its results")
        found.append((name, *read(path)))
    boards = collect(found, tuple(one for one in args.scorer.split(",") if one))
    folder, text = as_path(args.out), to_markdown(boards)
    with writing_out(folder):
        make_folder(folder)
        write_whole(folder / f"{LEADERBOARD}.md", text)
        write_whole(folder / f"{LEADERBOARD}.html", to_html(boards))
    print(text)
    print(f"page: {folder / LEADERBOARD}.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
