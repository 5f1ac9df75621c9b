"""Numbers of a benchmark from scores that exist already, whoever computed them.

    python -m nas_jax.evals.score valse --scores albef_4m.jsonl.gz --data data/valse
    python -m nas_jax.evals.score winoground --scores albef_4m.jsonl
    python -m nas_jax.evals.score retrieval --scores FOLDER --data coco_karpathy_test.json
    python -m nas_jax.evals.score svo --scores results.json --data data/svo
    python -m nas_jax.evals.score --check FOLDER

Score files, plain or as .gz:

* any benchmark, one line an item, with --data: {"key": ..., "scores": [[...], ...]}, one list a
  picture with one score a text; "blind", the same with a blank picture, and "benchmark", where
  several have the same keys, may stand beside. `python -m nas_jax.evals.questions` writes the keys
* results.json of nas_jax.evals, with --data
* VALSE, two lines an example: {"instrument": piece, "id": number, "type": "caption" or "foil",
  "score": probability}
* Winoground, four lines an example: {"label": "ID_cCAPTION_iPICTURE", "score": ...}
* VSR, a line an example: {"id": number, "label": 0 or 1, "relation": ..., "score": probability}
* SVO-Probes, two lines an example: {"label": "ID_p" or "ID_n", "subj_neg": ..., "verb_neg": ...,
  "obj_neg": ..., "score": probability}
* retrieval, coco and the other sets: sims.npy, the scores (pictures, texts) of all pairs, with
  --data; or, of retrieval alone, test_i2t.npy and test_t2i.npy, for each query the rank of its
  first right answer, from 0; one or a folder

All but the first two and sims.npy are as e-bug/fine-grained-evals publishes them. With --data the
items are also checked against the annotation files, one by one. `--check` recomputes every number
of such a folder's expected.json and of the text files beside its ranks. `--out` writes
results.json, a table and a page, as nas_jax.evals does; `nas_jax.evals.compare` reads them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas_jax.evals import karpathy
from nas_jax.evals.benchmarks import BENCHMARKS
from nas_jax.evals.detail import question_result
from nas_jax.evals.export import read_protocol
from nas_jax.evals.metrics import Metric
from nas_jax.evals.published import check
from nas_jax.evals.rank_files import retrieval_numbers
from nas_jax.evals.rank_tables import is_table, table_results
from nas_jax.evals.rescore import SCORERS, check_scorer, joined, text_options
from nas_jax.evals.results import Result, write
from nas_jax.evals.statistics import RESAMPLES
from nas_jax.storage.paths import as_path
from nas_jax.train.workdir import writing_out
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.logging import set_up_logging
from nas_jax.utils.tables import aligned


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m nas_jax.evals.score",
        description=__doc__,
        epilog="Exit codes: 0 done, 1 --check found a difference, 2 wrong flags, 3 unusable files.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("benchmark", nargs="?", metavar="BENCHMARK", help=", ".join((*BENCHMARKS, *karpathy.FILES)))
    add("--scores", metavar="FILE", help="the scores, see above")
    annotations = "the annotation files; of retrieval, Karpathy's json"
    add("--data", default=None, metavar="DIR", help=annotations)
    threshold = f"what the scores are: {', '.join(SCORERS)}; itm and probability have a threshold"
    add("--scorer", default=None, metavar="NAME", help=threshold)
    only = "where a name has several benchmarks, the one that the scores are of"
    add("--only", default="", metavar="BENCHMARK", help=only)
    share = "share of items that may be without scores (default 0.01)"
    add("--max-dropped", type=float, default=0.01, metavar="SHARE", help=share)
    blind = "also the scores minus those with a blank picture"
    add("--subtract-blind", action="store_true", help=blind)
    asked = "the questions that were scored, of nas_jax.evals.questions"
    add("--questions", default=None, metavar="FILE", help=asked)
    add("--name", default="", help="of the model, for --out (default: the name of the file)")
    add("--out", default=None, metavar="DIR", help="also write results.json, .md and .html there")
    add("--json", action="store_true", help="print one json object")
    again = "recompute all published numbers of a folder"
    add("--check", default=None, metavar="FOLDER", help=again)
    args = parser.parse_args(argv)
    if args.check is None and (args.benchmark is None or args.scores is None):
        remedy = "see python -m nas_jax.evals.score --help"
        raise ConfigError("no BENCHMARK or no --scores", "both, or --check", remedy)
    return args


def run(argv: Sequence[str]) -> int:
    """What the command line does; returns the exit code. Raises UserError."""
    args = _parse(argv)
    if args.check is not None:
        return _run_check(Path(args.check).expanduser(), args.json)
    data = None if args.data is None else Path(args.data).expanduser()
    scores = Path(args.scores).expanduser()
    numbers = _retrieval if args.benchmark in karpathy.FILES else _questions
    found = numbers(args, scores, data)
    if args.json:
        rows = [_plain(asdict(row)) for row in found]
        print(json.dumps({"benchmark": args.benchmark, "rows": rows}, indent=1))
    else:
        print(format_rows(found))
    return 0


def _questions(args: argparse.Namespace, scores: Path, data: Path | None) -> list[Metric]:
    """The numbers of a benchmark; writes them where --out says."""
    options = args.only, args.max_dropped, args.subtract_blind, _asked(args)
    found = joined(args.benchmark, scores, data, args.scorer, *options)
    made = [question_result(benchmark, all_of, RESAMPLES) for benchmark, all_of in found]
    return _written(args, scores, made)


def _asked(args: argparse.Namespace) -> Path | None:
    return None if args.questions is None else Path(args.questions).expanduser()


def _retrieval(args: argparse.Namespace, scores: Path, data: Path | None) -> list[Metric]:
    """The numbers of a table of scores or of ranks; writes the former where --out says."""
    check_scorer(args.scorer)
    if not is_table(scores):
        if args.benchmark != "retrieval":
            got, remedy = f"{scores}: ranks or no .npy", "name the benchmark retrieval for ranks"
            raise ConfigError(got, f"scores (pictures, texts) of {args.benchmark}", remedy)
        if args.out is not None:
            got, remedy = f"--out, but {scores} has ranks", "give the scores of all pairs"
            raise ConfigError(got, "scores (pictures, texts)", remedy)
        return retrieval_numbers(scores, data)
    if data is None:
        remedy = "pass --data LIST"
        raise ConfigError(f"{scores} without --data", "the list that was scored", remedy)
    options = text_options(scores, args.max_dropped, _asked(args))
    collection = karpathy.load(args.benchmark, data, options)
    return _written(args, scores, table_results(scores, collection, args.scorer or "score"))


def _written(args: argparse.Namespace, scores: Path, made: Sequence[Result]) -> list[Metric]:
    if args.out is not None:
        given = {"file": scores.name, "digest": _digest(scores)}
        bootstrap = {"resamples": RESAMPLES, "seed": 0, "level": 95}
        about = {"checkpoint": {"name": args.name or scores.stem}, "scores": given}
        questions = _asked(args)
        if questions is not None:
            asked = read_protocol(questions)
            about["questions"] = {what: asked[what] for what in ("pictures", "texts")}
        with writing_out(as_path(args.out)):
            write(args.out, {**about, "bootstrap": bootstrap}, made)
    return [row for result in made for row in result.rows]


def _digest(path: Path) -> str:
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:16]


def format_rows(found: Sequence[Metric]) -> str:
    """Rows as lines of aligned text; percentages have two decimals."""

    def number(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.2f}"

    lines = [("number", "value", "95 % interval", "chance", "ties", "n")]
    for row in found:
        interval = f"{number(row.low)} to {number(row.high)}"
        values = number(row.value), interval, number(row.chance)
        lines.append((row.key, *values, f"{row.ties}", f"{row.count}"))
    return "\n".join(aligned(lines))


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
        numbers = [_plain(asdict(one)) for one in found]
        print(json.dumps({"compared": len(found), "different": wrong, "numbers": numbers}))
    else:
        width = max(len(f"{one.file} {one.what}") for one in found)
        for one in found:
            name = f"{one.file} {one.what}"
            verdict = "same" if one.same else "DIFFERENT"
            print(f"{name:<{width}}  {one.published:>9.4f}  {one.ours:>9.4f}  {verdict}")
        print(f"{len(found)} published numbers, {wrong} different")
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
