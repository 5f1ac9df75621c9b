"""The command line of nas_jax.data.prepare."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nas_jax.data.config import check_image_range
from nas_jax.data.overlap import MAX_DISTANCE
from nas_jax.data.prepare import Labels, Options, check_overlap, prepare, verify
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.logging import Console


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m nas_jax.data.prepare",
        description="Turns pictures with captions into a prepared folder, and says what was lost.",
        epilog="Exit codes: 0 done, 2 wrong flags, 3 unusable data or too many losses, 130 "
        "interrupted.",
        allow_abbrev=False,
    )
    for group in (_add_inputs, _add_places, _add_pictures, _add_work, _add_checks):
        group(parser.add_argument)
    args = parser.parse_args(argv)
    _check_flags(args)
    _check_places(args)
    return args


def _add_inputs(add: Callable[..., Any]) -> None:
    forms = (
        "*.tar, *.parquet, *.json, *.jsonl, *.csv, *.tsv, also packed, a folder of such files, "
        "tfds:NAME[:SPLIT]; tars and parquet also at hf://, https://, s3://; "
        "globs and {000..012} are expanded (docs/what_do_you_have.md)"
    )
    add("inputs", nargs="*", metavar="INPUT", help=forms)
    add("--out", required=True, help="the prepared folder")
    add("--name", default="", help="name of the data set (default: that of the folder)")
    add("--licence", default="", help="noted in the manifest")
    add("--url", default="", help="noted in the manifest")


def _add_places(add: Callable[..., Any]) -> None:
    add(
        "--image-root",
        default="",
        help="folder or zip where the picture paths of lists start (default: the list's folder)",
    )
    add(
        "--strip",
        default="",
        metavar="PREFIX",
        help="taken off the picture paths of lists: what they begin with on another machine",
    )
    add(
        "--groups",
        action="store_true",
        help="INPUT is a folder with a folder for each picture, which holds its variations",
    )
    add("--split", default="", help="Karpathy's json: which splits, like train,restval")
    add(
        "--tfds-captions",
        default="",
        metavar="NAME",
        help="tfds: the text feature with the captions, like a/b",
    )


def _add_pictures(add: Callable[..., Any]) -> None:
    add(
        "--short-side",
        type=int,
        default=0,
        metavar="N",
        help="store larger pictures shrunk (default: as they are)",
    )
    add("--quality", type=int, default=95, help="of the JPEGs that --short-side makes (default 95)")
    ends = "what is black and white in pictures of more than 8 bits (default: as the file says)"
    add("--image-range", nargs=2, type=float, default=(), metavar=("LOW", "HIGH"), help=ends)


def _add_work(add: Callable[..., Any]) -> None:
    add(
        "--workers",
        type=int,
        default=None,
        metavar="W",
        help="processes (default: one a core; 0: only this one)",
    )
    add(
        "--max-lost",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="a larger share lost ends it (default 0.05)",
    )


def _add_checks(add: Callable[..., Any]) -> None:
    add(
        "--tokenizer",
        default="",
        metavar="FOLDER",
        help="say what this tokenizer makes of the captions (folder, or name on the hub)",
    )
    against = "look for the pictures of these evaluation sets: prepared folders, or files as INPUT"
    add("--against", nargs="+", action="extend", default=[], metavar="OTHER", help=against)
    distance = (
        "bits of 256 in which copies may differ "
        "(default {}; fewer for drawings; -1: equal files only)"
    )
    add("--max-distance", type=int, default=None, metavar="N", help=distance.format(MAX_DISTANCE))
    add("--leave-out", action="store_true", help="with --against: leave these pictures out")
    add("--verify", action="store_true", help="compare the shards with the hashes of the manifest")


def _check_flags(args: argparse.Namespace) -> None:
    for flag, given in (
        ("--leave-out", args.leave_out),
        ("--max-distance", args.max_distance is not None),
    ):
        if given and not args.against:
            raise ConfigError(
                f"{flag} without --against", "an evaluation set", "pass --against OTHER"
            )
    if args.workers is not None and args.workers < 0:
        raise ConfigError(
            f"--workers {args.workers}", "at least 0", "leave it out to use all cores"
        )
    if not (args.inputs or args.against or args.verify or args.tokenizer):
        raise ConfigError(
            "no INPUT",
            "files to prepare, or --against, --tokenizer or --verify",
            "name the files before --out",
        )


def _check_places(args: argparse.Namespace) -> None:
    for path in (*args.inputs, args.out, *args.against, args.image_root):
        if "gs://" in path:
            raise ConfigError(
                f"{path}, in a bucket",
                "files and folders of this machine",
                "copy them with gcloud storage cp -r, or mount the bucket (docs/launch.md) and "
                "name the folder there",
            )
    for flag, path in (("--out", args.out), ("--image-root", args.image_root)):
        if "://" in path:
            raise ConfigError(f"{flag} {path}", "a folder of this machine", "name one with room")


def run(argv: Sequence[str], console: Console | None = None) -> None:
    """What the command line does. Raises UserError."""
    args = _parse(argv)
    console = console or Console()
    if args.inputs:
        splits = tuple(name for name in args.split.split(",") if name)
        options = Options(
            args.image_root,
            splits,
            args.tfds_captions,
            args.short_side,
            args.quality,
            tuple(args.image_range),
            args.strip,
            args.groups,
        )
        labels = Labels(args.name, args.licence, args.url)
        prepare(args.inputs, args.out, options, labels, args.workers, args.max_lost, console)
    for other in args.against:
        distance = MAX_DISTANCE if args.max_distance is None else args.max_distance
        ends = tuple(args.image_range)
        check_image_range(ends, "--image-range")
        check_overlap(args.out, other, args.leave_out, args.workers, distance, console, ends)
    if args.inputs or args.tokenizer:
        from nas_jax.data.prepare.texts import say_texts  # here: workers import this file, not jax

        say_texts(args.out, args.tokenizer, console)
    if args.verify:
        verify(args.out, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv, "interrupted; run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
