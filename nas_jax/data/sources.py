"""Pictures with captions on disk or in a bucket, by index: ALBEF's json lists and WebDataset tars.

Opening a source reads all captions once, drops what cannot be used and counts it by reason in
`source.report`. After that it holds offsets and short strings in flat arrays, so it is cheap to
send to a worker, and reads one file (or one slice of a tar) an item. Nothing stays open.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from absl import logging

from nas_jax.data.advice import prepare_command
from nas_jax.data.annotations import NOTHING, Annotations, annotations_of, read_sample
from nas_jax.data.list_fields import captions_of, image_of
from nas_jax.data.negative_fields import Files, group_of
from nas_jax.data.patterns import expand_braces
from nas_jax.data.picture_paths import TRIED, find_root, flags_for
from nas_jax.data.records import NegativeCaption, Record, source_of
from nas_jax.data.regions import placed, read_regions
from nas_jax.data.tar_index import Place, index_tar
from nas_jax.data.tar_names import (
    IMAGE_SUFFIXES,
    picture_of,
    split_name,
    why_no_picture,
)
from nas_jax.data.text_ops import clean_words
from nas_jax.storage import reading
from nas_jax.storage.paths import is_bucket, join
from nas_jax.utils.errors import DataError

_MAX_BAD = 0.05  # share of a list (of 10 entries, one) without image or caption; more: other form


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

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """The negative captions and the number of negative pictures, without reading a picture."""

    def group(self, index: int) -> str:
        """What variations of one picture have in common."""

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
        self._annotations: list[str] | Strings = []  # "" for nothing; empty where no record has any
        self._file: list[int] | np.ndarray = []

    def _add(
        self, key: str, file: int, captions: list[str], annotations: Annotations = NOTHING
    ) -> None:
        self._keys.append(key)
        self._file.append(file)
        self._captions.append(json.dumps(captions))
        regions, wrong = placed(annotations.regions, None)
        for one in wrong:
            self.report.drop("unusable box", f"{key} in {self.files[file]}: {one}")
        annotations = annotations._replace(regions=tuple(regions))
        self._annotations.append(json.dumps(annotations) if any(annotations) else "")

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
        self._annotations = Strings(self._annotations) if any(self._annotations) else []
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

    def annotations(self, index: int) -> Annotations:
        """What the file says of the picture beside its captions."""
        if not self._annotations or not (found := self._annotations[index]):
            return NOTHING
        captions, images, group, regions = json.loads(found)
        return Annotations(
            tuple(NegativeCaption(*one) for one in captions),
            tuple(images),
            group,
            read_regions(regions),
        )

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """The negative captions and the number of negative pictures."""
        found = self.annotations(index)
        return found.negative_captions, len(found.negative_images)

    def group(self, index: int) -> str:
        """What variations of one picture have in common."""
        return self.annotations(index).group or source_of(self.key(index))

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        key, found = self.key(index), self.annotations(index)
        record = Record(key, self._image(index), self.captions(index), image_id_of(key))
        if found is NOTHING:
            return record
        images = Files(partial(self._other_image, index), found.negative_images)
        return replace(record, **found._replace(negative_images=images)._asdict())

    def _image(self, index: int) -> bytes:
        raise NotImplementedError

    def _other_image(self, index: int, place: Any) -> bytes:
        """A negative picture of a record."""
        raise NotImplementedError


def _some(files: tuple[str, ...]) -> str:
    return files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def expand(patterns: tuple[str, ...], setting: str) -> tuple[str, ...]:
    """Paths, globs and {000..012} to paths, those of a glob sorted.

    Raises DataError where one names no file; `setting` is for the message.
    """
    paths: list[str] = []
    for pattern in patterns:
        # a name with braces in it is itself
        for one in [pattern] if reading.glob(pattern) else expand_braces(pattern):
            found = reading.glob(one)
            if not found:
                raise DataError(
                    f"no file {one!r}", "a path or a glob that matches", f"check {setting}"
                )
            paths += [path for path in found if path not in paths]
    return tuple(paths)


@dataclass(frozen=True)
class Split:
    """Which keys a source keeps: "train" or "val", what is not held out or what is.

    Without a holdout both keep all.

    together: key -> the key that decides for it, so that pictures which are compared stay on one
    side; a key with folders also goes by its last part, as annotations may name it.
    """

    name: str = "train"
    holdout: float = 0.0
    together: Mapping[str, str] = field(default_factory=dict)

    def keeps(self, key: str, group: str = "") -> bool:
        """Whether the key is of this split; all of a group are on one side."""
        by_base = self.together.get(os.path.basename(key), group or key)
        return not self.holdout or held_out(self.together.get(key, by_base), self.holdout) == (
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
        settings: tuple[str, str] = ("data.train", "data.image_root"),
    ):
        """files: paths; clean: drop captions that cleaning empties; settings: the fields that name
        the files and their root, for messages; others: see DataConfig.

        Raises:
          DataError: a file is missing or no such list, more than a few entries lack a field, or
            none of some pictures of a file is where it should be.
        """
        super().__init__(files)
        self.image_root, (self._setting, self._root_setting) = image_root, settings
        self.remote = is_bucket(image_root)
        for number, path in enumerate(files):
            entries = self._read(path)
            bad = [k for k, entry in enumerate(entries) if _image_and_captions(entry) is None]
            if len(bad) > max(len(entries) >= 10, _MAX_BAD * len(entries)):
                raise self._other_fields(path, bad[0], entries[bad[0]])
            for position in bad:
                self.report.drop("no image or caption", f"entry {position} in {path}")
            good = [entry for entry in entries if _image_and_captions(entry) is not None]
            images = [entry["image"] for entry in good]
            self._check_some_exist(path, images[:: max(1, len(images) // TRIED)])
            for entry in good:
                image, captions = _image_and_captions(entry)
                if not split.keeps(image, group_of(entry)):
                    continue
                if usable := usable_captions(captions, clean):
                    found = annotations_of(entry, captions)
                    paths = tuple(one for one in found.negative_images if isinstance(one, str))
                    self._add(image, number, usable, found._replace(negative_images=paths))
                else:
                    self.report.drop("no caption", f"{image} in {path}")
        self._close("entries with a picture and a caption")

    def _read(self, path: str) -> list:
        try:
            content = reading.read_bytes(path)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}", "a readable file", f"check {self._setting}"
            ) from error
        first = content[:2]
        if first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in first:
            raise DataError(
                f"{path} in UTF-16", "UTF-8", f"save as UTF-8, or {self._prepare(path)}"
            )
        try:
            entries = json.loads(content.decode("utf-8-sig"))
        except ValueError as error:
            if _are_lines(content):
                raise DataError(
                    f"{path} with an object a line", "one json list", self._prepare(path)
                ) from error
            raise DataError(
                f"{path}: {error}", "a json list", "check the file; it may be cut short"
            ) from error
        if not isinstance(entries, list) or not entries:
            kind = "an empty list" if entries == [] else type(entries).__name__
            raise DataError(
                f"{path} holds {kind}",
                "a list of {image, caption}",
                self._prepare(path)
                if isinstance(entries, dict)
                else "convert the file to that form",
            )
        return entries

    def _other_fields(self, path: str, position: int, entry: object) -> DataError:
        has = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        readable = image_of(entry) and captions_of(entry)
        return DataError(
            f"{path}, entry {position}, with {has or 'no field'}",
            "image (a path) and caption (a text or a list)",
            self._prepare(path) if readable else "rename the fields, and give each entry both",
        )

    def _prepare(self, path: str) -> str:
        if is_bucket(path) or self.remote:
            return "copy it to a disk with its pictures, and run nas_jax.data.prepare on it"
        return f"run {prepare_command(path, self._setting, self.image_root)}"

    def _check_some_exist(self, path: str, images: Sequence[str]) -> None:
        """A few dead paths are replaced in training; where none of so many exists, evenly spread,
        the root is wrong.
        """
        if not images or any(self._exists(image) for image in images):
            return
        remedy = self._set_root(f"the folder that holds {images[0].split('/')[0]!r}")
        if not is_bucket(path) and not self.remote:
            place = find_root(path, self.image_root, images)
            if place and not place[1] and os.path.isdir(place[0]) and "\\" not in images[0]:
                remedy = self._set_root(repr(place[0]))
            elif place:
                remedy = f"run {prepare_command(path, self._setting, *place)}"
            elif images[0].startswith("/") or "\\" in images[0]:
                flags = flags_for(path, self.image_root, images)
                remedy = f"run python -m nas_jax.data.prepare on it with {flags}"
        raise DataError(
            f"no picture {join(self.image_root, images[0])!r}, nor any other of "
            f"{len(images)} in {path}",
            f"image paths that start from {self._root_setting}",
            remedy,
        )

    def _set_root(self, folder: str) -> str:
        """The advice to set the root to what `folder` says."""
        now = f"(now {self.image_root!r})"
        if self._root_setting == "data.image_root":
            return f"set data.image_root={folder} {now}"
        return f"put {folder} {now} for it in {self._root_setting}, which has one for each entry"

    def _exists(self, image: str) -> bool:
        try:
            return reading.is_file(join(self.image_root, image))
        except ValueError:  # a NUL in the path
            return False

    def picture_path(self, index: int) -> str:
        """The file of a picture."""
        return join(self.image_root, self.key(index))

    @staticmethod
    def key_of(name: str) -> str:
        """The path, as the list has it."""
        return name

    def _image(self, index: int) -> bytes:
        return _read_picture(self.picture_path(index))

    def _other_image(self, index: int, place: Any) -> bytes:
        return _read_picture(join(self.image_root, place))


def _read_picture(path: str) -> bytes:
    if "\0" in path:  # which no system call takes
        raise OSError(errno.EINVAL, "a NUL in the path", path)
    return reading.read_bytes(path)


def _image_and_captions(entry: object) -> tuple[str, list] | None:
    """None where an entry has no picture or no caption field; a caption that is no text is none."""
    if not isinstance(entry, dict) or "caption" not in entry:
        return None
    image, captions = entry.get("image"), entry["caption"]
    if not isinstance(image, str) or not image:
        return None
    return image, captions if isinstance(captions, list) else [captions]


def _are_lines(content: bytes) -> bool:
    """Whether a json file has an object a line."""
    try:
        return isinstance(json.loads(content.partition(b"\n")[0]), dict)
    except ValueError:
        return False


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
                image = picture_of(parts)
                read = partial(_read_member, path, texts)
                captions, damaged, annotations = read_sample(parts, read, "replace")
                if not split.keeps(key, annotations.group):
                    continue
                if image is None:
                    self.report.drop("no image", f"{key} in {path}: {why_no_picture(parts)}")
                    continue
                if usable := usable_captions(captions, clean):
                    self._add(key, number, usable, annotations)
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
    def key_of(name: str) -> str:
        """The path up to the first dot of the file name."""
        return split_name(name)[0]

    def _image(self, index: int) -> bytes:
        return reading.read_bytes(self.file(index), *self._slices[index].tolist())

    def _other_image(self, index: int, place: Any) -> bytes:
        return reading.read_bytes(self.file(index), *place)


def _read_member(path: str, texts: Mapping[Place, bytes], place: Place) -> bytes:
    return texts[place] if place in texts else reading.read_bytes(path, *place)
