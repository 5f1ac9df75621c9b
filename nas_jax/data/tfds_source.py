"""Pictures with captions from TensorFlow Datasets (TFDS), by index and without TensorFlow.

TFDS reads ArrayRecord files with NumPy alone; pictures come as the bytes that were stored. Some of
its builders cannot even be constructed without TensorFlow, coco_captions among them;
`nas_jax.data.tfds_coco` takes its place.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nas_jax.data.config import cache_for
from nas_jax.data.records import NegativeCaption, Record, source_of
from nas_jax.data.sources import ALL, Report, Split, image_id_of, usable_captions
from nas_jax.storage.local_copy import digest
from nas_jax.storage.paths import is_bucket
from nas_jax.storage.reading import files_below
from nas_jax.utils.errors import DataError

CAPTION_FEATURES = {
    "coco_captions": "captions/text",
    "coco_captions_from_json": "captions/text",
    "ref_coco": "objects/refexp/raw",
    "laion400m": "caption",
}
"""Data set -> where its captions are.

Others may have one text feature, or data.tfds_captions says which.
"""

KEY_FEATURES = ("image/id", "image/filename")
INFO = "dataset_info.json"  # in the folder of each version of a data set
_SHARD = re.compile(r"-([\w-]+)\.array_record-\d{5}-of-\d{5}$")
# text features that name things
_NO_CAPTION = re.compile(r"(^|[/_])(id|file_?name|url|path|license|split)$")
_SPLIT = r"[\w-]+(?:\[[^\]/]*\])?"
_ENTRY = re.compile(rf"tfds:(?P<name>.+?)(?::(?P<split>{_SPLIT}(?:\+{_SPLIT})*))?")


class NoCaption(OSError):
    """A record without a usable caption.

    An OSError, so that training takes the next record and counts this one.
    """


def local_entry(entry: str, cache: str) -> str:
    """The entry, or for a folder in a bucket that of its copy below the local folder `cache`.

    The copy is made if it is not there, of the splits that the entry names.

    Raises:
      ConfigError: a bucket and no cache.
      DataError: no TFDS folder, no ArrayRecord file of such a split, and what Cache.copy_folder
      raises.
    """
    match = _ENTRY.fullmatch(entry)
    if not match or not is_bucket(match["name"]):
        return entry
    folder, split = match["name"].rstrip("/"), match["split"] or "train"
    kept = cache_for(entry, cache)
    found = files_below(folder)
    if INFO not in found:
        inside = next((name for name in sorted(found) if name.endswith(f"/{INFO}")), "")
        raise _no_folder(folder, f"{folder}/{os.path.dirname(inside)}" if inside else "")
    shards = {name: shard[1] for name in found if (shard := _SHARD.search(name))}
    splits = set(re.findall(r"(?:^|\+)([\w-]+)", split))
    if missing := splits - set(shards.values()) - {"all"}:
        known = ", ".join(sorted(set(shards.values()))) or "none"
        raise DataError(
            f"{entry} without ArrayRecord files of {', '.join(sorted(missing))}",
            f"a split that is there as array_record ({known})",
            "correct the split, or prepare the data set with file_format='array_record'",
        )
    wanted = {name for name in found if "all" in splits or shards.get(name) in {None, *splits}}
    sizes = {name: found[name].size for name in wanted}
    local = kept.copy_folder(folder, sizes, digest(found))
    return f"tfds:{local}:{split}"


@dataclass(frozen=True)
class _Parts:
    """An opened data set; stays in its process."""

    data: Any  # index -> nested dict of NumPy values
    version: str  # name, config, version and size of the data set
    folder: str  # where it lies
    name: str
    split: str
    image: str  # names of the features, as they are nested
    captions: tuple[str, ...]
    key: str  # "" = keys are positions


@dataclass
class TfdsSource:
    """A split of a TFDS data set. Opening it reads no records unless something is held out.

    Each access reads one.

    entry: `tfds:NAME`, `tfds:NAME/CONFIG:SPLIT` or `tfds:DIR:SPLIT`; DIR holds dataset_info.json,
      NAME lies where TFDS looks for it (~/tensorflow_datasets, or $TFDS_DATA_DIR). SPLIT is "train"
      if left out; `train[:10%]`, `train+validation` and so on work.
    split: which keys are kept. With a holdout all records are read once, and those without a
    caption are dropped. clean: drop captions of which cleaning leaves nothing.
    captions_field: the text feature with the captions, as a/b/c; "" = CAPTION_FEATURES, or the only
    one there is.

    A key is NAME/ and the value of image/id or image/filename where there is one, else
    NAME/SPLIT/index.

    Raises:
      DataError: no such data set, not prepared or not as ArrayRecord, no such split, TensorFlow
        needed, or no telling which features hold picture and captions.
    """

    entry: str
    split: Split = ALL
    clean: bool = True
    captions_field: str = ""
    report: Report = field(default_factory=Report, init=False)
    name_first: ClassVar[bool] = False
    remote: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._opened: _Parts | None = None
        parts = self._parts
        self.files: tuple[str, ...] = (parts.folder,)
        self.origins: tuple[str, ...] = self.files
        self._kept: np.ndarray | None = None
        self._length = len(parts.data)
        if self.split.holdout:
            self._kept = np.fromiter(self._keep(), np.int32)
            self._length = len(self._kept)
        if not self._length:
            raise DataError(
                f"no usable pairs in {self.entry}"
                + (f": {self.report.line()}" if self.report else ""),
                "records with a picture and a caption",
                "check data.train, data.val and data.holdout",
            )

    def _keep(self) -> Iterator[int]:
        for position in range(self._length):
            example = self._parts.data[position]
            key = self._key(position, example)
            if not self.split.keeps(key):
                continue
            if self._texts(example):
                yield position
            else:
                self.report.drop("no caption", f"{key} in {self.entry}")

    @property
    def _parts(self) -> _Parts:
        if self._opened is None:
            self._opened = _open(self.entry, self.captions_field)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # readers stay in the process that opened them

    def __len__(self) -> int:
        return self._length

    def _position(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        return int(index if self._kept is None else self._kept[index])

    def _read(self, position: int) -> dict:
        try:
            return self._parts.data[position]
        except (RuntimeError, ValueError, IndexError) as error:  # ArrayRecord, on damaged bytes
            raise OSError(f"record {position} of {self.entry}: {error}") from error

    def __getitem__(self, index: int) -> Record:
        """Raises OSError on damaged bytes, NoCaption where no caption is usable."""
        position = self._position(index)
        example = self._read(position)
        key = self._key(position, example)
        if not (captions := self._texts(example)):
            raise NoCaption(f"no usable caption: {key} in {self.entry}")
        image = stored_picture(example[self._parts.image])
        return Record(key, image, captions, image_id_of(key))

    def key(self, index: int) -> str:
        """The name of the content."""
        position = self._position(index)
        return self._key(position, self._read(position) if self._parts.key else {})

    def file(self, index: int) -> str:
        """The folder of the data set."""
        return self._parts.folder

    origin = file

    def captions(self, index: int) -> tuple[str, ...]:
        """All usable captions, without decoding the picture; () where there is none."""
        return self._texts(self._read(self._position(index)))

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """None: no negatives are read."""
        return (), 0

    def group(self, index: int) -> str:
        """The key up to its mark."""
        return source_of(self.key(index))

    def key_of(self, name: str) -> str:
        """The key of what annotations call `name`: its key feature's value, or the whole key."""
        prefix = f"{self._parts.name}/"
        return name if name.startswith(prefix) else prefix + name

    def identity(self) -> str:
        """Of the data set's name, version and size, the split and the kept records."""
        kept = b"" if self._kept is None else self._kept.tobytes()
        text = f"{self._parts.version} {self._parts.split} {self._length} "
        return hashlib.blake2b(text.encode() + kept, digest_size=8).hexdigest()

    def _key(self, position: int, example: dict) -> str:
        if not self._parts.key:
            return f"{self._parts.name}/{self._parts.split}/{position}"
        value = example[self._parts.key]
        name = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return f"{self._parts.name}/{name}"

    def _texts(self, example: dict) -> tuple[str, ...]:
        values: Any = example
        for name in self._parts.captions:
            values = values[name]
        return tuple(usable_captions(list(dict.fromkeys(_strings(values))), self.clean))


