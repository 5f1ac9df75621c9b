"""Numbers of a benchmark from scores that exist already, whoever computed them.

    python -m nas_jax.evals.score valse --scores albef_4m.jsonl.gz --data data/valse
    python -m nas_jax.evals.score winoground --scores albef_4m.jsonl
    python -m nas_jax.evals.score retrieval --scores FOLDER --data coco_karpathy_test.json
    python -m nas_jax.evals.score svo --scores results.json --data data/svo
    python -m nas_jax.evals.score --check FOLDER

Score files, plain or as .gz:

* VALSE, two lines an example: {"instrument": piece, "id": number, "type": "caption" or "foil",
"score": probability}
* Winoground, four lines an example: {"label": "ID_cCAPTION_iPICTURE", "score": ...}
* any benchmark, one line an item, with --data: {"key": ..., "scores": [[...], ...]}, one list a
picture
* results.json of nas_jax.evals, with --data
* retrieval: test_i2t.npy and test_t2i.npy, for each query the rank of its first right answer, from
0; one or a folder

The first two and the ranks are as e-bug/fine-grained-evals publishes them. With --data the items
are also checked against the annotation files, one by one. `--check` recomputes every number of such
a folder's expected.json and of the text files beside its ranks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.evals import metrics
from nas_jax.evals.benchmarks import BENCHMARKS, load_benchmark, valse
from nas_jax.evals.benchmarks.pictures import NoPictures
from nas_jax.evals.benchmarks.reading import read_json
from nas_jax.evals.outcomes import Row, rows
from nas_jax.evals.questions import Benchmark, Question
from nas_jax.evals.statistics import RESAMPLES, bootstrap_interval
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError, DataError

CUTS = (1, 5, 10)
DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}
# COCO's test set has 25,010 captions; some count the first five of each picture, 25,000
CAPTIONS_OF_FIVE = 5


# ----------------------------------------------------------------------------------- reading scores


@dataclass(frozen=True)
class Given:
    """Scores of some items. `keys` are those of the published files, or of our benchmarks."""

    kind: str  # "valse", "winoground", "cells"
    keys: tuple[Any, ...]
    cells: tuple[np.ndarray, ...]  # (pictures, texts) each
    scorer: str


def read_scores(path: Path, name: str) -> list[Given]:
    """The scores in a file; several where it is a results.json with several scorers.

    Args:
      path: a jsonl or results.json.
      name: benchmark that is looked for in a results.json.

    Raises:
      DataError: a file of another form, with lines missing or twice.
    """
    if path.suffix == ".json":
        return _from_results(path, name)
    lines = _read_lines(path)
    first = lines[0] if lines and isinstance(lines[0], Mapping) else {}
    if {"instrument", "type", "id"} <= set(first):
        return [_from_valse(path, lines)]
    if "label" in first:
        return [_from_winoground(path, lines)]
    if {"key", "scores"} <= set(first):
        return [_from_cells(path, lines)]
    expected = "lines of VALSE, of Winoground, or {key, scores}"
    raise DataError(
        f"{path}: lines with {', '.join(map(str, first)) or 'nothing'}", expected, "see --help"
    )


def _read_lines(path: Path) -> list[Any]:
    try:
        data = path.read_bytes()
        content = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", "a readable jsonl file", "check the path") from error
    try:
        return [json.loads(line) for line in content.split("\n") if line.strip()]
    except ValueError as error:
        raise DataError(
            f"{path}: {error}", "one json object a line", "copy it again; it may be cut short"
        ) from error


def _collect(path: Path, cells: Iterable[tuple[Any, int, Any]], size: int) -> dict[Any, np.ndarray]:
    """(item, place, score) -> item -> its `size` scores. Each place must come once."""
    found: dict[Any, dict[int, float]] = {}
    for item, place, score in cells:
        scores = found.setdefault(item, {})
        if place in scores:
            raise DataError(
                f"{path}: item {item} has a score twice", "each once", "remove the copies"
            )
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise DataError(
                f"{path}: item {item} with score {score!r}", "a number", "mend that line"
            )
        scores[place] = score
    for item, scores in found.items():
        if len(scores) < size:
            raise DataError(
                f"{path}: item {item} has {len(scores)} scores", f"{size}", "copy the file again"
            )
    return {
        item: np.array([scores[place] for place in range(size)], np.float64)
        for item, scores in found.items()
    }


def _from_valse(path: Path, lines: Sequence[Any]) -> Given:
    places = {"caption": 0, "foil": 1}
    try:
        cells = [
            ((line["instrument"], int(line["id"])), places[line["type"]], line["score"])
            for line in lines
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: {error!r} in a line", "instrument, id, type, score", "mend the file"
        ) from error
    found = _collect(path, cells, 2)
    return Given(
        "valse", tuple(found), tuple(scores[None] for scores in found.values()), "probability"
    )


def _from_winoground(path: Path, lines: Sequence[Any]) -> Given:
    cells = []
    for line in lines:
        label = line.get("label") if isinstance(line, Mapping) else None
        match = re.fullmatch(r"(.+)_c([01])_i([01])", label) if isinstance(label, str) else None
        if match is None:
            raise DataError(f"{path}: label {label!r}", "ID_c0_i0 to ID_c1_i1", "mend that line")
        cells.append((match[1], 2 * int(match[3]) + int(match[2]), line.get("score")))
    found = _collect(path, cells, 4)
    return Given(
        "winoground",
        tuple(found),
        tuple(four.reshape(2, 2) for four in found.values()),
        "probability",
    )


def _from_cells(path: Path, lines: Sequence[Any]) -> Given:
    keys, cells = [], []
    for line in lines:
        try:
            keys.append(str(line["key"]))
            cells.append(np.array(line["scores"], np.float64))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: {error!r} in a line", "key and scores", "mend that line"
            ) from error
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}: a key comes twice", "each once", "remove the copies")
    return Given("cells", tuple(keys), tuple(cells), "score")


def _from_results(path: Path, name: str) -> list[Given]:
    from nas_jax.evals import results

    found = [result for result in results.read(path)[1] if result.name == name]
    if not found:
        raise DataError(
            f"{path} without {name!r}", "results of that benchmark", "check which run it is of"
        )
    return [
        Given(
            "cells",
            tuple(found[0].keys),
            tuple(np.array(cell, np.float64) for cell in cells),
            scorer,
        )
        for scorer, cells in found[0].scores.items()
    ]


# ------------------------------------------------------------------------------------------ scoring


def score(
    name: str,
    path: Path,
    data: Path | None = None,
    scorer: str | None = None,
    resamples: int = RESAMPLES,
) -> list[Row]:
    """All numbers of a benchmark from a file of scores.

    Args:
      name: a benchmark of `BENCHMARKS`, or "retrieval".
      path: the file, or of retrieval a folder with two.
      data: the annotations; needed except for the published forms of VALSE and Winoground and for
      ranks.
      scorer: what the scores are; None: "probability" of the published forms, as named in a
      results.json, else "score".
      resamples: of the bootstrap.

    Raises:
      ConfigError: an unknown benchmark, or no `data` where it is needed.
      DataError: a malformed file, or items that are not those of the annotations.
    """
    if name == "retrieval":
        return retrieval_rows(path, data, resamples)
    if name not in BENCHMARKS:
        expected = f"one of {', '.join((*BENCHMARKS, 'retrieval'))}"
        raise ConfigError(f"benchmark {name!r}", expected, "check the spelling")
    if not path.exists():
        raise DataError(f"no file {str(path)!r}", "a file of scores", "check --scores")
    loaded = load_benchmark(name, data) if data is not None else ()
    out: list[Row] = []
    for benchmark in loaded or (None,):
        for given in read_scores(path, benchmark.name if benchmark else name):
            whole, cells = (
                _join(given, benchmark, data, path)
                if benchmark
                else (_alone(name, given), given.cells)
            )
            out += rows(whole, cells, scorer or given.scorer, resamples=resamples)
    return out


def _alone(name: str, given: Given) -> Benchmark:
    """The benchmark that a published score file implies."""
    if given.kind != name:
        got = f"scores of {name} of kind {given.kind}, without --data"
        raise ConfigError(got, "the annotation files", "pass --data DIR")
    if name == "winoground":
        quads = [
            Question(key, "none", (2 * i, 2 * i + 1), ("", "")) for i, key in enumerate(given.keys)
        ]
        return Benchmark(
            name, "quad", tuple(quads), NoPictures(2 * len(quads)), {}, headline="all/group"
        )
    # One picture each, as the file does not say which examples share one.
    questions = [
        Question(f"{piece}/{number}", piece, (index,), ("", ""))
        for index, (piece, number) in enumerate(given.keys)
    ]
    return Benchmark(
        name,
        "choice",
        tuple(questions),
        NoPictures(len(questions)),
        {},
        groups=valse.GROUPS,
        absolute=True,
    )


def _join(
    given: Given, benchmark: Benchmark, data: Path, path: Path
) -> tuple[Benchmark, list[np.ndarray]]:
    """The benchmark, and the cells in its order.

    Raises DataError where the items are not the same.
    """
    keys: Sequence[Any] = given.keys
    if given.kind == "valse" and benchmark.name == "valse":
        published = valse.published_keys(data)
        unknown = [key for key in keys if key not in published]
        if unknown:
            piece, number = unknown[0]
            raise DataError(
                f"{path}: item {number} of {piece}", "an example of that piece", "check both files"
            )
        keys = [published[key] for key in keys]
    elif given.kind not in ("cells", benchmark.name):
        raise DataError(
            f"{path}: scores of {given.kind}",
            f"scores of {benchmark.name}",
            "name the right benchmark",
        )
    found = dict(zip(keys, given.cells, strict=True))
    wanted = {question.key for question in benchmark.questions}
    if found.keys() != wanted:
        missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
        got = f"{path}: {len(missing)} items of {benchmark.name} without scores, {len(extra)} scores of other items"
        raise DataError(
            f"{got}, like {(missing + extra)[0]!r}",
            "scores of exactly its items",
            "check both files",
        )
    return benchmark, [found[question.key] for question in benchmark.questions]


# ---------------------------------------------------------------------------------------- retrieval


def retrieval_rows(path: Path, data: Path | None = None, resamples: int = RESAMPLES) -> list[Row]:
    """Recall at 1, 5 and 10 from ranks.

    Args:
      path: a .npy whose name has i2t or t2i in it, or a folder with one or both.
      data: Karpathy's json, [{image, caption: [...]}, ...]; checks the counts, gives the chance of
        image_to_text, and adds text_to_image over the first five captions of each picture where
        some have more.
      resamples: of the bootstrap.
    """
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    captions_N = None if data is None else _caption_counts(data)
    out: list[Row] = []
    for short, direction in DIRECTIONS.items():
        found = [one for one in paths if short in one.name]
        if len(found) > 1:
            raise DataError(f"{path}: {len(found)} files of {short}", "one", "name the file itself")
        if found:
            out += _direction(found[0], direction, captions_N, resamples)
    if not out:
        raise DataError(f"{path}: no ranks", "a .npy with i2t or t2i in its name", "check --scores")
    means = [
        row.value for row in out if row.quantity == "r_mean" and row.part in DIRECTIONS.values()
    ]
    if len(means) == len(DIRECTIONS):
        both = Row(
            "retrieval",
            "both",
            "ranks",
            "r_mean",
            float(np.mean(means)),
            *[math.nan] * 3,
            None,
            out[0].count,
            0,
        )
        out.append(both)
    return out


def _direction(
    path: Path, direction: str, captions_N: np.ndarray | None, resamples: int
) -> list[Row]:
    ranks_R = _read_ranks(path)
    if direction == "image_to_text":
        if captions_N is None:
            return _recalls(direction, ranks_R, None, 0, np.arange(len(ranks_R)), resamples)
        _check_ranks(path, ranks_R, len(captions_N), int(captions_N.sum()))
        return _recalls(
            direction,
            ranks_R,
            captions_N,
            int(captions_N.sum()),
            np.arange(len(ranks_R)),
            resamples,
        )
    ones = np.ones(len(ranks_R), np.int64)
    if captions_N is None:
        return _recalls(direction, ranks_R, None, 0, np.arange(len(ranks_R)), resamples)
    _check_ranks(path, ranks_R, int(captions_N.sum()), len(captions_N))
    image_R = np.repeat(np.arange(len(captions_N)), captions_N)
    out = _recalls(direction, ranks_R, ones, len(captions_N), image_R, resamples)
    first_five = np.concatenate([np.arange(count) < CAPTIONS_OF_FIVE for count in captions_N])
    if not first_five.all():
        part = f"{direction}_first{CAPTIONS_OF_FIVE}"
        out += _recalls(
            part,
            ranks_R[first_five],
            ones[first_five],
            len(captions_N),
            image_R[first_five],
            resamples,
        )
    return out


def _recalls(
    part: str,
    ranks_R: np.ndarray,
    positives_R: np.ndarray | None,
    candidates: int,
    unit_R: np.ndarray,
    resamples: int,
) -> list[Row]:
    found = {f"r@{k}": ranks_R < k for k in CUTS}
    chances = [
        math.nan if positives_R is None else metrics.recall_chance(positives_R, candidates, k)
        for k in CUTS
    ]
    out = []
    for (quantity, hits_R), chance in zip(found.items(), chances, strict=True):
        low, high = bootstrap_interval(hits_R, unit_R, resamples)
        out.append(
            Row(
                "retrieval",
                part,
                "ranks",
                quantity,
                metrics.percent(hits_R),
                low,
                high,
                chance,
                None,
                len(ranks_R),
                0,
            )
        )
    low, high = bootstrap_interval(np.mean(list(found.values()), axis=0), unit_R, resamples)
    mean = float(np.mean([row.value for row in out]))
    chance = float(np.mean(chances))
    return [
        *out,
        Row("retrieval", part, "ranks", "r_mean", mean, low, high, chance, None, len(ranks_R), 0),
    ]


def _read_ranks(path: Path) -> np.ndarray:
    try:
        ranks_R = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {error}", "a .npy with ranks", "check --scores") from error
    if (
        ranks_R.ndim != 1
        or not len(ranks_R)
        or ranks_R.dtype.kind not in "iuf"
        or not (ranks_R >= 0).all()
    ):
        raise DataError(
            f"{path}: {ranks_R.dtype} {ranks_R.shape}", "one rank from 0 a query", "check --scores"
        )
    return ranks_R


def _caption_counts(path: Path) -> np.ndarray:
    entries = read_json(path, list)
    counts = [entry.get("caption") if isinstance(entry, Mapping) else None for entry in entries]
    if not counts or not all(isinstance(captions, list) and captions for captions in counts):
        raise DataError(
            f"{path}: an entry without captions", "[{image, caption: [...]}, ...]", "check --data"
        )
    return np.array([len(captions) for captions in counts])


def _check_ranks(path: Path, ranks_R: np.ndarray, queries: int, candidates: int) -> None:
    if len(ranks_R) != queries or ranks_R.max() >= candidates:
        got = f"{path}: {len(ranks_R)} ranks up to {ranks_R.max():g}"
        raise DataError(
            got, f"{queries} ranks below {candidates}", "check that --data is the same test set"
        )


# -------------------------------------------------------------------------------- published numbers


@dataclass(frozen=True)
class Compared:
    """A published number and ours."""

    file: str
    what: str
    published: float
    ours: float
    same: bool


def check(folder: Path) -> list[Compared]:
    """Every number of `expected.json` and of the text files beside the ranks, recomputed from the
    scores.

    A number is the same where rounding ours to the printed decimals gives it.
    """
    expected = read_json(folder / "expected.json", dict)
    out = []
    for model, numbers in expected.get("valse_acc_r", {}).items():
        path = _existing(folder / "valse", model)
        values = {
            row.part: row.value
            for row in score("valse", path, resamples=1)
            if row.quantity == "accuracy"
        }
        for piece, number in numbers.items():
            got = values.get("all" if piece == "overall_micro" else piece, math.nan)
            out.append(_compared(path, folder, piece, number, got, decimals=1))
    for model, numbers in expected.get("winoground", {}).items():
        path = _existing(folder / "winoground", model)
        values = {row.quantity: row.value for row in score("winoground", path, resamples=1)}
        out += [
            _compared(path, folder, name, numbers[name], values[name], decimals=2)
            for name in numbers
        ]
    for text_file in sorted(folder.glob("retrieval/*/*.txt")):
        found = {
            (row.part, row.quantity): row.value
            for row in retrieval_rows(text_file.parent, resamples=1)
        }
        names = {
            "both": "",
            **{
                direction: kind
                for direction, kind in zip(DIRECTIONS.values(), ("txt_", "img_"), strict=True)
            },
        }
        ours = {
            f"test_{names[part]}{quantity.replace('@', '')}": value
            for (part, quantity), value in found.items()
        }
        for name, number in read_json(text_file, dict).items():
            decimals = len(repr(number).partition(".")[2])
            out.append(
                _compared(text_file, folder, name, number, ours.get(name, math.nan), decimals)
            )
    if not out:
        raise DataError(
            f"{folder}: no published numbers", "expected.json with some", "check --check"
        )
    return out


def _existing(folder: Path, model: str) -> Path:
    for suffix in (".jsonl.gz", ".jsonl"):
        if (folder / (model + suffix)).is_file():
            return folder / (model + suffix)
    raise DataError(
        f"no scores of {model} in {folder}", f"{model}.jsonl or .jsonl.gz", "check --check"
    )


def _compared(
    path: Path, folder: Path, what: str, published: float, ours: float, decimals: int
) -> Compared:
    same = abs(ours - published) <= 0.5 * 10.0**-decimals + 1e-9  # NaN is never
    return Compared(str(path.relative_to(folder)), what, published, ours, bool(same))


# ------------------------------------------------------------------------------------- command line


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m nas_jax.evals.score",
        description=__doc__,
        epilog="Exit codes: 0 done, 1 --check found a difference, 2 wrong flags, 3 unusable files.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("benchmark", nargs="?", metavar="BENCHMARK", help=f"{', '.join(BENCHMARKS)} or retrieval")
    add("--scores", metavar="FILE", help="the scores, see above")
    add(
        "--data",
        default=None,
        metavar="DIR",
        help="the annotation files; of retrieval, Karpathy's json",
    )
    add(
        "--scorer",
        default=None,
        metavar="NAME",
        help="what the scores are; itm and probability have a threshold",
    )
    add("--json", action="store_true", help="print one json object")
    add(
        "--check",
        default=None,
        metavar="FOLDER",
        help="recompute all published numbers of a folder",
    )
    args = parser.parse_args(argv)
    if args.check is None and (args.benchmark is None or args.scores is None):
        raise ConfigError(
            "no BENCHMARK or no --scores",
            "both, or --check",
            "see python -m nas_jax.evals.score --help",
        )
    return args


def run(argv: Sequence[str]) -> int:
    """What the command line does; returns the exit code. Raises UserError."""
    args = _parse(argv)
    if args.check is not None:
        return _run_check(Path(args.check).expanduser(), args.json)
    data = None if args.data is None else Path(args.data).expanduser()
    found = score(args.benchmark, Path(args.scores).expanduser(), data, args.scorer)
    if args.json:
        print(
            json.dumps(
                {"benchmark": args.benchmark, "rows": [_plain(asdict(row)) for row in found]},
                indent=1,
            )
        )
    else:
        print(format_rows(found))
    return 0


def format_rows(found: Sequence[Row]) -> str:
    """Rows as lines of aligned text; percentages have two decimals."""

    def number(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.2f}"

    header = ("number", "value", "95 % interval", "chance", "ties", "n")
    lines = [
        (
            row.key,
            number(row.value),
            f"{number(row.low)} to {number(row.high)}",
            number(row.chance),
            f"{row.ties}",
            f"{row.count}",
        )
        for row in found
    ]
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in (header, *lines)
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """NaN is no json."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }


def _run_check(folder: Path, as_json: bool) -> int:
    found = check(folder)
    wrong = sum(not one.same for one in found)
    if as_json:
        print(
            json.dumps(
                {
                    "compared": len(found),
                    "different": wrong,
                    "numbers": [_plain(asdict(one)) for one in found],
                }
            )
        )
    else:
        width = max(len(f"{one.file} {one.what}") for one in found)
        for one in found:
            name = f"{one.file} {one.what}"
            print(
                f"{name:<{width}}  {one.published:>9.4f}  {one.ours:>9.4f}  "
                f"{'same' if one.same else 'DIFFERENT'}"
            )
        print(f"{len(found)} published numbers, {wrong} different")
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
