"""An atlas of the visual dictionary of a run: what its most used codes stand for.

    python -m nas_jax.inspect.dictionary runs/demo/nas
    python -m nas_jax.inspect.dictionary runs/demo/nas/checkpoints/500 --out atlas --from 33

Writes dictionary.json and dictionary.png, which the report of the run shows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax

from nas_jax.data.config import DataConfig
from nas_jax.inspect.dictionary_measure import headline, numbers, read_codes, source, summed_up
from nas_jax.inspect.dictionary_picture import draw_dictionary
from nas_jax.inspect.picture_files import keep, parser, run_name
from nas_jax.inspect.picture_names import DICTIONARY
from nas_jax.inspect.validation import validation_pairs
from nas_jax.parallel.mesh import make_mesh
from nas_jax.storage.paths import reaching
from nas_jax.train.trained import open_trained
from nas_jax.utils.commands import exit_code
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.logging import set_up_logging

IMAGES = 512


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    flags = parser(DICTIONARY, "What the most used codes of a visual dictionary stand for.")
    flags.add_argument(
        "--images", type=int, default=IMAGES, help=f"validation pictures read (default {IMAGES})"
    )
    flags.add_argument(
        "--from",
        type=int,
        default=1,
        dest="first",
        metavar="PLACE",
        help="by use; default 1: begin with the most used code",
    )
    args = flags.parse_args(argv)
    if args.images < 2:
        raise ConfigError(f"--images {args.images}", "2 or more", f"leave it out for {IMAGES}")
    with reaching(args.checkpoint):
        trained = open_trained(args.checkpoint)
        params, state = trained.load(make_mesh(devices=jax.devices()[:1]))
        data = trained.section(DataConfig, "data")
        pairs = validation_pairs(data, trained.seed, args.images)
        read = read_codes(trained.method, params, state, pairs.images)
        found = summed_up(read, run_name(trained), pairs.name, args.first)
        drawn = found, pairs.images, trained.model.patch_size
        folder = args.out or trained.workdir
        line = keep(DICTIONARY, folder, numbers(found), lambda path: draw_dictionary(path, *drawn))
    print(f"dictionary of {source(found)}\n{headline(found)}\n{line}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