def _strings(values: Any) -> Iterator[str]:
    """All texts in a text, an array or (ragged) lists of them."""
    if isinstance(values, bytes):
        yield values.decode("utf-8", "replace")
    elif isinstance(values, str):
        yield values
    else:
        for value in values:
            yield from _strings(value)


@dataclass(frozen=True)
class OpenedSplit:
    """A split of a data set, by index."""

    builder: Any  # of TFDS
    name: str  # of the split
    data: Any  # index -> nested dict of NumPy values; pictures as they were stored
    image: str  # the picture's feature


def open_split(entry: str, field_: str = "data.train or data.val") -> OpenedSplit:
    """Opens `tfds:NAME[:SPLIT]`. field_: where the user wrote it. Raises as `TfdsSource`."""
    match = _ENTRY.fullmatch(entry)
    if not match:
        got, expected = repr(entry), "tfds:NAME, tfds:NAME:SPLIT or tfds:DIR:SPLIT"
        raise DataError(got, expected, f"correct {field_}")
    name, split = os.path.expanduser(match["name"]), match["split"] or "train"
    builder = _builder(name)
    if is_bucket(folder := str(builder.data_dir)):  # from TFDS_DATA_DIR
        raise DataError(
            f"{entry}, which is in {folder}",
            "a path that says so, as the files are read from a copy in data.cache",
            f"write tfds:{folder}:{split}",
        )
    image, skipped = _images(builder.info.features, entry)
    try:
        data = builder.as_data_source(split, decoders=skipped)
    except NotImplementedError as error:
        raise _not_prepared(builder, name) from error
    except (ValueError, KeyError) as error:
        known = ", ".join(map(str, builder.info.splits)) or "none"
        raise DataError(
            f"{entry}, split {split!r}: {_first_line(error)}",
            f"a split of it ({known})",
            f"write tfds:{name}:SPLIT",
        ) from error
    except OSError as error:
        raise DataError(
            f"{entry}: {_first_line(error)}",
            "its ArrayRecord files",
            "copy or prepare the data set again",
        ) from error
    return OpenedSplit(builder, split, data, image)


