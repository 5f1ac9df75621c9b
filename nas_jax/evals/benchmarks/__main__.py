"""What a folder holds of a benchmark: items by category, and what is lost.

python -m nas_jax.evals.benchmarks valse --data data/valse
python -m nas_jax.evals.benchmarks own --data data/mine --image-size 224
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from nas_jax.data.config import check_image_range
from nas_jax.evals.benchmarks import BENCHMARKS, load_benchmark
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.logging import set_up_logging


def describe(benchmark: Benchmark) -> str:
    """Some lines about a benchmark."""
    counts = Counter(question.category for question in benchmark.questions)
    lines = [
        f"{benchmark.name}: {len(benchmark.questions)} items ({benchmark.form}), "
        f"{len(benchmark.images)} pictures"
    ]
    lines += (
        [f"  {category}: {count}" for category, count in sorted(counts.items())]
        if len(counts) > 1
        else []
    )
    lines += [f"  {rule}: {value}" for rule, value in benchmark.protocol.items()]
    lines += [f"  dropped, {reason}: {count}" for reason, count in benchmark.dropped.items()]
    return "\n".join(lines)


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    width = max(map(len, BENCHMARKS))
    parser = Parser(
        prog="python -m nas_jax.evals.benchmarks",
        description="Loads a benchmark and says what is there.",
        epilog="benchmarks:\n"
        + "\n".join(f"  {name:<{width}}  {entry.about}" for name, entry in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("benchmark", metavar="BENCHMARK")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with its files")
    parser.add_argument(
        "--image-size",
        type=int,
        default=None,
        metavar="N",
        help="also decode all pictures, N pixels",
    )
    parser.add_argument(
        "--max-dropped", type=float, default=0.01, metavar="SHARE", help="default 0.01"
    )
    ends = "what is black and white in pictures of more than 8 bits (default: as the file says)"
    parser.add_argument(
        "--image-range", nargs=2, type=float, default=(), metavar=("LOW", "HIGH"), help=ends
    )
    args = parser.parse_args(argv)
    image_range = tuple(args.image_range)
    check_image_range(image_range, "--image-range")
    given = args.benchmark, args.data, args.image_size, args.max_dropped
    for benchmark in load_benchmark(*given, image_range=image_range):
        print(describe(benchmark))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
