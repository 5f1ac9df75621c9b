"""Evaluation sets from files: held-out pictures, and jsonl lists of foils and quads about them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import Corpus, open_corpus
from nas_jax.data.eval_sets import EvalSet, Foil, Quad
from nas_jax.data.image_ops import ImageError, decode, resize
from nas_jax.data.sources import expand, image_id_of, read_jsonl
from nas_jax.data.text_ops import prepare_caption
from nas_jax.storage.reading import each
from nas_jax.utils.errors import DataError

CACHE_BYTES = 512 * 2**20  # decoded pictures up to this many bytes stay in memory


class ImageList(Sequence):
    """Pictures of a source by index, decoded and resized (no crop): uint8 (size, size, 3)."""

    def __init__(self, source: Corpus, size: int):
        """Decodes every picture once.

        `kept` has the source indices of the readable ones; the rest is in `dropped`.
        """
        self._source, self._size = source, size
        self._cache: list[np.ndarray] | None = (
            [] if len(source) * size * size * 3 <= CACHE_BYTES else None
        )
        self.kept: list[int] = []
        self.dropped: list[str] = []
        for index, image_HxWx3 in enumerate(self._all(self._try, range(len(source)))):
            if isinstance(image_HxWx3, Exception):
                self.dropped.append(f"{source.key(index)} in {source.file(index)}: {image_HxWx3}")
                continue
            self.kept.append(index)
            if self._cache is not None:
                self._cache.append(image_HxWx3)

    def _all(self, read: Callable[[int], Any], indices: Iterable[int]) -> Iterator[Any]:
        return each(read, indices) if self._source.remote else map(read, indices)

    def _try(self, index: int) -> np.ndarray | Exception:
        try:
            return self._read(index)
        except (OSError, ImageError) as error:
            return error

    def _read(self, index: int) -> np.ndarray:
        return resize(decode(self._source[index].image), self._size)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self._all(self.__getitem__, range(*index.indices(len(self)))))
        return self._read(self.kept[index]) if self._cache is None else self._cache[index]


def file_eval_sets(config: DataConfig) -> tuple[EvalSet, ...]:
    """The set "val" of a config that reads files; () without data.holdout and data.val.

    Pictures: all of the validation split, from every file; those of one key share an image_id, so
    that either drawing answers a caption of the other. Captions: all of an albef_json entry; of a
    webdataset sample only the first, its name, as the alternatives may fit other pictures too.
    Foils and quads: the lines whose pictures are all in the set. A picture is looked up by key in
    the tars or json lists whose names begin with the same word as the jsonl's ("noto-foils.jsonl"
    goes with "noto.tar" and "noto-00001.tar"), and in all if there are none.

    Raises:
      DataError: those of the sources; a jsonl that is malformed or has no line about these
      pictures.
    """
    if not (config.holdout or config.val):
        return ()
    source = open_corpus(config, "val", seed=0)  # of files only, so nothing is drawn
    images = ImageList(source, config.image_size)
    if images.dropped:
        logging.warning(
            "validation: %d unreadable pictures left out, like %s",
            len(images.dropped),
            images.dropped[0],
        )
    if not images.kept:
        raise DataError(
            f"no readable validation picture, like {images.dropped[0]}",
            "pictures",
            "check the files",
        )
    captions = [source.retrieval_captions(index) for index in images.kept]
    finder = _Finder(source, images.kept)
    foils, quads = [], []
    for path in expand(config.foils, "data.foils"):
        foils += _foils(path, finder, config)
    for path in expand(config.quads, "data.quads"):
        quads += _quads(path, finder, config)
    return (
        EvalSet(
            name="val",
            images=images,
            captions=tuple(tuple(_clean(text, config) for text in texts) for texts in captions),
            foils=tuple(foils),
            quads=tuple(quads),
            image_ids=tuple(image_id_of(source.key(index)) for index in images.kept),
        ),
    )


class _Finder:
    """Index of a picture in the set, by its name in a jsonl file."""

    def __init__(self, source: Corpus, kept: list[int]):
        self._keys_of = source.keys_of
        self._by_word: dict[str, dict[str, int]] = {}
        self._all: dict[str, int] = {}
        for position, index in enumerate(kept):
            key = source.key(index)
            self._by_word.setdefault(_first_word(source.origin(index)), {}).setdefault(
                key, position
            )
            self._all.setdefault(key, position)
        self._words = {_first_word(file) for file in source.origins}

    def find(self, jsonl: str, image: str) -> int | None:
        word = _first_word(jsonl)
        table = self._by_word.get(word, {}) if word in self._words else self._all
        return next((table[key] for key in self._keys_of(image) if key in table), None)


def _first_word(path: str) -> str:
    return re.split(r"[-_.]", os.path.basename(path))[0]


def _clean(text: str, config: DataConfig) -> str:
    return prepare_caption(text, config.clean_captions, config.max_words)


def _foils(path: str, finder: _Finder, config: DataConfig) -> list[Foil]:
    entries = read_jsonl(path, ("image", "caption", "foil", "category"))
    foils = []
    for entry in entries:
        image = finder.find(path, entry["image"])
        if image is not None:
            foils.append(
                Foil(
                    image,
                    _clean(entry["caption"], config),
                    _clean(entry["foil"], config),
                    entry["category"],
                )
            )
    _report(path, len(foils), len(entries))
    return foils


def _quads(path: str, finder: _Finder, config: DataConfig) -> list[Quad]:
    entries = read_jsonl(path, ("image_0", "image_1", "caption_0", "caption_1"))
    quads = []
    for entry in entries:
        image_0, image_1 = (finder.find(path, entry[name]) for name in ("image_0", "image_1"))
        if image_0 is not None and image_1 is not None:
            captions = (_clean(entry[name], config) for name in ("caption_0", "caption_1"))
            quads.append(
                Quad(image_0, image_1, *captions, category=str(entry.get("category", "order")))
            )
    _report(path, len(quads), len(entries))
    return quads


def _report(path: str, kept: int, count: int) -> None:
    if not kept:
        raise DataError(
            f"{path}: none of its {count} lines is about validation pictures",
            "pictures that data.holdout or data.val keeps out of training",
            "raise data.holdout, or check the names in the file",
        )
    logging.info("%s: %d of %d lines are about validation pictures", path, kept, count)
