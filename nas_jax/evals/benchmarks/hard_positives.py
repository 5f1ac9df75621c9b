"""Hard Positives (Kamath et al. 2024): a caption and another of the same meaning must both beat a
negative.

Files, each a benchmark of its own where it is there: `data/NAME.json` with the captions and
`swapped_data/NAME.json` with the hard positives, lists of {image_path, true_caption, false_caption}
of the same items in the same order; NAME is vl_checklist_attributes, vl_checklist_relations,
vl_checklist_objects, crepe_coco_val_relations or visual_genome_attribution, of which pictures are
cut to bbox_x, bbox_y, bbox_w, bbox_h (Hard Positives code, run_eval.py). Right is what its code
counts as (c, c'') > c'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, name_of, read_json, text, whole
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

FILES = {
    "hard_positives_swap": ("visual_genome_attribution", 28748),
    "hard_positives_attribute": ("vl_checklist_attributes", 10575),
    "hard_positives_relation": ("vl_checklist_relations", 16868),
    "hard_positives_object": ("vl_checklist_objects", None),
    "hard_positives_negate": ("crepe_coco_val_relations", None),
}
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """Those of the five tests whose two files are there."""
    files, out = Files(data_dir), []
    for name, (file, published) in FILES.items():
        paths = [data_dir / folder / f"{file}.json" for folder in ("data", "swapped_data")]
        if all(path.is_file() for path in paths):
            first, second = (read_json(path, list) for path in paths)
            if len(first) != len(second):
                got = f"{paths[0]} with {len(first)} items, {paths[1]} with {len(second)}"
                raise DataError(got, "the same items in both", "copy both from one release")
            items = Items()
            pairs = enumerate(zip(first, second, strict=True))
            items.drafts += each(pairs, _draft, items.report)
            fields = name, "two_true", items, files, options
            out.append(assemble(*fields, {"published": "(c, c'') > c'"}, published=published))
    if not out:
        raise DataError(
            f"none of the files of Hard Positives in {data_dir}",
            "data/NAME.json and swapped_data/NAME.json",
            "copy both folders of its repository",
        )
    return tuple(out)


def _draft(number: int, pair: tuple[Any, Any]) -> Draft:
    original, swapped = pair
    picture, wrong = name_of(original, "image_path"), text(original, "false_caption")
    if (name_of(swapped, "image_path"), text(swapped, "false_caption")) != (picture, wrong):
        raise Unusable("not the same item in both files", str(number))
    box = None
    if "bbox_w" in original:
        left, top, width, height = (whole(original, field) for field in BOX)
        box = left, top, width, height
    texts = text(original, "true_caption"), text(swapped, "true_caption"), wrong
    return Draft(str(number), "none", (PictureRef(picture, box),), texts)
