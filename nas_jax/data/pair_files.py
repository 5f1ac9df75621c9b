"""Evaluation sets from files: held-out pictures, and jsonl lists of foils and quads about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from absl import logging

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import Corpus, open_corpus
from nas_jax.data.eval_sets import EvalSet, Foil, Quad
from nas_jax.data.image_errors import ImageError
from nas_jax.data.image_ops import decode, resize
from nas_jax.data.pair_lines import category_of, first_word, foils_of, read_pairs
from nas_jax.data.sources import Source, expand
from nas_jax.data.tar_names import keys_of
from nas_jax.data.text_ops import prepare_caption
from nas_jax.storage.reading import each
from nas_jax.utils.errors import DataError

CACHE_BYTES = 512 * 2**20  # decoded pictures up to this many bytes stay in memory


class ImageList(Sequence):
    """Pictures of a source by index, decoded and resized (no crop): uint8 (size, size, 3)."""

    def __init__(self, source: Corpus, size: int, value_range: tuple[float, ...] = ()):
        """Decodes every picture once. value_range: see `decode`.

        `kept` has the source indices of the readable ones, and `image_ids` their ids, as training
        has them; the rest is in `dropped`.
        """
        self._source, self._size, self._range = source, size, value_range
        self._cache: list[np.ndarray] | None = (
            [] if len(source) * size * size * 3 <= CACHE_BYTES else None
        )
        self.kept: list[int] = []
        self.image_ids: list[int] = []
        self.dropped: list[str] = []
        for index, found in enumerate(self._all(self._try, range(len(source)))):
            if isinstance(found, Exception):
                self.dropped.append(f"{source.key(index)} in {source.file(index)}: {found}")
                continue
            image_id, image_HxWx3 = found
            self.kept.append(index)
            self.image_ids.append(image_id)
            if self._cache is not None:
                self._cache.append(image_HxWx3)

    def _all(self, read: Callable[[int], Any], indices: Iterable[int]) -> Iterator[Any]:
        return each(read, indices) if self._source.remote else map(read, indices)

    def _try(self, index: int) -> tuple[int, np.ndarray] | Exception:
        try:
            return self._read(index)
        except (OSError, ImageError) as error:
            return error

    def _read(self, index: int) -> tuple[int, np.ndarray]:
        record = self._source[index]
        return record.image_id, resize(decode(record.image, self._range), self._size)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self._all(self.__getitem__, range(*index.indices(len(self)))))
        return self._read(self.kept[index])[1] if self._cache is None else self._cache[index]


def file_eval_sets(config: DataConfig, cased: bool = False) -> tuple[EvalSet, ...]:
    """The set "val" of a config that reads files; () without data.holdout and data.val.

    cased: the tokenizer tells capitals apart, so that cleaning leaves them.

    Pictures: all of the validation split, from every file; those that share an image_id in training
    do so here, so that either drawing answers a caption of the other. Captions: all of an
    albef_json entry; of a webdataset sample only the first, its name, as the alternatives may fit
    other pictures too. Foils and quads: the lines whose pictures are all in the set.

    A picture is looked up by key in the files (tars, json lists) whose names begin with the same
    word as the jsonl's ("noto-foils.jsonl" goes with "noto.tar" and "noto-00001.tar"), or if there
    are none, in the folders whose names do ("noto/00000.tar", or a prepared folder "noto"), and in
    all if there are none.

    Raises:
      DataError: those of the sources; a jsonl that is malformed, has no line about these pictures,
      or names a picture by a key that two of them have.
    """
    if not (config.holdout or config.val):
        return ()
    source = open_corpus(config, "val", seed=0)  # of files only, so nothing is drawn
    images = ImageList(source, config.image_size, config.image_range)
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
    clean = partial(_clean, config=config, cased=cased)
    captions = [source.retrieval_captions(index) for index in images.kept]
    finder = _Finder(source, images)
    foils, quads = [], []
    for path in expand(config.foils, "data.foils"):
        foils += _foils(path, finder, clean)
    for path in expand(config.quads, "data.quads"):
        quads += _quads(path, finder, clean)
    return (
        EvalSet(
            name="val",
            images=images,
            captions=tuple(tuple(map(clean, texts)) for texts in captions),
            foils=tuple(foils),
            quads=tuple(quads),
            image_ids=tuple(images.image_ids),
        ),
    )


class _Finder:
    """Index of a picture in the set, by its name in a jsonl file."""

    def __init__(self, source: Corpus, images: ImageList):
        self._source, self._images = source, images
        # by number of the part and key; a second one by the key without folders (of tars)
        self._positions: dict[tuple[int, str], list[int]] = {}
        self._by_base: dict[tuple[int, str], list[int]] = {}
        for position, index in enumerate(images.kept):
            part, key = source.part(index), source.key(index)
            self._positions.setdefault((part, key), []).append(position)
            self._by_base.setdefault((part, os.path.basename(key)), []).append(position)
        self._file_words = set(map(first_word, source.origins))
        self._folder_words = set(map(_folder_word, (*source.origins, *source.files))) - {""}

    def find(self, jsonl: str, image: str) -> int | None:
        """None where it is not in the set. Raises DataError where two pictures have the name."""
        word = first_word(jsonl)
        found: dict[int, int] = {}
        for number, part in enumerate(self._source.parts):
            for position in self._named(number, part, image):
                if self._goes_with(word, self._images.kept[position]):
                    found.setdefault(self._images.image_ids[position], position)
        if len(found) > 1:
            one, other, *_ = (self._source.origin(self._images.kept[p]) for p in found.values())
            raise DataError(
                f"{jsonl}: the picture {image!r} is in {one} and in {other}",
                "a file named like the tar, list or folder that it is about",
                "rename it NAME-foils.jsonl or NAME-quads.jsonl, or set data.shared_keys=True if "
                "the same key is the same picture",
            )
        return next(iter(found.values()), None)

    def _named(self, number: int, part: Source, image: str) -> Sequence[int]:
        """Positions of the pictures of a part that may be called so."""
        if not part.name_first:
            return self._positions.get((number, part.key_of(image)), ())
        keys = keys_of(image)
        bases = [os.path.basename(key) for key in keys]
        places = [(self._positions, key) for key in (*keys, *bases)]
        places += [(self._by_base, base) for base in bases]
        return next((found[number, key] for found, key in places if (number, key) in found), ())

    def _goes_with(self, word: str, index: int) -> bool:
        """Whether a jsonl that begins with `word` is about the file or folder of a picture."""
        origin = self._source.origin(index)
        if word in self._file_words:
            return first_word(origin) == word
        if word in self._folder_words:
            return word in (_folder_word(origin), _folder_word(self._source.file(index)))
        return True


def _folder_word(path: str) -> str:
    return first_word(os.path.dirname(path))


def _clean(text: str, config: DataConfig, cased: bool) -> str:
    return prepare_caption(text, config.clean_captions, config.max_words, cased)


def _foils(path: str, finder: _Finder, clean: Callable[[str], str]) -> list[Foil]:
    entries = read_pairs(path, ("image",), ("caption",))
    foils, about = [], 0
    for number, entry in entries:
        wrong, category = foils_of(entry), category_of(entry)
        if wrong is None or category is None:
            raise DataError(
                f"{path}, line {number}, without {'foil' if wrong is None else 'category'!r}",
                "image, caption, foil (a text or a list of texts), perhaps category",
                "mend that line",
            )
        image = finder.find(path, entry["image"])
        if image is None:
            continue
        about += 1
        caption = clean(entry["caption"])
        foils += [Foil(image, caption, clean(text), category) for text in wrong]
    _report(path, about, len(entries))
    return foils


def _quads(path: str, finder: _Finder, clean: Callable[[str], str]) -> list[Quad]:
    entries = read_pairs(path, ("image_0", "image_1"), ("caption_0", "caption_1"))
    quads = []
    for number, entry in entries:
        category = category_of(entry)
        if category is None:
            raise DataError(
                f"{path}, line {number}, without 'category'", "a text or a number", "mend that line"
            )
        image_0, image_1 = (finder.find(path, entry[name]) for name in ("image_0", "image_1"))
        if image_0 is not None and image_1 is not None:
            caption_0, caption_1 = (clean(entry[name]) for name in ("caption_0", "caption_1"))
            kind = "order" if category == "none" else category
            quads.append(Quad(image_0, image_1, caption_0, caption_1, kind))
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
