"""ImageCoDe (Krojer et al. 2022): which of ten nearly equal pictures is described?

Files: `valid_data.json`, {folder: {number: description}}, and a folder of ten `imgX.jpg` each,
which are numbered in the order of X (ImageCoDe code, baselines/clip/zero_shot.py). The category is
image (folders of Open Images) or video.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, find, read_json, text
from nas_jax.evals.questions import Benchmark

SIZE = 10  # pictures of a folder
PUBLISHED = {"image": 430, "video": 1872}
FOLDERS = ("", "image-sets", "games", "data")


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """The validation set; the test set has no public answers."""
    content = read_json(find(data_dir, "valid_data.json", "data/valid_data.json"), dict)
    entries = [
        (f"{folder}/{number}", (folder, number, {"description": said}))
        for folder, descriptions in content.items()
        for number, said in (descriptions.items() if isinstance(descriptions, dict) else [("", 0)])
    ]
    items = Items()
    named = options.image_size is not None
    items.drafts += each(entries, partial(_draft, data_dir, named), items.report)
    fields = "imagecode", "picture", items, Files(data_dir), options
    return (assemble(*fields, published=PUBLISHED),)


def _draft(data_dir: Path, named: bool, key: str, entry: tuple[str, str, Any]) -> Draft:
    folder, number, said = entry
    right = int(number) if number.isdigit() else SIZE
    if right >= SIZE:
        raise Unusable("no number of a picture", key)
    names = _pictures(data_dir, folder)
    if not names and not named:  # annotations alone: the numbers stand for the names
        names = [f"{folder}/img{place}.jpg" for place in range(SIZE)]
    if len(names) != SIZE:
        raise Unusable("no folder of ten pictures", folder)
    ordered = [names[right], *names[:right], *names[right + 1 :]]
    category = "image" if "open-images" in folder else "video"
    return Draft(key, category, tuple(map(PictureRef, ordered)), (text(said, "description"),))


def _pictures(data_dir: Path, folder: str) -> list[str]:
    for above in FOLDERS:
        place = data_dir / above / folder
        if place.is_dir():
            numbers = {
                int(match[1]): path.name
                for path in place.iterdir()
                if (match := re.fullmatch(r"img(\d+)\.\w+", path.name))
            }
            return [f"{folder}/{numbers[number]}" for number in sorted(numbers)]
    return []