def stored_picture(value: Any) -> bytes | np.ndarray:
    """A picture of a record: the bytes of its file, or pixels."""
    return value if isinstance(value, np.ndarray) else bytes(value)


def _open(entry: str, captions_field: str) -> _Parts:
    opened = open_split(entry)
    builder, features = opened.builder, opened.builder.info.features
    named = captions_field or CAPTION_FEATURES.get(builder.name, "")
    captions = _caption_feature(features, entry, named, asked=bool(captions_field))
    key = next((feature for feature in KEY_FEATURES if feature in features), "")
    version = f"{builder.info.full_name} {int(builder.info.dataset_size)}"
    folder = str(builder.data_dir)
    names = builder.name, opened.name
    return _Parts(opened.data, version, folder, *names, opened.image, captions, key)


def _builder(name: str) -> Any:
    tfds = _tfds()
    if os.path.isfile(os.path.join(name, INFO)):
        try:
            return tfds.builder_from_directory(name)
        except (
            Exception
        ) as error:  # on a damaged dataset_info.json TFDS and protobuf raise about anything
            raise DataError(
                f"{name}: {_first_line(error)}",
                "a folder that TFDS wrote",
                "prepare the data set again",
            ) from error
    if os.path.isdir(name) or name.startswith((".", "/", "~")) or "://" in name:
        inside = [str(path.parent) for path in sorted(Path(name).glob(f"*/{INFO}"))[:1]]
        inside = inside or [str(path.parent) for path in sorted(Path(name).glob(f"*/*/{INFO}"))[:1]]
        raise _no_folder(name, *inside)
    try:
        return tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(
            f"tfds:{name}, a name that TFDS does not know",
            "a data set of tfds.list_builders(), or a folder with dataset_info.json",
            "correct the name",
        ) from error
    except ImportError as error:
        own = name.partition("/")[0] == "coco_captions"
        raise DataError(
            f"tfds:{name}, which needs {_module(error)} to be opened by name",
            "a data set that does without, or the folder of a prepared one",
            "prepare it with python -m nas_jax.data.tfds_coco (its help says how), then use "
            "tfds:DIR:SPLIT"
            if own
            else "prepare it elsewhere with file_format='array_record', then use tfds:DIR:SPLIT",
        ) from error
    except (ValueError, RuntimeError, AssertionError) as error:  # an unknown config or version
        raise DataError(
            f"tfds:{name}: {_first_line(error)}", "NAME or NAME/CONFIG of TFDS", "correct it"
        ) from error


