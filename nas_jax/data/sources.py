"""Pictures with captions on disk or in a bucket, by index: ALBEF's json lists and WebDataset tars.

Opening a source reads all captions once, drops what cannot be used and counts it by reason in
`source.report`. After that it holds offsets and short strings in flat arrays, so it is cheap to
send to a worker, and reads one file (or one slice of a tar) an item. Nothing stays open.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from absl import logging

from nas_jax.data.records import Record
from nas_jax.data.tar_index import Place, index_tar
from nas_jax.data.tar_names import IMAGE_SUFFIXES, picture_of, split_name, why_no_picture
from nas_jax.data.text_ops import clean_words
from nas_jax.storage import reading
from nas_jax.storage.paths import is_bucket, join
from nas_jax.utils.errors import DataError

SOME_IMAGES = 100  # of a list, evenly spread: one must be where data.image_root says


def image_id_of(key: str) -> int:
    """A stable 31-bit number of a key.

    Equal keys in two files mean the same content, on purpose.
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF


def held_out(key: str, share: float) -> bool:
    """Whether a key is held out; depends on the key alone: the same in every file and run."""
    number = int.from_bytes(
        hashlib.blake2b(key.encode(), digest_size=8, person=b"holdout").digest(), "big"
    )
    return number < share * 2**64


class Report(dict[str, int]):
    """What was dropped when a source was opened: reason -> how many; `examples` has one of each."""

    def __init__(self):
        super().__init__()
        self.examples: dict[str, str] = {}

    def drop(self, reason: str, example: str) -> None:
        """Counts one."""
        self[reason] = self.get(reason, 0) + 1
        self.examples.setdefault(reason, example)

    def merge(self, other: Report) -> None:
        """Adds the counts of another."""
        for reason, count in other.items():
            self[reason] = self.get(reason, 0) + count
            self.examples.setdefault(reason, other.examples[reason])

    def line(self) -> str:
        """`3 no caption (like a.png), 1 no image (like b)`, or "" where nothing was dropped."""
        return ", ".join(
            f"{count} {reason} (like {self.examples[reason]})" for reason, count in self.items()
        )

    def __reduce__(self):
        return _report, (dict(self), self.examples)


def _report(counts: dict[str, int], examples: dict[str, str]) -> Report:
    report = Report()
    report.update(counts)
    report.examples = examples
    return report


class Strings:
    """A list of strings in one block of bytes: millions of them pickle and copy in one piece."""

    def __init__(self, strings: Iterable[str]):
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        self._ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode("utf-8", "surrogatepass")

    def digest(self) -> str:
        """16 hexadecimal digits that change with any string and with their order."""
        return hashlib.blake2b(
            self._bytes, digest_size=8, salt=hashlib.blake2b(self._ends, digest_size=8).digest()
        ).hexdigest()


