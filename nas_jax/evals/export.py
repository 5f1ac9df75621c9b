"""Writes the questions of a benchmark for a model of any framework; `score` reads its answers.

    python -m nas_jax.evals.questions valse --data data/valse --out q.jsonl
    python -m nas_jax.evals.questions own --data data/mine --out q.jsonl --pictures q_pictures
    python -m nas_jax.evals.questions coco --data data/coco --out q.jsonl

A line of the file is a question: {"benchmark", "key", "form", "category", "pictures": [paths],
"texts": [...]}. Its scores are one list a picture, with one number a text, the higher the better:
{"benchmark", "key", "scores": [[...], ...]}. Of form "texts" there are no pictures, and the lists
compare each text with each. Right answers come first; of form "quad", text k belongs to picture k.

A line of form "retrieval" is a picture with its captions. Its scores are one .npy of all pairs,
(pictures, texts), with the pictures and texts in the order of the file.

Beside it, q.protocol.json says how texts and pictures were made.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

import nas_jax
from nas_jax.data.config import check_image_range
from nas_jax.data.deep_pixels import Range
from nas_jax.data.sources import Report
from nas_jax.evals import karpathy
from nas_jax.evals.benchmarks import BENCHMARKS, load_with
from nas_jax.evals.benchmarks.assemble import UNCUT, LoadOptions, most_dropped
from nas_jax.evals.benchmarks.fits import FITS, Unread, fitted, original, path_of
from nas_jax.evals.benchmarks.reading import Unusable, read_json
from nas_jax.evals.questions import Benchmark
from nas_jax.storage.files import write_whole
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.logging import set_up_logging

RETRIEVAL = "retrieval"


@dataclass
class Pictures:
    """Where the pictures of questions are, or are written to.

    With a folder they are written there: as they are, or, where they are cut or resized, as PNG.
    Without one, they must be files of their own. With `names`, none is looked for.
    """

    folder: Path | None
    size: int | None  # pixels; None: as they are
    fit: str
    names: bool = False  # the names that the annotations have
    value_range: Range = ()  # of deep pictures, see `decode`
    _known: dict[Any, str] = field(default_factory=dict)

    def path(self, unread: Unread, index: int) -> str:
        """The path of a picture. Raises Unusable where there is none that can be read."""
        picture = unread.pictures[index]
        if self.names:
            return picture.name
        if picture not in self._known:
            self._known[picture] = self._written(unread, index)
        return self._known[picture]

    def rule(self) -> str:
        """What the protocol says of them."""
        if self.names:
            return "names alone"
        return "as they are" if self.size is None else f"{self.size} pixels, {FITS[self.fit]}"

    def _written(self, unread: Unread, index: int) -> str:
        picture = unread.pictures[index]
        if self.folder is None:
            place = path_of(unread.files, picture.name)
            if picture.box is None and place is not None:
                return os.path.abspath(place)
            what = "are parts of others" if picture.box else "lie in tar or zip files"
            got, expected = f"pictures that {what}, like {picture.name}", "files of their own"
            raise DataError(got, expected, "pass --pictures DIR, and they are written there")
        image_HxWx3 = original(unread.files, picture, self.value_range)
        if picture.box is None and self.size is None:
            data, suffix = unread.files.read(picture.name), Path(picture.name).suffix or ".jpg"
        else:
            out, suffix = io.BytesIO(), ".png"
            if self.size is not None:
                image_HxWx3 = fitted(image_HxWx3, self.size, self.fit)
            Image.fromarray(image_HxWx3).save(out, "PNG")
            data = out.getvalue()
        path = self.folder / f"{len(self._known):06d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return os.path.abspath(path)


def question_lines(
    benchmark: Benchmark, pictures: Pictures, report: Report
) -> Iterator[dict[str, Any]]:
    """A line a question; those whose pictures cannot be read are counted in `report`."""
    images = _unread(benchmark.images)
    for question in benchmark.questions:
        try:
            shown = [pictures.path(images, index) for index in question.images]
        except Unusable as error:
            report.drop(error.reason, error.example)
            continue
        boxes = [images.pictures[index].box for index in question.images]
        yield {
            "benchmark": benchmark.name,
            "key": question.key,
            "form": benchmark.form,
            "category": question.category,
            "pictures": shown,
            "texts": list(question.texts),
        } | ({"boxes": boxes} if pictures.names and any(boxes) else {})


def retrieval_lines(
    collection: karpathy.Collection, pictures: Pictures
) -> Iterator[dict[str, Any]]:
    """A line a picture, with its captions. Raises DataError where a picture is missing."""
    images = _unread(collection.eval_set.images)
    for index, (name, texts) in enumerate(
        zip(collection.names, collection.eval_set.captions, strict=True)
    ):
        try:
            path = pictures.path(images, index)
        except Unusable as error:
            got, remedy = f"{collection.name}: {error}", "get the missing files, or pass --names"
            raise DataError(got, "all pictures of the list", remedy) from error
        yield {
            "benchmark": collection.name,
            "key": name,
            "form": RETRIEVAL,
            "pictures": [path],
            "texts": list(texts),
        }


def _unread(images: Sequence[Any]) -> Unread:
    """The pictures of a set. Raises TypeError where it was loaded with an image_size."""
    found = images.all if isinstance(images, karpathy.Kept) else images
    if not isinstance(found, Unread):
        raise TypeError(f"pictures loaded with an image_size, {type(found).__name__}, to export")
    return found


def export(
    name: str, data: Path, out: Path, options: LoadOptions, pictures: Pictures, only: str = ""
) -> dict[str, Any]:
    """Writes the questions of a benchmark, and their protocol beside them; returns the protocol.

    Args:
      name: one of `BENCHMARKS`, or a retrieval set.
      data: its folder.
      out: the jsonl.
      options: how texts are made.
      pictures: where pictures go.
      only: of a name with several benchmarks, this one.

    Raises:
      ConfigError, DataError: as the loaders; and more pictures than may be missing.
    """
    loaded: Sequence[Any] = _loaded(name, data, options)
    loaded = [one for one in loaded if only in ("", one.name)]
    if not loaded:
        raise ConfigError(f"--only {only!r}", f"a benchmark of {name}", "leave --only out")
    lines, rules, lost = [], {}, {}
    for one in loaded:
        report = Report()
        if isinstance(one, karpathy.Collection):
            found = list(retrieval_lines(one, pictures))
        else:
            found = list(question_lines(one, pictures, report))
        total = len(found) + sum(report.values())
        if not found or total - len(found) > most_dropped(options.max_dropped, total):
            got = f"{one.name}: {total - len(found)} of {total} items without pictures: "
            remedy = "get the missing files, raise --max-dropped, or pass --names"
            expected = f"at most {options.max_dropped:.2%} of them"
            raise DataError(got + report.line(), expected, remedy)
        lines += found
        rules[one.name] = {"items": len(found), **one.protocol}
        lost[one.name] = {**one.dropped, **report}
    protocol = {
        "made by": f"nas_jax {nas_jax.__version__}",
        "pictures": pictures.rule(),
        "texts": {"clean": options.clean, "cased": options.cased, "max_words": options.max_words},
        "benchmarks": rules,
        "dropped": lost,
    }
    write_whole(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_whole(protocol_path(out), json.dumps(protocol, indent=1, ensure_ascii=False) + "\n")
    return protocol


def _loaded(name: str, data: Path, options: LoadOptions) -> Sequence[Any]:
    if name in karpathy.FILES:
        return [karpathy.load(name, data, options)]
    if name in BENCHMARKS:
        return load_with(name, data, options)
    known = ", ".join((*BENCHMARKS, *karpathy.FILES))
    raise ConfigError(f"benchmark {name!r}", f"one of {known}", "check the spelling")


def protocol_path(questions: Path) -> Path:
    """Where the protocol of a file of questions is."""
    return questions.with_suffix(".protocol.json")


def read_protocol(questions: Path) -> dict[str, Any]:
    """The protocol of a file of questions. Raises DataError where there is none."""
    protocol = read_json(protocol_path(questions), dict)
    texts = protocol.get("texts")
    if not isinstance(texts, dict) or set(texts) != {"clean", "cased", "max_words"}:
        got, remedy = f"{protocol_path(questions)} without texts", "write the questions again"
        raise DataError(got, "clean, cased and max_words", remedy)
    return protocol


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    known = ", ".join((*BENCHMARKS, *karpathy.FILES))
    parser = Parser(
        prog="python -m nas_jax.evals.questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("benchmark", metavar="BENCHMARK", help=known)
    add("--data", required=True, metavar="DIR", help="folder with its files")
    add("--out", required=True, metavar="FILE", help="the questions, a jsonl")
    add("--only", default="", metavar="NAME", help="of several benchmarks, this one")
    add("--pictures", default=None, metavar="DIR", help="write all pictures there")
    alone = "the names that the annotations have; no picture is looked for"
    add("--names", action="store_true", help=alone)
    add("--size", type=int, default=None, metavar="N", help="resized to N pixels")
    deep = "values of deep pictures that are black and white"
    ends = ("LOW", "HIGH")
    add("--image-range", type=float, nargs=2, default=(), metavar=ends, help=deep)
    add("--fit", default="squash", help="with --size: squash (default) or crop, the middle square")
    add("--clean", action="store_true", help="texts in lower case without punctuation, as ALBEF's")
    add("--cased", action="store_true", help="with --clean: capitals stay")
    cut = "longer texts are cut (default: none)"
    add("--max-words", type=int, default=UNCUT, metavar="N", help=cut)
    share = "of items that may be lost (default 0.01)"
    add("--max-dropped", type=float, default=0.01, metavar="SHARE", help=share)
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    args = _parse(argv)
    if args.size is not None and args.pictures is None:
        raise ConfigError("--size without --pictures", "both", "pass --pictures DIR")
    if args.names and args.pictures is not None:
        raise ConfigError("--names with --pictures", "one of them", "leave one out")
    words = {"clean": args.clean, "cased": args.cased, "max_words": args.max_words}
    options = LoadOptions(max_dropped=args.max_dropped, fit=args.fit, **words)
    options.validate()
    folder = None if args.pictures is None else Path(args.pictures).expanduser()
    value_range = tuple(args.image_range)
    check_image_range(value_range, "--image-range")
    pictures = Pictures(folder, args.size, args.fit, args.names, value_range)
    data, out = Path(args.data).expanduser(), Path(args.out).expanduser()
    if out.suffix != ".jsonl":
        raise ConfigError(f"--out {args.out}", "a name that ends in .jsonl", "rename it")
    protocol = export(args.benchmark, data, out, options, pictures, args.only)
    for name, rules in protocol["benchmarks"].items():
        print(f"{name}: {rules['items']} items")
    print(f"{out}, {protocol_path(out)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)
