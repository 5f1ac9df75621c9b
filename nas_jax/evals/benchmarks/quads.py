"""Benchmarks of two pictures and two captions, as Winoground has them: text, image and group score.

Each has its own files; pictures lie anywhere below the folder, or in its tars and zips:

| name | file | fields of an item |
|---|---|---|
| colorswap (Burapacheep et al. 2024) | test.json | caption_1, caption_2, image_1, image_2, id |
| cola (Ray et al. 2023) | COLA_multiobjects_... .json | [link, caption, link, caption] |
| bivlc (Miranda et al. 2024) | bivlc.jsonl | image, caption, negative_image, negative_caption |
| vismin (Awal et al. 2024) | vismin.csv | image_path, caption, edited_image_path, edited_caption |
| eqben (Wang et al. 2023) | eqben_subset_... .json | image0, caption0, image1, caption1 |
| coco_counterfactuals (Le et al. 2023) | examples.jsonl | image_0, image_1, caption_0, ... |
| naturalbench_retrieval (Li et al. 2024) | metadata.json | image_0, image_1, caption_0, ... |

BiVLC and VisMin are published as parquet with the pictures in it: write the rows, with the names of
the pictures, into the file named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nas_jax.data.pair_lines import read_lines
from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import (
    Unusable,
    category_of,
    each,
    find,
    name_of,
    read_json,
    read_table,
    text,
)
from nas_jax.evals.questions import Benchmark


@dataclass(frozen=True)
class _Layout:
    """Where a benchmark of quads has its items."""

    files: tuple[str, ...]
    pictures: tuple[str, str]  # fields of the two pictures
    texts: tuple[str, str]  # and of their captions
    category: str = ""  # field
    key: str = ""  # field; "": the number of the item, from 0
    published: int | Mapping[str, int] | None = None
    headline: str = "all/group"


LAYOUTS = {
    "colorswap": _Layout(
        ("test.json", "data/test.json"),
        ("image_1", "image_2"),
        ("caption_1", "caption_2"),
        category="image_source",
        key="id",
    ),
    "cola": _Layout(
        (
            "COLA_multiobjects_matching_benchmark.json",
            "data/COLA_multiobjects_matching_benchmark.json",
        ),
        ("0", "2"),
        ("1", "3"),
        published=210,
        headline="all/image",
    ),
    "bivlc": _Layout(
        ("bivlc.jsonl", "test.jsonl"),
        ("image", "negative_image"),
        ("caption", "negative_caption"),
        category="type",
        published=2933,
    ),
    "vismin": _Layout(
        ("vismin.csv",),
        ("image_path", "edited_image_path"),
        ("caption", "edited_caption"),
        category="category",
    ),
    "eqben": _Layout(
        ("eqben_subset_10percent_final.json", "private_info_global.json"),
        ("image0", "image1"),
        ("caption0", "caption1"),
    ),
    "coco_counterfactuals": _Layout(
        ("examples.jsonl", "data/examples.jsonl"),
        ("image_0", "image_1"),
        ("caption_0", "caption_1"),
        key="id",
    ),
    "naturalbench_retrieval": _Layout(
        ("metadata.json", "NaturalBench-Retrieval/metadata.json"),
        ("image_0", "image_1"),
        ("caption_0", "caption_1"),
        key="index",
    ),
}


def loader(name: str) -> Callable[[Path, LoadOptions], tuple[Benchmark, ...]]:
    """The loader of one of LAYOUTS."""
    return partial(_load, name)


def _load(name: str, data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    layout, items = LAYOUTS[name], Items()
    path = find(data_dir, *layout.files)
    entries = _entries(path, layout)
    items.drafts += each(
        enumerate(entries), lambda number, entry: _draft(layout, number, entry), items.report
    )
    built = assemble(
        *(name, "quad", items, Files(data_dir), options, {"file": path.name}),
        published=layout.published,
        headline=layout.headline,
    )
    return (built,)


def _entries(path: Path, layout: _Layout) -> list[Any]:
    if path.suffix == ".csv":
        return list(read_table(path, (*layout.pictures, *layout.texts)))
    if path.suffix == ".jsonl":
        return [entry for _, entry in read_lines(path)]
    return read_json(path, list)


def _draft(layout: _Layout, number: int, entry: Any) -> Draft:
    if isinstance(entry, list):  # COLA has no names
        entry = {str(place): value for place, value in enumerate(entry)}
    if not isinstance(entry, Mapping):
        raise Unusable("no object", str(number))
    # EqBen's captions may be lists, of which its code takes the first
    said = {
        field: value[0] if isinstance(value, list) and value else value
        for field, value in entry.items()
    }
    names = [name_of(said, field) for field in layout.pictures]
    # links: the last part is the file
    names = [name.rpartition("/")[2] if "://" in name else name for name in names]
    texts = tuple(text(said, field) for field in layout.texts)
    category = category_of(said, layout.category) if layout.category else "none"
    if layout.pictures == ("image0", "image1"):
        category = names[0].lstrip("./").split("/")[0]  # EqBen's five sets are folders
    key = name_of(said, layout.key) if layout.key else str(number)
    return Draft(key, category, tuple(map(PictureRef, names)), texts)
