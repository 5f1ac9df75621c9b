"""COCO and Flickr30k retrieval: the test lists of Karpathy's split, and how papers score them.

Two forms of the list are read: ALBEF's, [{image, caption: [texts]}], and Karpathy's own, {images:
[{split, filename, filepath, sentences: [{raw}]}]}, of which the split "test" is taken. In ALBEF's a
caption may be one text; entries of one picture are then one, with the captions of all.

Some COCO images have a sixth caption. Papers that ask with all captions have 25,010 texts (ALBEF,
BLIP), others with the first five have 25,000; the number is part of each metric's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.sources import Report
from nas_jax.data.text_ops import prepare_caption
from nas_jax.evals.benchmarks.assemble import LoadOptions
from nas_jax.evals.benchmarks.pictures import Files, Gallery, PictureRef
from nas_jax.evals.benchmarks.reading import find, read_json
from nas_jax.utils.errors import DataError

TEXT_LENGTH = 30  # tokens and words of a text (ALBEF code, configs/Retrieval_coco.yaml)
FIRST = 5  # captions of an image in the smaller of the two denominators
RERANK_K = {"coco": 256, "flickr30k": 128}  # k_test of ALBEF's configs
SCORERS = ("itc", "itm_logit")  # the published ones
RULES = {"own", "wording"}  # what is right, see `retrieval`
FILES = {
    "coco": ("coco_karpathy_test.json", "coco_test.json", "dataset_coco.json"),
    "flickr30k": ("flickr30k_test.json", "flickr30k_karpathy_test.json", "dataset_flickr30k.json"),
}


@dataclass(frozen=True)
class Collection:
    """A retrieval set with its published protocol."""

    eval_set: EvalSet
    names: tuple[str, ...]  # of the images, for the keys of results
    rerank_k: int
    protocol: Mapping[str, str]
    dropped: Mapping[str, int]

    @property
    def name(self) -> str:
        """coco or flickr30k."""
        return self.eval_set.name

    def readings(self) -> list[tuple[str, str, int]]:
        """(name, rule, captions an image or 0 for all), the published reading first."""
        every = sum(len(texts) for texts in self.eval_set.captions)
        five = sum(len(texts[:FIRST]) for texts in self.eval_set.captions)
        out = [(f"{every}-own", "own", 0), (f"{every}-wording", "wording", 0)]
        return out if five == every else [out[0], (f"{five}-own", "own", FIRST), out[1]]


def load(name: str, data_dir: Path, options: LoadOptions) -> Collection:
    """The test images of `name` (coco, flickr30k) with their captions; `data_dir` may be the json
    file itself.

    Raises DataError: no file, another form, or more unusable images than `options.max_dropped`.
    """
    options.validate()
    path = data_dir if data_dir.is_file() else _list_in(data_dir, name)
    report = Report()
    items = _items(path, report)
    gallery = Gallery(
        Files(path.parent), [PictureRef(image) for image, _ in items], options.image_size
    )
    for failure in gallery.failures.values():
        report.drop(failure.reason, failure.example)
    kept = [index for index in range(len(items)) if index not in gallery.failures]
    lost = sum(report.values())
    if not kept or lost > options.max_dropped * (lost + len(kept)):
        got = f"{name}: {lost} of {lost + len(kept)} images cannot be used: {report.line()}"
        raise DataError(got, f"at most {options.max_dropped:.2%}", "get the missing files")
    how = options.clean, TEXT_LENGTH, options.cased
    captions = [tuple(prepare_caption(text, *how) for text in items[index][1]) for index in kept]
    texts = [text for one in captions for text in one]
    protocol = {
        "file": path.name,
        "text": f"{'cleaned as ALBEF does' if options.clean else 'as written'}, at most "
        f"{TEXT_LENGTH} words and tokens",
        "own": "published rule: a caption is right for its own image alone",
        "wording": "a text with the wording of a right one is right too",
        "ties": "count as misses; equal wordings of different images tie",
        "repeated": f"{len(texts) - len(set(texts))} captions have the wording of another",
    }
    eval_set = EvalSet(name, _Kept(gallery, kept), tuple(captions), (), ())
    return Collection(
        eval_set, tuple(items[index][0] for index in kept), RERANK_K[name], protocol, dict(report)
    )


class _Kept(Sequence):
    """The usable pictures of a gallery."""

    def __init__(self, gallery: Gallery, kept: list[int]):
        self._gallery, self._kept = gallery, kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._gallery[self._kept[index]]


def _list_in(data_dir: Path, name: str) -> Path:
    """The list of a folder. Raises DataError, which names one that has another name."""
    try:
        return find(data_dir, *FILES[name])
    except DataError as error:
        others = sorted(data_dir.glob("*.json"))
        if not others:
            raise
        remedy = f"name the list itself, like --data {others[0]}"
        raise DataError(error.got, error.expected, remedy) from error


def _items(path: Path, report: Report) -> list[tuple[str, list[str]]]:
    """(image, captions) of each test image."""
    try:
        content: Any = read_json(path, list)
    except DataError:
        content = read_json(path, dict)
    if isinstance(content, dict):
        content = [
            {
                "image": "/".join(filter(None, (entry.get("filepath"), entry.get("filename")))),
                "caption": [sentence.get("raw") for sentence in entry.get("sentences", ())],
            }
            for entry in content.get("images", ())
            if entry.get("split") == "test"
        ]
    items: list[tuple[str, list[str]]] = []
    single: dict[str, list[str]] = {}  # captions of pictures that come with one text an entry
    for number, entry in enumerate(content):
        image, texts = (
            entry.get(name) if isinstance(entry, Mapping) else None for name in ("image", "caption")
        )
        if not isinstance(image, str) or not image:
            report.drop("no image", f"entry {number}")
        elif isinstance(texts, str) and image in single:
            single[image].append(texts)
        elif isinstance(texts, str):
            single[image] = [texts]
            items.append((image, single[image]))
        elif (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) for text in texts)
        ):
            report.drop("no list of captions", image)
        else:
            items.append((image, texts))
    if not items:
        raise DataError(
            f"{path}: no test images" + (f": {report.line()}" if report else ""),
            "[{image, caption: [texts]}]",
            "check which file it is",
        )
    return items
