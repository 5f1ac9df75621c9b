"""SPEC (Peng et al. 2024): size, position, existence and count, each asked in both directions.

Files: a folder each of SUBSETS with `image2text.json`, [{query: picture, keys: [texts], label}],
and `text2image.json`, [{query: text, keys: [pictures], label}]; label is the number of the right
key, paths are below the folder (SPEC code, spec/dataset.py).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, name_of, read_json, text, whole
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

SUBSETS = (
    *("absolute_size", "relative_size", "absolute_spatial", "relative_spatial"),
    *("existence", "count"),
)


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """ "spec_i2t", the right text of a picture, and "spec_t2i"; the category is the subset."""
    files, out = Files(data_dir), []
    for name, form, file in (
        ("spec_i2t", "choice", "image2text.json"),
        ("spec_t2i", "picture", "text2image.json"),
    ):
        items = Items()
        for subset in SUBSETS:
            path = data_dir / subset / file
            if path.is_file():
                entries = enumerate(read_json(path, list))
                items.drafts += each(entries, partial(_draft, subset, form), items.report)
        if items.drafts or items.report:
            present = len({draft.category for draft in items.drafts})
            protocol = {"subsets": f"{present} of {len(SUBSETS)}", "published": "macro/accuracy"}
            fields = name, form, items, files, options, protocol
            out.append(assemble(*fields, headline="macro/accuracy"))
    if not out:
        expected = f"{SUBSETS[0]}/image2text.json, ..."
        raise DataError(
            f"none of the files of SPEC in {data_dir}", expected, "see docs/benchmarks.md"
        )
    return tuple(out)


def _draft(subset: str, form: str, number: int, entry: Any) -> Draft:
    keys = entry.get("keys") if isinstance(entry, dict) else None
    label = whole(entry, "label")
    if not isinstance(keys, list) or len(keys) < 2 or not 0 <= label < len(keys):
        raise Unusable("no keys with a label", f"{subset}/{number}")
    ordered = [keys[label], *keys[:label], *keys[label + 1 :]]
    field = "text" if form == "choice" else "picture"
    ordered = [name_of({field: key}, field) for key in ordered]
    if form == "choice":
        picture = PictureRef(f"{subset}/{name_of(entry, 'query')}")
        return Draft(f"{subset}/{number}", subset, (picture,), tuple(ordered))
    pictures = tuple(PictureRef(f"{subset}/{name}") for name in ordered)
    return Draft(f"{subset}/{number}", subset, pictures, (text(entry, "query"),))
