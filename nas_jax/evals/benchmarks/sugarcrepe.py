"""SugarCrepe (Hsieh et al. 2023): captions of COCO val2017 and hard negatives without a give-away,
7 splits.

Files: `SPLIT.json`, {number: {filename, caption, negative_caption}}; numbers have gaps. Captions
are in lower case and negatives are whole sentences, so texts are always compared in lower case.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import each, find, name_of, read_json, text
from nas_jax.evals.questions import Benchmark

SIZES = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
GROUPS = {
    kind: tuple(split for split in SIZES if split.startswith(f"{kind}_"))
    for kind in ("replace", "swap", "add")
}


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """All seven splits."""
    items = Items()
    for split in SIZES:
        entries = read_json(find(data_dir, f"{split}.json"), dict)
        items.drafts += each(entries.items(), partial(_draft, split), items.report)
    protocol = {
        "case": "lower",
        "average": "groups are means of splits",
    }
    fields = "choice", items, Files(data_dir), options, protocol, GROUPS
    return (assemble("sugarcrepe", *fields, published=SIZES),)


def _draft(split: str, key: str, entry: object) -> Draft:
    texts = tuple(text(entry, field).lower() for field in ("caption", "negative_caption"))
    return Draft(f"{split}/{key}", split, (PictureRef(name_of(entry, "filename")),), texts)
