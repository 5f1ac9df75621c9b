"""The json lists ALBEF trains on, with pictures in files, on disk or in a bucket."""

from __future__ import annotations

import codecs
import errno
import json
import os
from collections.abc import Sequence
from typing import Any

from nas_jax.data.advice import prepare_command
from nas_jax.data.annotations import annotations_of
from nas_jax.data.list_fields import captions_of, image_of
from nas_jax.data.negative_fields import expressions_of, group_of
from nas_jax.data.picture_paths import TRIED, find_root, flags_for
from nas_jax.data.source_table import SourceTable
from nas_jax.data.sources import ALL, Split, usable_captions
from nas_jax.storage import reading
from nas_jax.storage.paths import is_bucket, join
from nas_jax.utils.errors import DataError

_MAX_BAD = 0.05  # share of a list (of 10 entries, one) without image or caption; more: other form


class AlbefJsonSource(SourceTable):
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
            bad = [k for k, entry in enumerate(entries) if not _has_both(entry)]
            if len(bad) > max(len(entries) >= 10, _MAX_BAD * len(entries)):
                raise self._other_fields(path, bad[0], entries[bad[0]])
            for position in bad:
                self.report.drop("no image or caption", f"entry {position} in {path}")
            good = [entry for entry in entries if _has_both(entry)]
            images = [entry["image"] for entry in good]
            self._check_some_exist(path, images[:: max(1, len(images) // TRIED)])
            for entry in good:
                image, captions = entry["image"], entry["caption"]
                captions = captions if isinstance(captions, list) else [captions]
                if not split.keeps(image, group_of(entry)):
                    continue
                if usable := usable_captions(captions + expressions_of(entry), clean):
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


def _has_both(entry: object) -> bool:
    """Whether an entry has a picture and a caption field; a caption that is no text is none."""
    if not isinstance(entry, dict) or "caption" not in entry:
        return False
    image = entry.get("image")
    return isinstance(image, str) and bool(image)


def _are_lines(content: bytes) -> bool:
    """Whether a json file has an object a line."""
    try:
        return isinstance(json.loads(content.partition(b"\n")[0]), dict)
    except ValueError:
        return False
