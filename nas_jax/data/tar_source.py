"""WebDataset tars, read in place, on disk or in a bucket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from absl import logging

from nas_jax.data.annotations import read_sample
from nas_jax.data.source_table import SourceTable
from nas_jax.data.sources import ALL, Split, usable_captions
from nas_jax.data.tar_index import Place, index_tar
from nas_jax.data.tar_names import IMAGE_SUFFIXES, picture_of, split_name, why_no_picture
from nas_jax.storage import reading


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


class WebDatasetSource(SourceTable):
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
