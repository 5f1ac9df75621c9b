"""Anyone's own pairs and quads, without code: jsonl files with the pictures beside them.

A line of a file of pairs is {image, caption, foil} with an optional category and id, a line of a
file of quads {image_0, image_1, caption_0, caption_1} with the same. A foil may be a list: the
caption has to beat all of them. Instead of lines a file may hold a json array of such objects. Each
file is a benchmark of its own, "own:NAME". Pictures lie anywhere below the folder, or in .tar or
.zip files in it: "noto-foils.jsonl" looks in the tars whose names begin with the same word
("noto.tar"), and in all where there are none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import (
    category_of,
    each,
    name_of,
    read_lines,
    text,
)
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

PAIR = (("image",), ("caption",))  # fields of pictures, fields of texts; foils come after these
QUAD = (("image_0", "image_1"), ("caption_0", "caption_1"))
FOIL_FIELDS = ("foil", "foils", "negative_caption")
LINES, ARRAYS = ("*.jsonl", "*.jsonl.gz", "*.ndjson"), ("*.json", "*.json.gz")


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """One benchmark for each jsonl file, and where there is none, for each json file with an array;
    `data_dir` may also be one such file.
    """
    paths = [data_dir] if data_dir.is_file() else _matching(data_dir, LINES)
    paths = paths or _matching(data_dir, ARRAYS)
    if not paths:
        expected = (
            "files with lines {image, caption, foil} or {image_0, image_1, caption_0, caption_1}"
        )
        raise DataError(f"no *.jsonl in {data_dir}", expected, "write your pairs into one")
    return tuple(_load(path, options) for path in paths)


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _load(path: Path, options: LoadOptions) -> Benchmark:
    lines = read_lines(path)
    is_quad = any(isinstance(entry, Mapping) and "image_0" in entry for _, entry in lines)
    pictures, texts = QUAD if is_quad else PAIR

    def draft(number: int, entry: Any) -> Draft:
        key = name_of(entry, "id") if isinstance(entry, Mapping) and "id" in entry else str(number)
        shown = tuple(PictureRef(name_of(entry, field)) for field in pictures)
        said = tuple(text(entry, field) for field in texts)
        return Draft(key, category_of(entry), shown, said if is_quad else said + _foils(entry))

    items = Items()
    items.drafts += each(lines, draft, items.report)
    tars = sorted(path.parent.glob("*.tar"))
    of_word = [tar for tar in tars if _first_word(tar) == _first_word(path)]
    files = Files(path.parent, of_word or tars)
    headline = "all/group" if is_quad else "all/accuracy"
    name = f"own:{path.name.removesuffix('.gz').rpartition('.')[0]}"
    return assemble(name, "quad" if is_quad else "choice", items, files, options, headline=headline)


def _foils(entry: Any) -> tuple[str, ...]:
    """The wrong captions of a pair. Raises Unusable where there is none, or one is no text."""
    field = next((name for name in FOIL_FIELDS if name in entry), "foil")
    given = entry.get(field)
    given = given if isinstance(given, list) else [given]
    return tuple(text({"foil": foil}, "foil") for foil in given or [None])


def _first_word(path: Path) -> str:
    return re.split(r"[-_.]", path.name)[0]
