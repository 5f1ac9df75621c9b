"""Retrieval sets: COCO and Flickr30k (Karpathy's split), Urban1k, those of `long_captions.py` and
anyone's list, and how papers score them. The forms of lists are those of `retrieval_lists.py`.

Some COCO images have a sixth caption. Papers that ask with all captions have 25,010 texts (ALBEF,
BLIP), others with the first five have 25,000; the number is part of each metric's name. Other
judgements of COCO's captions (`judgements.py`) have the first five too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.sources import Report
from nas_jax.data.text_ops import prepare_caption
from nas_jax.evals.benchmarks.assemble import UNCUT, LoadOptions, most_dropped
from nas_jax.evals.benchmarks.fits import gallery_of
from nas_jax.evals.benchmarks.pictures import Files, Gallery, NoPictures, PictureRef
from nas_jax.evals.benchmarks.reading import find
from nas_jax.evals.judgements import ABOUT, Judgement, files_of, read_judgements
from nas_jax.evals.long_captions import LAYOUTS, find_layout, read_layout
from nas_jax.evals.retrieval_lists import Item, caption_folder, read_list
from nas_jax.utils.errors import DataError

_LOG = logging.getLogger(__name__)
TEXT_LENGTH = 30  # tokens and words of a text (ALBEF code, configs/Retrieval_coco.yaml)
CUT_SHARE = 0.01  # of the captions; where more are cut, a warning says so
FIRST = 5  # captions of an image in the smaller of the two denominators
RERANK_K = {"coco": 256, "flickr30k": 128}  # k_test of ALBEF's configs
OTHER_K = 128  # ours
# published protocol: sets whose texts are cut to TEXT_LENGTH words and tokens
SHORT = ("coco", "flickr30k")
SCORERS = ("itc", "itm_logit")  # the published ones
# pictures of the published lists, some of which come in two sizes; another number is told
SIZES = {
    "coco": (5000,),
    "flickr30k": (1000,),
    "urban1k": (1000,),
    "dci": (7805,),
    "docci": (5000,),
    "iiw": (400, 612),
    "sharegpt4v": (1000, 10_000),
}
RULES = {"own", "wording", *ABOUT}  # what is right, see `retrieval` and `judgements`
KARPATHY = "dataset_coco.json"
FILES = {
    "coco": ("coco_karpathy_test.json", "coco_test.json", KARPATHY),
    "flickr30k": ("flickr30k_test.json", "flickr30k_karpathy_test.json", "dataset_flickr30k.json"),
    "urban1k": ("urban1k.json", "urban1k.jsonl"),
    **{name: layout.files for name, layout in LAYOUTS.items()},
    "retrieval": ("retrieval.json", "retrieval.jsonl", "retrieval.csv"),
}


@dataclass(frozen=True)
class Collection:
    """A retrieval set with its published protocol."""

    eval_set: EvalSet
    names: tuple[str, ...]  # of the images, for the keys of results
    rerank_k: int
    protocol: Mapping[str, str]
    dropped: Mapping[str, int]
    judgements: tuple[Judgement, ...] = ()

    @property
    def name(self) -> str:
        """coco, flickr30k, ..."""
        return self.eval_set.name

    @property
    def text_length(self) -> int:
        """Tokens of a text in the published protocol; 0: it has no limit."""
        return TEXT_LENGTH if self.name in SHORT else 0

    def readings(self) -> list[tuple[str, str, int]]:
        """(name, rule, captions an image or 0 for all), the published reading first."""
        every = sum(len(texts) for texts in self.eval_set.captions)
        five = sum(len(texts[:FIRST]) for texts in self.eval_set.captions)
        out = [(f"{every}-own", "own", 0), (f"{every}-wording", "wording", 0)]
        if five != every:
            out.insert(1, (f"{five}-own", "own", FIRST))
        return out + [(one.name, one.name, FIRST) for one in self.judgements]

    def judgement(self, name: str) -> Judgement | None:
        """That of a reading; None where its rule is another."""
        return next((one for one in self.judgements if one.name == name), None)


def load(name: str, data_dir: Path, options: LoadOptions) -> Collection:
    """The test images of `name`, one of FILES, with their captions; `data_dir` may be the list
    itself. Without `options.image_size` the pictures are not looked for.

    Raises DataError: no file, another form, or more unusable images than `options.max_dropped`.
    """
    options.validate()
    folder = data_dir.parent if data_dir.is_file() else data_dir
    judged = files_of(folder) if name == "coco" else {}
    path = data_dir if data_dir.is_file() else _list_in(data_dir, name, bool(judged))
    report = Report()
    items = read_layout(name, path, report) if name in LAYOUTS else read_list(path, report)
    gallery = gallery_of(Files(folder), [PictureRef(one.image) for one in items], options)
    for failure in gallery.failures.values():
        report.drop(failure.reason, failure.example)
    kept = [index for index in range(len(items)) if index not in gallery.failures]
    lost = sum(report.values())
    if not kept or lost > most_dropped(options.max_dropped, lost + len(kept)):
        got = f"{name}: {lost} of {lost + len(kept)} images cannot be used: {report.line()}"
        remedy = "get the missing files, or raise --max-dropped (eval.max_dropped of a run)"
        raise DataError(got, f"at most {options.max_dropped:.2%} of them", remedy)
    used = [items[index] for index in kept]
    judgements = read_judgements(judged, used, path, FIRST)
    protocol, captions = _protocol(name, path, used, options)
    protocol |= {one.name: one.rule() for one in judgements}
    if len(items) not in SIZES.get(name, (len(items),)):
        known = " or ".join(map(str, SIZES[name]))
        protocol["published images"] = f"{known}; this list has {len(items)}"
        _LOG.warning(
            "%s: the published list has %s images, this one %d. Its numbers are not comparable "
            "with published ones.",
            *(name, known, len(items)),
        )
    return Collection(
        EvalSet(name, Kept(gallery, kept), captions, (), ()),
        tuple(item.image for item in used),
        RERANK_K.get(name, OTHER_K),
        protocol,
        dict(report),
        judgements,
    )


def _protocol(
    name: str, path: Path, items: Sequence[Item], options: LoadOptions
) -> tuple[dict[str, str], tuple[tuple[str, ...], ...]]:
    """The rules of a set, and the captions of its images by them."""
    short = name in SHORT
    how = options.clean, TEXT_LENGTH if short else UNCUT, options.cased
    captions = tuple(tuple(prepare_caption(text, *how) for text in item.texts) for item in items)
    texts = [text for one in captions for text in one]
    protocol = {
        "file": path.name,
        "text": ("cleaned as ALBEF does" if options.clean else "as written")
        + (f", at most {TEXT_LENGTH} words and tokens" if short else ""),
        "own": "published rule: a caption is right for its own image alone",
        "wording": "a text with the wording of a right one is right too",
        "ties": "count as misses; equal wordings of different images tie",
        "repeated": f"{len(texts) - len(set(texts))} captions have the wording of another",
    }
    if name in LAYOUTS:
        protocol["caption"] = LAYOUTS[name].rule
    if short:
        raw = (text for item in items for text in item.texts)
        cut = sum(
            len(prepare_caption(t, *how[:1], UNCUT, how[2]).split()) > TEXT_LENGTH for t in raw
        )
        protocol["cut"] = f"{cut} of {len(texts)} captions have more than {TEXT_LENGTH} words"
        if cut > CUT_SHARE * len(texts):
            _LOG.warning(
                "%s: %s, and the rest is cut off. Remedy: name the benchmark retrieval, which cuts "
                "none, for a list of long captions.",
                *(name, protocol["cut"]),
            )
    return protocol, captions


class Kept(Sequence):
    """The usable pictures of a gallery."""

    def __init__(self, gallery: Gallery | NoPictures, kept: list[int]):
        self.all, self._kept = gallery, kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        return self.all[self._kept[index]]


def _list_in(data_dir: Path, name: str, judged: bool) -> Path:
    """The list of a folder. Raises DataError, which names one that has another name.

    judged: one with COCO's ids is wanted first.
    """
    if name in LAYOUTS:
        return find_layout(name, data_dir)
    if judged and (data_dir / KARPATHY).is_file():
        return data_dir / KARPATHY
    try:
        return find(data_dir, *FILES[name])
    except DataError as error:
        if name in ("urban1k", "retrieval") and caption_folder(data_dir):
            return data_dir
        others = [path for kind in ("json", "jsonl", "csv") for path in data_dir.glob(f"*.{kind}")]
        others.sort()
        if not others:
            raise
        remedy = f"name the list itself, like --data {others[0]}"
        raise DataError(error.got, error.expected, remedy) from error