class Source(Protocol):
    """Pictures with captions by index, from 0 to len - 1.

    Picklable, and cheap to open in a worker.
    """

    report: Report  # what opening dropped
    files: tuple[str, ...]  # what is read
    origins: tuple[str, ...]  # what the pictures came in first; the same but for prepared folders
    name_first: bool  # the first caption names the picture, the others may fit other pictures too
    remote: bool  # pictures come from a bucket, so that reading one is mostly waiting

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def key(self, index: int) -> str:
        """The name of the content: equal for the same picture in two files."""

    def file(self, index: int) -> str:
        """The one of `files` it came from."""

    def origin(self, index: int) -> str:
        """The one of `origins` it came in."""

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions, without reading the picture."""

    def key_of(self, name: str) -> str:
        """The key of the picture that an annotation file calls `name`."""

    def identity(self) -> str:
        """A digest of which records there are, in which order; of the names, not of the pixels."""


class _Table:
    """Keys, captions and origin of the kept entries; the part both sources share."""

    name_first = False

    def __init__(self, files: tuple[str, ...]):
        self.files = self.origins = files
        self.remote = any(map(is_bucket, files))
        self.report = Report()
        self._keys: list[str] | Strings = []
        self._captions: list[str] | Strings = []
        self._file: list[int] | np.ndarray = []

    def _add(self, key: str, file: int, captions: list[str]) -> None:
        self._keys.append(key)
        self._file.append(file)
        self._captions.append(json.dumps(captions))

    def _close(self, expected: str) -> None:
        """Packs the lists. Raises DataError where nothing is left."""
        if not len(self._keys):
            raise DataError(
                f"no usable pairs in {_some(self.files)}"
                + (f": {self.report.line()}" if self.report else ""),
                expected,
                "check data.train, data.val and data.holdout",
            )
        self._keys, self._captions = Strings(self._keys), Strings(self._captions)
        self._file = np.asarray(self._file, np.int32)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The name of the content: equal for the same picture in two files."""
        return self._keys[index]

    def file(self, index: int) -> str:
        """The json or tar the entry came from."""
        return self.files[self._file[index]]

    origin = file

    def identity(self) -> str:
        """Of the keys in their order."""
        return self._keys.digest()

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions as written in the file, without those that cleaning leaves empty."""
        return tuple(json.loads(self._captions[index]))

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        key = self.key(index)
        return Record(key, self._image(index), self.captions(index), image_id_of(key))

    def _image(self, index: int) -> bytes:
        raise NotImplementedError


def _some(files: tuple[str, ...]) -> str:
    return files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def expand(patterns: tuple[str, ...], setting: str) -> tuple[str, ...]:
    """Paths and globs to sorted paths.

    Raises DataError where one names no file; `setting` is for the message.
    """
    paths: list[str] = []
    for pattern in patterns:
        found = reading.glob(pattern)
        if not found:
            raise DataError(
                f"no file {pattern!r}", "a path or a glob that matches", f"check {setting}"
            )
        paths += [path for path in found if path not in paths]
    return tuple(paths)


@dataclass(frozen=True)
class Split:
    """Which keys a source keeps: "train" or "val", what is not held out or what is.

    Without a holdout both keep all.

    together: key -> the key that decides for it, so that pictures which are compared stay on one
    side.
    """

    name: str = "train"
    holdout: float = 0.0
    together: Mapping[str, str] = field(default_factory=dict)

    def keeps(self, key: str) -> bool:
        """Whether the key is of this split."""
        return not self.holdout or held_out(self.together.get(key, key), self.holdout) == (
            self.name == "val"
        )


ALL = Split()


def usable_captions(captions: list, clean: bool) -> list[str]:
    """The texts among them of which something is left: after cleaning, or without white space."""
    return [
        text
        for text in captions
        if isinstance(text, str) and (clean_words(text) if clean else text.strip())
    ]


class Alike:
    """Finds tars of several folders that number other pictures alike: as neighbours they are one
    collection, in which a key names one picture. Only the first tar of each folder is looked at.
    """

    def __init__(self, files: tuple[str, ...]):
        first: dict[str, str] = {}
        for path in files:
            first.setdefault(os.path.dirname(path), path)
        self._first = set(first.values()) if len(first) > 1 else set()
        self._seen: dict[str, tuple[str, list[str]]] = {}

    def add(self, path: str, key: str, captions: list[str]) -> None:
        """Warns, once, where another tar has the key with other captions."""
        if path not in self._first:
            return
        other, theirs = self._seen.setdefault(key, (path, captions))
        if other != path and theirs != captions:
            self._first = set()
            logging.warning(
                "%s is in %s (%r) and in %s (%r): taken for one picture, as neighbouring tars are "
                "one collection; give data.weights, or prepare each, if they are two",
                *(key, other, theirs[0], path, captions[0]),
            )


class AlbefJsonSource(_Table):
    """The json lists ALBEF trains on: [{"image": path, "caption": text or list of texts}, ...].

    The key of an entry is its image path as written, so entries that share a picture share an
    image_id.
    """

    def __init__(
        self,
        files: tuple[str, ...],
        image_root: str = "",
        split: Split = ALL,
        clean: bool = True,
    ):
        """files: paths; clean: drop captions that cleaning empties; others: see DataConfig.

        Raises:
          DataError: a file is missing or no such list, an entry lacks a field, or none of some
            pictures of a file is where it should be.

        An entry whose image or caption is no text is dropped and counted.
        """
        super().__init__(files)
        self.image_root = image_root
        self.remote = is_bucket(image_root)
        for number, path in enumerate(files):
            entries = [self._fields(path, *item) for item in enumerate(self._read(path))]
            self._check_some_images(path, [image for image, _ in entries if image])
            for position, (image, captions) in enumerate(entries):
                if not image:
                    self.report.drop("no image", f"entry {position} of {path}")
                    continue
                if not split.keeps(image):
                    continue
                if usable := usable_captions(captions, clean):
                    self._add(image, number, usable)
                else:
                    self.report.drop("no caption", f"{image} in {path}")
        self._close("entries with a picture and a caption")

    @staticmethod
    def _read(path: str) -> list:
        try:
            content = reading.read_bytes(path)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}", "a readable file", "check data.train and data.val"
            ) from error
        try:
            entries = json.loads(content.decode())
        except ValueError as error:
            raise DataError(
                f"{path}: {error}", "a json list", "check the file; it may be cut short"
            ) from error
        if not isinstance(entries, list) or not entries:
            kind = "an empty list" if entries == [] else type(entries).__name__
            raise DataError(
                f"{path} holds {kind}",
                "a list of {image, caption}",
                "convert the file to that form",
            )
        return entries

    @staticmethod
    def _fields(path: str, position: int, entry: object) -> tuple[str, list]:
        """The picture's path, "" where there is none, and what stands for captions."""
        if not isinstance(entry, dict) or not {"image", "caption"} <= entry.keys():
            has = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
            raise DataError(
                f"{path}, entry {position}, with {has or 'no field'}",
                "image (a path) and caption (a text or a list)",
                "rename the fields, or run python -m nas_jax.data.prepare on the file",
            )
        image, captions = entry["image"], entry["caption"]
        return (
            image if isinstance(image, str) else "",
            captions if isinstance(captions, list) else [captions],
        )

    def _check_some_images(self, path: str, images: list[str]) -> None:
        """Raises DataError where none of some is there: the folder is another, then."""
        some = images[:: -(-len(images) // SOME_IMAGES)] if images else []
        if some and not any(reading.is_file(join(self.image_root, image)) for image in some):
            raise DataError(
                f"no picture {join(self.image_root, some[0])!r}, the first in {path}",
                "image paths that start from data.image_root",
                f"set data.image_root (now {self.image_root!r}) to the folder that holds "
                f"{some[0].split('/')[0]!r}",
            )

    def picture_path(self, index: int) -> str:
        """The file of a picture."""
        return join(self.image_root, self.key(index))

    @staticmethod
    def key_of(name: str) -> str:
        """The path, as the list has it."""
        return name

    def _image(self, index: int) -> bytes:
        return reading.read_bytes(self.picture_path(index))


class WebDatasetSource(_Table):
    """Tar shards as img2dataset writes them: pictures with KEY.json or KEY.txt.

    Pictures are KEY.jpg, KEY.png and so on (`tar_names.IMAGE_SUFFIXES`), KEY.json is {caption,
    captions}. The key is the path in the tar up to the first dot of the file name; the same key in
    two tars means the same content. Tars are indexed once, from their headers; a record is one
    `pread` or one request, nothing is unpacked.
    """

    name_first = True

    def __init__(
        self, files: tuple[str, ...], split: Split = ALL, clean: bool = True, cache: str = ""
    ):
        """files: paths; clean: drop captions that cleaning empties; others: see DataConfig.

        Raises:
          DataError: a tar is missing, cut short, compressed or no tar, or no member has a picture
          and a caption.
        """
        super().__init__(files)
        slices: list[Place] = []
        alike = Alike(files)
        index = partial(index_tar, cache=cache)
        indices = reading.each(index, files) if self.remote else map(index, files)
        for number, (path, (members, texts)) in enumerate(zip(files, indices, strict=True)):
            for key, parts in members.items():
                if not split.keeps(key):
                    continue
                image = picture_of(parts)
                if image is None:
                    self.report.drop("no image", f"{key} in {path}: {why_no_picture(parts)}")
                    continue
                captions, damaged = self._read_captions(path, parts, texts)
                if usable := usable_captions(captions, clean):
                    self._add(key, number, usable)
                    slices.append(image)
                    alike.add(path, key, usable)
                else:
                    self.report.drop(
                        "damaged json" if damaged else "no caption", f"{key} in {path}"
                    )
        self._close(
            f"members KEY.{'|'.join(IMAGE_SUFFIXES)} with KEY.json (field caption) or KEY.txt"
        )
        self._slices = np.asarray(slices, np.int64)

    @staticmethod
    def _read_captions(
        path: str, parts: dict[str, Place], texts: Mapping[Place, bytes]
    ) -> tuple[list[str], bool]:
        """All captions of a key, `caption` first, and whether its json cannot be read."""

        def read(place: Place) -> bytes:
            return texts[place] if place in texts else reading.read_bytes(path, *place)

        captions: list = []
        damaged = False
        if "json" in parts:
            try:
                fields = json.loads(read(parts["json"]))
                more = fields.get("captions") or []
                captions = [fields.get("caption"), *(more if isinstance(more, list) else [more])]
            except (ValueError, AttributeError):
                damaged = True
        captions = [text for text in captions if isinstance(text, str)]
        if "txt" in parts and not captions:
            captions = [read(parts["txt"]).decode("utf-8", "replace")]
        return list(dict.fromkeys(captions)), damaged

    @staticmethod
    def key_of(name: str) -> str:
        """The path up to the first dot of the file name."""
        return split_name(name)[0]

    def _image(self, index: int) -> bytes:
        return reading.read_bytes(self.file(index), *self._slices[index].tolist())


def read_jsonl(path: str, fields: tuple[str, ...]) -> list[dict]:
    """The objects of a jsonl file.

    Raises DataError, with the line, where one is none or lacks a text field.
    """
    try:
        lines = reading.read_bytes(path).decode().splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "a readable file", "check data.foils and data.quads"
        ) from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {error}", "one json object a line", "mend that line"
            ) from error
        missing = [
            name
            for name in fields
            if not isinstance(entry, dict) or not isinstance(entry.get(name), str)
        ]
        if missing:
            raise DataError(
                f"{path}, line {number}, without {missing[0]!r}",
                ", ".join(fields),
                "mend that line",
            )
        entries.append(entry)
    return entries
