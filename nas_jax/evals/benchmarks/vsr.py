"""VSR (Liu et al. 2023): is this sentence about where things are true of the picture?

Files: `test.jsonl`, or one in `zeroshot` and `random` (each a benchmark of its own): {image,
caption, label: 0 or 1, relation}. Pictures are COCO's train2017 and val2017. The category is the
kind of relation.
"""

from __future__ import annotations

from pathlib import Path

from nas_jax.data.pair_lines import read_lines
from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, name_of, text, whole
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

# Kinds of relations: facts from cambridgeltl/visual-spatial-reasoning,
# analysis_scripts/rel_meta_category_dict.txt. It lists "among" twice, and its script takes the
# later entry.
KINDS = {
    "Adjacency": (
        "adjacent to, alongside, at the side of, at the right side of, at the left side of, "
        "attached to, "
        "at the back of, ahead of, against, at the edge of"
    ),
    "Directional": (
        "off, past, toward, down, deep down, up, away from, along, around, from, into, to, "
        "across, across from, "
        "through, down from"
    ),
    "Orientation": "facing, facing away from, parallel to, perpendicular to",
    "Projective": (
        "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, "
        "over, "
        "in the middle of"
    ),
    "Proximity": "by, close to, near, far from, far away from",
    "Topological": (
        "connected to, detached from, has as a part, part of, contains, within, at, on, in, with, "
        "surrounding, "
        "consists of, out of, between, inside, outside, touching"
    ),
    "Unallocated": "beyond, next to, opposite to, after, among, enclosed by",
}
KIND_OF = {
    relation: kind for kind, relations in KINDS.items() for relation in relations.split(", ")
}
SIZES = {"zeroshot": 1222, "random": 2195}


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """ "vsr_zeroshot" and "vsr_random", or "vsr" of a single test file."""
    roots = (data_dir / "data" / "splits", data_dir / "splits", data_dir / "annotations", data_dir)
    folders = [("", data_dir)] + [(split, root / split) for split in SIZES for root in roots]
    paths: dict[str, Path] = {}
    for split, folder in folders:
        if (folder / "test.jsonl").is_file():
            paths.setdefault(split, folder / "test.jsonl")
    if not paths:
        expected = "test.jsonl, zeroshot/test.jsonl or random/test.jsonl, there or in data/splits"
        raise DataError(
            f"no test.jsonl in {data_dir}", expected, "copy data/splits of VSR's repository"
        )
    return tuple(_load(split, path, Files(data_dir), options) for split, path in paths.items())


def _load(split: str, path: Path, files: Files, options: LoadOptions) -> Benchmark:
    items = Items()
    items.drafts += each(read_lines(path), _draft, items.report)
    name = f"vsr_{split}" if split else "vsr"
    return assemble(name, "yes_no", items, files, options, published=SIZES.get(split))


def kind_of(relation: str) -> str:
    """The kind of a relation."""
    return KIND_OF.get(relation.strip(), "other")


def _draft(number: int, entry: object) -> Draft:
    label = whole(entry, "label")
    if label not in (0, 1):
        raise Unusable("no label", str(number))
    return Draft(
        str(number),
        kind_of(text(entry, "relation")),
        (PictureRef(name_of(entry, "image")),),
        (text(entry, "caption"),),
        label == 1,
    )
