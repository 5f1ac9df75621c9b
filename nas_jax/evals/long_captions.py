"""Published sets of long captions, one caption a picture.

| name | files | caption |
|---|---|---|
| dci | splits.json, annotations/*.json, photos/ | short_caption and extra_caption, of all splits |
| docci | docci_descriptions.jsonlines, images/ | description, of the split "test" |
| iiw | data.jsonl of IIW-400, or of it, DOCCI_Test and DCI_Test side by side | IIW |
| sharegpt4v | share-captioner_coco_lcs_sam_1246k_1107.json | the answer, of the first 1,000 |
| | share4v_sam_10k.json | the answer, of the first 10,000 |

Sources: facebookresearch/DCI and google/imageinwords; wuw2019/LoTLIP, `dataloaders/` (Wu et al.
2024), for all splits of DCI, three parts of IIW and 10,000 of ShareGPT4V; beichenzbc/Long-CLIP,
`train/sharegpt4v.py` (Zhang et al. 2024), for the first 1,000.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_jax.data.pair_lines import read_lines, text_of
from nas_jax.data.sources import Report
from nas_jax.evals.benchmarks.reading import find, read_json
from nas_jax.evals.retrieval_lists import Item, items_of
from nas_jax.utils.errors import DataError

Entries = Iterable[dict[str, Any]]  # {image, caption}
IIW = "IIW-400/data.jsonl"
IIW_PARTS = ("DOCCI_Test", "IIW-400", "DCI_Test")  # in LoTLIP's order
FIRST = {"share4v_sam_10k.json": 10_000}  # entries of a file of ShareGPT4V; of others 1,000
CHUNK = 2**20  # characters read at a time
_BEGIN = re.compile(r"[^\s,]")  # of an entry, or the end of the array


def _dci(path: Path) -> Entries:
    for split, names in read_json(path, dict).items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            got = f"{path}: {split} is no list of file names"
            raise DataError(got, LAYOUTS["dci"].expected, "copy it again")
        for name in names:
            entry = read_json(path.parent / "annotations" / name, dict)
            texts = text_of(entry, "short_caption"), text_of(entry, "extra_caption")
            yield {"image": entry.get("image"), "caption": "\n".join(filter(None, texts)) or None}


def _docci(path: Path) -> Entries:
    for _, entry in read_lines(path):
        if text_of(entry, "split") == "test":
            yield {"image": entry.get("image_file"), "caption": text_of(entry, "description")}


def _iiw(path: Path) -> Entries:
    files = [path]
    if path.is_dir():
        files = [path / part / "data.jsonl" for part in IIW_PARTS]
    for file in filter(Path.is_file, files):
        for _, entry in read_lines(file):
            image = text_of(entry, "image/key") or text_of(entry, "image")
            yield {"image": image, "caption": text_of(entry, "IIW")}


def _sharegpt4v(path: Path) -> Entries:
    for entry in first_entries(path, FIRST.get(path.name, 1000)):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        answer = text_of(turns[1], "value") if isinstance(turns, list) and turns[1:] else None
        yield {"image": text_of(entry, "image"), "caption": answer and answer.replace("\n", " ")}


def first_entries(path: Path, count: int) -> Iterator[Any]:
    """The first entries of a json array of objects, without reading the rest: ShareGPT4V's has 1.5
    GB. Raises DataError where it is none, or is cut short.
    """
    decoder, text, at, found = json.JSONDecoder(), "", 0, 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(CHUNK).lstrip()
            if not text.startswith("["):
                raise DataError(f"{path} is no array", "[{...}, ...]", "check which file it is")
            at = 1
            while found < count:
                begin = _BEGIN.search(text, at)
                at = begin.start() if begin else len(text)
                if text.startswith("]", at):
                    return
                try:
                    entry, at = decoder.raw_decode(text, at)
                except ValueError as error:  # damaged, or not whole yet
                    more = file.read(CHUNK)
                    if not more:
                        remedy = "copy it again; it may be cut short"
                        raise DataError(f"{path}: {error}", "a json file", remedy) from error
                    text, at = text[at:] + more, 0
                    continue
                yield entry
                found += 1
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", "a readable file", "check the path") from error


@dataclass(frozen=True)
class Layout:
    """How a set is published."""

    files: tuple[str, ...]  # under --data; the first that is there counts
    entries: Callable[[Path], Entries]
    expected: str  # what has to be in the file
    rule: str  # how a caption is made; for the protocol


LAYOUTS = {
    "dci": Layout(
        ("splits.json", "densely_captioned_images/splits.json"),
        _dci,
        "annotations/*.json with image and short_caption, named in splits.json",
        "short_caption and extra_caption, of all splits",
    ),
    "docci": Layout(
        ("docci_descriptions.jsonlines",),
        _docci,
        'lines {image_file, description, split: "test"}',
        "description",
    ),
    "iiw": Layout(
        ("data.jsonl", IIW, f"datasets/{IIW}"),
        _iiw,
        "lines {image/key or image, IIW}",
        "IIW, the human description",
    ),
    "sharegpt4v": Layout(
        ("share-captioner_coco_lcs_sam_1246k_1107.json", *FIRST),
        _sharegpt4v,
        "[{image, conversations: [question, {value: answer}]}]",
        "the answer, line ends as blanks",
    ),
}


def find_layout(name: str, data_dir: Path) -> Path:
    """The list of a set under `data_dir`; of IIW's parts side by side their folder.

    Raises DataError where there is none.
    """
    path = find(data_dir, *LAYOUTS[name].files)
    return path.parent.parent if str(path).endswith(f"/{IIW}") and path.parent != data_dir else path


def read_layout(name: str, path: Path, report: Report) -> list[Item]:
    """The pictures with captions of a set; the report gets the others.

    Raises DataError: another form, or no picture.
    """
    layout = LAYOUTS[name]
    return items_of(layout.entries(path), path, report, layout.expected)
