"""Winoground (Thrush et al. 2022): two pictures and two captions of the same words, 400 times.

Files: `examples.jsonl`, {id, caption_0, caption_1, image_0, image_1, collapsed_tag}, with picture
names without suffix. The licence forbids passing the captions on.
"""

from __future__ import annotations

from pathlib import Path

from nas_jax.data.pair_lines import read_lines
from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import category_of, each, find, name_of, text
from nas_jax.evals.questions import Benchmark


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """All examples; the category is `collapsed_tag` (Object, Relation or Both)."""
    items = Items()
    items.drafts += each(
        read_lines(find(data_dir, "examples.jsonl", "data/examples.jsonl")), _draft, items.report
    )
    return (
        assemble(
            *("winoground", "quad", items, Files(data_dir), options),
            published=400,
            headline="all/group",
        ),
    )


def _draft(_: int, entry: object) -> Draft:
    pictures = tuple(PictureRef(name_of(entry, field)) for field in ("image_0", "image_1"))
    texts = tuple(text(entry, field) for field in ("caption_0", "caption_1"))
    return Draft(name_of(entry, "id"), category_of(entry, "collapsed_tag"), pictures, texts)
