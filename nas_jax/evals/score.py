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
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks import BENCHMARKS
from nas_jax.evals.metrics import Metric
from nas_jax.evals.published import check
from nas_jax.evals.rescore import score
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError
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
    add("benchmark", nargs="?", metavar="BENCHMARK", help=f"{', '.join(BENCHMARKS)} or retrieval")
    add("--scores", metavar="FILE", help="the scores, see above")
    annotations = "the annotation files; of retrieval, Karpathy's json"
    add("--data", default=None, metavar="DIR", help=annotations)
    threshold = "what the scores are; itm and probability have a threshold"
    add("--scorer", default=None, metavar="NAME", help=threshold)
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
    found = score(args.benchmark, Path(args.scores).expanduser(), data, args.scorer)
    if args.json:
        rows = [_plain(asdict(row)) for row in found]
        print(json.dumps({"benchmark": args.benchmark, "rows": rows}, indent=1))
    else:
        print(format_rows(found))
    return 0


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
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
