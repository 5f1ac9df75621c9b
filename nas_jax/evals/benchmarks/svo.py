"""SVO-Probes (Hendricks and Nematzadeh 2021): a sentence, a picture of it, and one with another
subject, verb or object.

Files: `svo_probes.csv` (sentence, pos_triplet, neg_triplet, pos_url, neg_url, pos_image_id,
neg_image_id, subj_neg, verb_neg, obj_neg), with pictures named by their id; or a jsonl of {caption,
pos_image, neg_image, subj_neg, verb_neg, obj_neg} and an optional svo_index.
Rows where not exactly one of the three is true are left out (SVO-Probes code,
probing_image_text_models.ipynb).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_jax.data.pair_lines import read_lines
from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import (
    Unusable,
    each,
    find,
    name_of,
    read_table,
    text,
)
from nas_jax.evals.questions import Benchmark

FLAGS = {"subj_neg": "subject", "verb_neg": "verb", "obj_neg": "object"}
CSV_FIELDS = ("sentence", "pos_image_id", "neg_image_id")
JSONL_FIELDS = ("caption", "pos_image", "neg_image")


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """The rows with one kind of negative."""
    path = find(data_dir, "svo_probes.csv", "svo_probes.jsonl")
    fields = CSV_FIELDS if path.suffix == ".csv" else JSONL_FIELDS
    entries = (
        list(enumerate(read_table(path, (*fields, *FLAGS))))
        if path.suffix == ".csv"
        else read_lines(path)
    )
    items, filtered = Items(), 0
    single = []
    for number, entry in entries:
        if (
            isinstance(entry, Mapping)
            and all(flag in entry for flag in FLAGS)
            and len(kinds(entry)) != 1
        ):
            filtered += 1
        else:
            single.append((number, entry))
    items.drafts += each(single, lambda number, entry: _draft(number, entry, fields), items.report)
    protocol = {
        "filter": f"exactly one of subj_neg, verb_neg, obj_neg ({filtered} left out)",
        "published": "accuracy is the ranking of the two pictures, which most papers print; the "
        "authors print accuracy_at_0.5, each (sentence as written, picture) once",
    }
    built = assemble(
        "svo",
        "picture",
        items,
        Files(data_dir),
        options,
        protocol,
        absolute=True,
    )
    return (built,)


def kinds(entry: Mapping[str, Any]) -> list[str]:
    """Which of subject, verb and object differ."""
    true = ("true", "1")
    return [kind for flag, kind in FLAGS.items() if str(entry[flag]).strip().lower() in true]


def _draft(number: int, entry: Any, fields: tuple[str, str, str]) -> Draft:
    sentence, positive, negative = fields
    if not isinstance(entry, Mapping) or not all(flag in entry for flag in FLAGS):
        raise Unusable("no subj_neg, verb_neg, obj_neg", str(number))
    pictures = tuple(PictureRef(name_of(entry, field)) for field in (positive, negative))
    key = name_of(entry, "svo_index") if "svo_index" in entry else str(number)
    return Draft(key, kinds(entry)[0], pictures, (text(entry, sentence),))
