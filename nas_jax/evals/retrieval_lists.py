"""Lists of pictures with their captions, in the forms that retrieval sets come in.

| form | what it is |
|---|---|
| ALBEF's | a json array of {image, caption: [texts]}, or one text an entry |
| Karpathy's | {images: [{split, filename, filepath, sentences: [{raw}]}]}; the split "test" |
| jsonl, csv | one line {image, caption} or {image, captions: [texts]}; other usual names too |
| Urban1k | a folder with `image/ID.jpg` and `caption/ID.txt` (Zhang et al. 2024, Long-CLIP) |

Entries of one picture with one text each are one picture with all their texts. Karpathy's list of
COCO also has COCO's ids: cocoid of a picture, sentid of a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_jax.data.list_fields import captions_of, image_of
from nas_jax.data.pair_lines import read_lines, read_text
from nas_jax.data.sources import Report
from nas_jax.evals.benchmarks.reading import read_json, read_table
from nas_jax.utils.errors import DataError


@dataclass(frozen=True)
class Item:
    """A picture of a list with its captions."""

    image: str
    texts: list[str]
    image_id: int | None = None  # COCO's, where the list has them
    text_ids: list[int] = field(default_factory=list)  # of the texts

    def has_ids(self) -> bool:
        """Whether picture and texts have ids."""
        return self.image_id is not None and len(self.text_ids) == len(self.texts)


CAPTION_FOLDERS = ("caption", "captions")
LINES, TABLES = (".jsonl", ".ndjson"), (".csv",)


def read_list(path: Path, report: Report) -> list[Item]:
    """The pictures with captions of a file or of Urban1k's folder; the report gets the others.

    Raises DataError: another form, or no picture.
    """
    return items_of(_entries(path), path, report)


def _entries(path: Path) -> Iterable[Any]:
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        return _folder_entries(path)
    if name.endswith(LINES):
        return [entry for _, entry in read_lines(path)]
    return read_table(path, ()) if name.endswith(TABLES) else _json_entries(path)


def items_of(
    entries: Iterable[Any],
    path: Path,
    report: Report,
    expected: str = "[{image, caption: [texts]}]",
) -> list[Item]:
    """The pictures with captions of entries {image, caption}; the report gets the others.

    Args:
      entries: what a file has.
      path: of the file.
      report: gets the entries without picture or caption.
      expected: what the file should have.

    Raises:
      DataError: no picture.
    """
    items: list[Item] = []
    of_picture: dict[str, Item] = {}  # of pictures that come with one text an entry
    for number, entry in enumerate(entries):
        image, texts = image_of(entry), captions_of(entry)
        if image is None:
            report.drop("no image", f"entry {number}")
        elif not texts:
            report.drop("no list of captions", image)
        elif len(texts) == 1 and image in of_picture:
            of_picture[image].texts.append(texts[0])
            of_picture[image].text_ids.extend(_ids(entry)[1])
        else:
            item = Item(image, list(texts), *_ids(entry))
            if len(texts) == 1:
                of_picture[image] = item
            items.append(item)
    if not items:
        raise DataError(
            f"{path}: no test images" + (f": {report.line()}" if report else ""),
            expected,
            "check which file it is",
        )
    return items


def _ids(entry: dict[str, Any]) -> tuple[int | None, list[int]]:
    """COCO's ids of the picture and of those texts that have one."""
    image_id, text_ids = entry.get("cocoid"), entry.get("sentids") or ()
    known = image_id if isinstance(image_id, int) else None
    return known, [one for one in text_ids if isinstance(one, int)]


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
    try:
        return [
            {
                "image": "/".join(filter(None, (entry.get("filepath"), entry.get("filename")))),
                "caption": [sentence.get("raw") for sentence in entry.get("sentences", ())],
                "cocoid": entry.get("cocoid"),
                "sentids": [sentence.get("sentid") for sentence in entry.get("sentences", ())],
            }
            for entry in content.get("images", ())
            if entry.get("split") == "test"
        ]
    except (TypeError, AttributeError) as error:
        expected = "{images: [{split, filename, sentences: [{raw}]}]}"
        raise DataError(f"{path}: {error!r}", expected, "check which file it is") from error
