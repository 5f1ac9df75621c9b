"""Where the words of captions look in their pictures: maps of the fusion encoder's attention.

    python -m nas_jax.inspect.words runs/demo/nas
    python -m nas_jax.inspect.words runs/demo/nas --picture 7 --caption "a red star and a cross"
    python -m nas_jax.inspect.words runs/demo/nas --image cat.png --caption "a cat on a chair"

Writes words.json and words.png, which the report of the run shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import jax

from nas_jax.data.config import DataConfig
from nas_jax.data.image_ops import ImageError, decode, resize
from nas_jax.data.text_ops import prepare_caption
from nas_jax.inspect.picture_files import keep, parser, run_name
from nas_jax.inspect.picture_names import WORDS
from nas_jax.inspect.sheet import probability
from nas_jax.inspect.validation import validation_pairs
from nas_jax.inspect.words_measure import (
    Asked,
    gradient_reaches_words,
    look_at,
    numbers,
)
from nas_jax.inspect.words_picture import ONE_LAYER, draw_words
from nas_jax.methods.match_map import MIDDLE, check_fusion, fusion_layer
from nas_jax.parallel.mesh import make_mesh
from nas_jax.storage.paths import as_path, failures, in_words, reaching
from nas_jax.train.trained import Trained, open_trained
from nas_jax.utils.commands import exit_code
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.logging import set_up_logging

SHOWN, AMONG = 6, 512  # validation pictures drawn, taken evenly among so many


def chosen(trained: Trained, args: argparse.Namespace) -> list[Asked]:
    """What the command line asks for.

    Raises ConfigError: flags that do not go together, a picture that is not there. DataError: a
    file that is no picture.
    """
    data = trained.section(DataConfig, "data")
    cased = trained.tokenizer.cased
    own = prepare_caption(args.caption, data.clean_captions, data.max_words, cased)
    if args.image:
        if not args.caption or args.picture is not None:
            got = "--image with --picture" if args.caption else "--image without --caption"
            raise ConfigError(got, "--image FILE --caption TEXT", "give these two")
        return [Asked(as_path(args.image).name, _read(args.image, data), own)]
    if args.caption and args.picture is None:
        raise ConfigError(
            "--caption without a picture",
            "--picture K --caption TEXT, or --image FILE --caption TEXT",
            "say which picture it is for",
        )
    pairs = validation_pairs(data, trained.seed, AMONG, cased)
    count = len(pairs.captions)
    if args.picture is not None and not 0 <= args.picture < count:
        raise ConfigError(f"--picture {args.picture}", f"0 to {count - 1}", "name one of these")
    shown = min(args.pictures, count)
    places = [k * count // shown for k in range(shown)]
    if args.picture is not None:
        places = [args.picture]
    return [
        Asked(f"{pairs.name} {k}", pairs.images[k], own if args.caption else pairs.captions[k])
        for k in places
    ]


def _read(path: str, data: DataConfig):
    """A picture file as the model reads it, uint8 (size, size, 3)."""
    try:
        ends = data.image_range
        pixels = decode(as_path(path).read_bytes(), (ends[0], ends[1]) if ends else ())
        return resize(pixels, data.image_size)
    except failures(ImageError) as error:
        got = f"{path}: {error if isinstance(error, ImageError) else in_words(error)}"
        raise DataError(got, "a picture that can be read", "check --image") from error


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    flags = parser(WORDS, "Where the words of captions look in their pictures.")
    flags.add_argument(
        "--pictures", type=int, default=SHOWN, help=f"validation pictures drawn (default {SHOWN})"
    )
    flags.add_argument("--picture", type=int, metavar="K", help="validation picture K alone")
    flags.add_argument("--image", default="", metavar="FILE", help="a picture of your own")
    flags.add_argument("--caption", default="", metavar="TEXT", help="for --picture or --image")
    flags.add_argument(
        "--layer", type=int, default=MIDDLE, metavar="K",
        help="fusion layer that is looked at, from 0 (default: the middle one)",
    )  # fmt: skip
    args = flags.parse_args(argv)
    if args.pictures < 1:
        raise ConfigError(f"--pictures {args.pictures}", "1 or more", f"leave it out for {SHOWN}")
    with reaching(args.checkpoint):
        trained = open_trained(args.checkpoint)
        check_fusion(trained.method)
        fusion_layer(trained.method, args.layer)
        asked = chosen(trained, args)
        arrays = trained.load(make_mesh(devices=jax.devices()[:1]))
        length = trained.section(DataConfig, "data").text_length
        found = look_at(trained.method, arrays, trained.tokenizer, asked, length, args.layer)
        about = run_name(trained)
        kept = {"run": about, "pictures": numbers(found)}
        note = "" if gradient_reaches_words(trained.method, args.layer) else ONE_LAYER
        drawn, folder = (about, found, note), args.out or trained.workdir
        line = keep(WORDS, folder, kept, lambda path: draw_words(path, *drawn))
    for one in found:
        print(f"{one.name}: P(match) {probability(one.match)}  {one.caption}")
    print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
