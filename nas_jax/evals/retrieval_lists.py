"""Lists of pictures with their captions, in the forms that retrieval sets come in.

| form | what it is |
|---|---|
| ALBEF's | a json array of {image, caption: [texts]}, or one text an entry |
| Karpathy's | {images: [{split, filename, filepath, sentences: [{raw}]}]}; the split "test" |
| jsonl, csv | one line {image, caption} or {image, captions: [texts]}; other usual names too |
| Urban1k | a folder with `image/ID.jpg` and `caption/ID.txt` (Zhang et al. 2024, Long-CLIP) |

Entries of one picture with one text each are one picture with all their texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nas_jax.data.list_fields import captions_of, image_of
from nas_jax.data.pair_lines import read_lines, read_text
from nas_jax.data.sources import Report
from nas_jax.evals.benchmarks.reading import read_json, read_table
from nas_jax.utils.errors import DataError

Items = list[tuple[str, list[str]]]
"""(picture, its captions)."""

CAPTION_FOLDERS = ("caption", "captions")
LINES, TABLES = (".jsonl", ".ndjson"), (".csv",)


def read_list(path: Path, report: Report) -> Items:
    """The pictures with captions of a file or of Urban1k's folder; the report gets the others.

    Raises DataError: another form, or no picture.
    """
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        entries: Iterable[Any] = _folder_entries(path)
    elif name.endswith(LINES):
        entries = [entry for _, entry in read_lines(path)]
    elif name.endswith(TABLES):
        entries = read_table(path, ())
    else:
        entries = _json_entries(path)
    items: Items = []
    of_picture: dict[str, list[str]] = {}  # captions of pictures that come with one text an entry
    for number, entry in enumerate(entries):
        image, texts = image_of(entry), captions_of(entry)
        if image is None:
            report.drop("no image", f"entry {number}")
        elif not texts:
            report.drop("no list of captions", image)
        elif len(texts) == 1 and image in of_picture:
            of_picture[image].append(texts[0])
        else:
            texts = list(texts)
            if len(texts) == 1:
                of_picture[image] = texts
            items.append((image, texts))
    if not items:
        raise DataError(
            f"{path}: no test images" + (f": {report.line()}" if report else ""),
            "[{image, caption: [texts]}]",
            "check which file it is",
        )
    return items


def caption_folder(folder: Path) -> Path | None:
    """The folder of captions of Urban1k, in `folder` or in one below it, or None."""
    below = (folder, folder / "Urban1k", folder / "urban1k")
    places = [root / name for root in below for name in CAPTION_FOLDERS]
    return next((place for place in places if any(place.glob("*.txt"))), None)


def _folder_entries(folder: Path) -> list[dict[str, Any]]:
    captions = caption_folder(folder)
    if captions is None:
        expected = "caption/ID.txt beside image/ID.jpg"
        raise DataError(f"no captions in {folder}", expected, "unpack Urban1k's zip file there")
    paths = sorted(captions.glob("*.txt"), key=lambda path: (len(path.stem), path.stem))
    return [
        {"image": f"image/{path.stem}", "caption": read_text(path).strip() or None}
        for path in paths
    ]


def _json_entries(path: Path) -> list[Any]:
    try:
        content: Any = read_json(path, list)
    except DataError:
        content = read_json(path, dict)
    if isinstance(content, list):
        return content
    return [
        {
            "image": "/".join(filter(None, (entry.get("filepath"), entry.get("filename")))),
            "caption": [sentence.get("raw") for sentence in entry.get("sentences", ())],
        }
        for entry in content.get("images", ())
        if entry.get("split") == "test"
    ]
