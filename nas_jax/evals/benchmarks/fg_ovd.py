"""FG-OVD (Bianchi et al. 2024): the caption of an object among captions with other attributes.

Files, each a benchmark of its own where it is there, in the folder or in `benchmarks`: COCO's form,
{images: [{id, file_name}], annotations: [{id, image_id, bbox, category_id, neg_category_ids}],
categories: [{id, name}]}, where names are captions. Its authors ask detectors for the box and print
mAP and ranks; here the picture is cut to the true box and the caption is ranked, which is another
number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, name_of, read_json
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

# file -> annotations, as far as they were counted
FILES = {
    "1_attributes": None,
    "2_attributes": None,
    "3_attributes": 1299,
    "shuffle_negatives": None,
    "color": None,
    "material": None,
    "pattern": 467,
    "transparency": 409,
}
PARTS = {
    "1_attributes": "hard",
    "2_attributes": "medium",
    "3_attributes": "easy",
    "shuffle_negatives": "trivial",
}
LEAST = 1  # pixels: thinner boxes show nothing


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """Those of the eight tests whose file is there."""
    files, out = Files(data_dir), []
    for file, published in FILES.items():
        name = f"fg_ovd_{PARTS.get(file, file)}"
        places = (data_dir / f"{file}.json", data_dir / "benchmarks" / f"{file}.json")
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            items = _items(read_json(path, dict), path)
            protocol = {"crop": "bounding box", "published": "mAP of detectors, another number"}
            fields = name, "choice", items, files, options, protocol
            out.append(assemble(*fields, published=published))
    if not out:
        expected = ", ".join(f"{file}.json" for file in FILES)
        raise DataError(
            f"none of the files of FG-OVD in {data_dir}", expected, "see docs/benchmarks.md"
        )
    return tuple(out)


def _items(content: dict[str, Any], path: Path) -> Items:
    try:
        names = {one["id"]: one["file_name"] for one in content["images"]}
        captions = {one["id"]: one["name"] for one in content["categories"]}
        annotations = content["annotations"]
    except (KeyError, TypeError) as error:
        expected = "images, annotations and categories"
        raise DataError(f"{path}: {error!r}", expected, "copy it again") from error

    def draft(number: int, entry: Any) -> Draft:
        try:
            left, top, width, height = (round(value) for value in entry["bbox"])
            texts = [captions[entry["category_id"]]]
            texts += [captions[other] for other in entry["neg_category_ids"]]
            picture = names[entry["image_id"]]
        except (KeyError, TypeError, ValueError) as error:
            raise Unusable("no bbox, caption or picture", str(number)) from error
        if width < LEAST or height < LEAST or len(texts) < 2:
            raise Unusable("empty box or no negatives", str(number))
        shown = (PictureRef(picture, (left, top, width, height)),)
        return Draft(name_of(entry, "id"), "none", shown, tuple(texts))

    items = Items()
    items.drafts += each(enumerate(annotations), draft, items.report)
    return items