def _no_folder(name: str, inside: str = "") -> DataError:
    return DataError(
        f"no {INFO} in {name}",
        "the folder of one version of a data set, as NAME/1.0.0",
        f"write tfds:{inside}" if inside else "check the path",
    )


def _tfds() -> Any:
    """The package, imported when it is first needed: it takes a second."""
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise DataError(
            "a tfds: entry without the package tensorflow-datasets",
            "it installed",
            "pip install tensorflow-datasets",
        ) from error


def _not_prepared(builder: Any, name: str) -> DataError:
    command = f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
    if not os.path.exists(os.path.join(str(builder.data_dir), INFO)):
        return DataError(
            f"tfds:{name}, not prepared in {builder.data_dir}",
            "a prepared data set",
            f"run {command} in Python, or set TFDS_DATA_DIR to where it is",
        )
    return DataError(
        f"tfds:{name}, prepared as {builder.info.file_format.value}",
        "array_record, which can be read at random",
        f"run {command} with another data_dir",
    )


def _module(error: BaseException) -> str:
    """What could not be imported, also where TFDS has wrapped the error."""
    missing = re.search(r"No module named '([\w.]+)'", str(error))
    return (
        {"tensorflow": "TensorFlow"}.get(missing[1], missing[1])
        if missing
        else "a package that is not installed"
    )


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )[:200]


# ----------------------------------------------------------------------------------------- features


def _images(features: Any, entry: str) -> tuple[str, dict]:
    """The picture's feature, and the decoders that leave it and all others encoded."""
    tfds = _tfds()
    top = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if "image" not in top and len(top) != 1:
        raise DataError(
            f"{entry} with the picture features {', '.join(top) or 'none'}",
            "one, or one named image",
            "use another set",
        )

    encoded: Any = tfds.decode.SkipDecoding

    class EncodedImage(encoded):
        """Also for pictures in sequences, like masks of objects."""

        def decode_batch_example_np(self, example: Any) -> Any:
            return example

        decode_ragged_example_np = decode_batch_example_np

    def skipping(feature: Any) -> Any:
        if isinstance(feature, tfds.features.Image):
            return EncodedImage()
        parts = {name: skipping(part) for name, part in _children(feature)}
        return {name: part for name, part in parts.items() if part} or None

    return "image" if "image" in top else top[0], skipping(features)


def _children(feature: Any) -> list[tuple[str, Any]]:
    """(name, feature) of what is nested in a feature; sequences of dicts count as the dict."""
    tfds = _tfds()
    if isinstance(feature, tfds.features.FeaturesDict):
        return list(feature.items())
    if isinstance(feature, tfds.features.Sequence):
        return _children(feature.feature)
    return []


def _text_features(features: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    tfds = _tfds()
    for name, feature in _children(features):
        leaf = feature
        while isinstance(leaf, tfds.features.Sequence) and not _children(leaf):
            leaf = leaf.feature
        if _children(leaf):
            yield from _text_features(leaf, (*path, name))
        elif isinstance(leaf, tfds.features.Text) or (
            type(leaf) is tfds.features.Tensor and np.dtype(leaf.np_dtype).kind in "OSU"
        ):
            yield (*path, name)


def _caption_feature(features: Any, entry: str, wanted: str, asked: bool) -> tuple[str, ...]:
    """The path of the captions: as wanted, or the only text that is no name, path or licence."""
    texts = {"/".join(path): path for path in _text_features(features)}
    if wanted in texts:
        return texts[wanted]
    likely = [name for name in texts if not _NO_CAPTION.search(name)]
    if len(likely) == 1 and not asked:
        return texts[likely[0]]
    raise DataError(
        f"{entry} with the text features {', '.join(sorted(texts)) or 'none'}",
        f"{wanted!r} among them" if asked else "one that is the caption",
        "set data.tfds_captions to the right one" if texts else "use a data set with captions",
    )
