"""What'sUp (Kamath et al. 2023): where is one thing in relation to another?

Files, each a benchmark of its own where it is there: `controlled_images_dataset.json` (A) and
`controlled_clevr_dataset.json` (B), lists of {image_path, caption_options: 4, the first right}, in
which the same things are shown in all four places; `coco_qa_{one,two}_obj.json` and
`vg_qa_{one,two}_obj.json`, lists of [picture number, right, wrong]. Of A and B the paper also
prints how many pairs (left and right, on and under, in front and behind) and sets of four are all
right (What'sUp code, dataset_zoo/aro_datasets.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, read_json
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

CONTROLLED = {
    "whatsup_a": ("controlled_images_dataset.json", (("left", "right"), ("on", "under"))),
    "whatsup_b": ("controlled_clevr_dataset.json", (("left", "right"), ("in-front", "behind"))),
}
# name -> (file, picture of a number, words of the right caption that name its category)
NATURAL = {
    "whatsup_coco_one": (
        "coco_qa_one_obj.json",
        "val2017/{:012d}.jpg",
        ("left", "right", "top", "bottom"),
    ),
    "whatsup_coco_two": (
        "coco_qa_two_obj.json",
        "val2017/{:012d}.jpg",
        ("left", "right", "above", "below"),
    ),
    "whatsup_vg_one": (
        "vg_qa_one_obj.json",
        "vg_images/{}.jpg",
        ("left", "right", "top", "bottom"),
    ),
    "whatsup_vg_two": (
        "vg_qa_two_obj.json",
        "vg_images/{}.jpg",
        ("left", "right", "front", "behind", "top"),
    ),
}


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """Those of the six benchmarks whose file is in the folder."""
    # COCO_QA_... in some copies
    found = {path.name.lower(): path.name for path in data_dir.glob("*.json")}
    files, out = Files(data_dir), []
    for name, (file, pairs) in CONTROLLED.items():
        if file in found:
            out.append(
                _controlled(name, read_json(data_dir / found[file], list), pairs, files, options)
            )
    for name, (file, pattern, words) in NATURAL.items():
        if file in found:
            out.append(
                _natural(
                    name, read_json(data_dir / found[file], list), pattern, words, files, options
                )
            )
    if not out:
        wanted = [file for file, _ in CONTROLLED.values()]
        wanted += [file for file, *_ in NATURAL.values()]
        raise DataError(
            f"none of the files of What'sUp in {data_dir}",
            ", ".join(wanted),
            "see docs/benchmarks.md",
        )
    return tuple(out)


def _controlled(
    name: str, entries: list, pairs: tuple, files: Files, options: LoadOptions
) -> Benchmark:
    places: dict[tuple[str, str], dict[str, str]] = {}  # the two things -> place -> key

    def draft(number: int, entry: Any) -> Draft:
        path = entry.get("image_path") if isinstance(entry, dict) else None
        texts = entry.get("caption_options") if isinstance(entry, dict) else None
        if not isinstance(path, str) or path.count("_") < 2:
            raise Unusable("no image_path", str(number))
        if (
            not isinstance(texts, list)
            or len(texts) != 4
            or not all(isinstance(text, str) for text in texts)
        ):
            raise Unusable("no caption_options", str(number))
        words = Path(path).stem.split("_")
        places.setdefault((words[0], words[-1]), {})[words[1]] = str(number)
        return Draft(str(number), words[1], (PictureRef(path),), tuple(texts))

    items = Items()
    items.drafts += each(enumerate(entries), draft, items.report)
    names = [place for pair in pairs for place in pair]
    together = {
        "pair": tuple(
            tuple(keys[place] for place in pair)
            for keys in places.values()
            for pair in pairs
            if all(place in keys for place in pair)
        ),
        "set": tuple(
            tuple(keys[place] for place in names)
            for keys in places.values()
            if all(place in keys for place in names)
        ),
    }
    protocol = {
        "sets": f"{len(together['set'])} complete sets of four, {len(together['pair'])} complete "
        "pairs"
    }
    return assemble(name, "choice", items, files, options, protocol, together=together)


def _natural(
    name: str,
    entries: list,
    pattern: str,
    words: tuple[str, ...],
    files: Files,
    options: LoadOptions,
) -> Benchmark:
    def draft(number: int, entry: Any) -> Draft:
        if (
            not isinstance(entry, list)
            or len(entry) < 3
            or not all(isinstance(text, str) for text in entry[1:3])
        ):
            raise Unusable("no [picture, right, wrong]", str(number))
        try:
            picture = PictureRef(pattern.format(int(entry[0])))
        except (TypeError, ValueError) as error:
            raise Unusable("no picture number", str(number)) from error
        said = entry[1].lower().rstrip(".").split()
        category = next((word for word in words if word in said), "other")
        return Draft(str(number), category, (picture,), (entry[1], entry[2]))

    items = Items()
    items.drafts += each(enumerate(entries), draft, items.report)
    return assemble(name, "choice", items, files, options, {})
