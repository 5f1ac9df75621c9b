"""The command line of nas_jax.convert."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from nas_jax.utils.commands import Parser, exit_code

COMMANDS = {
    "from-albef": (
        "nas_jax.convert.from_albef",
        "a state dict of ALBEF or NAS_ALBEF -> a folder of weights",
    ),
    "from-hf": (
        "nas_jax.convert.from_hf",
        "a ViT and a BERT, or an export of ours -> a folder of weights",
    ),
    "to-hf": (
        "nas_jax.convert.to_hf",
        "a checkpoint -> a folder that transformers loads, after a comparison",
    ),
    "to-albef": ("nas_jax.convert.to_albef", "a checkpoint -> a state dict under ALBEF's names"),
}
"""Subcommand -> its module, which has `add_arguments(parser)` and `run(args) -> exit code`, and
what it does.
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m nas_jax.convert",
        description="Weights of other code bases into our layout and back.",
        epilog="Exit codes: 0 done, 2 wrong flags or sizes, 3 unusable input, 4 unfit weights, "
        "7 the two sides differ, 130 interrupted.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        if name in argv[:1]:  # the others need not be imported
            chosen = importlib.import_module(module)
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""

    def run(words: Sequence[str]) -> int:
        args = _parse(words)
        return args.run(args)

    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
