"""From the entries of data.train or data.val to one source.

An entry says by its form what it is:

    scenes                    pictures drawn from the seed
    DIR                       a folder made by `python -m nas_jax.data.prepare`
    *.tar                     WebDataset shards (path, glob or {00000..00012})
    *.json                    ALBEF's lists (likewise)
    tfds:NAME[:SPLIT]         a TensorFlow Datasets data set, by name or folder

Paths may be gs://BUCKET/...: tars and lists are read there, the other two from a copy in
data.cache.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from nas_jax.data.advice import prepare_command
from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.config import DataConfig
from nas_jax.data.pair_lines import read_pairs
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.prepared_files import UNITS, is_prepared, local_folder
from nas_jax.data.records import NegativeCaption, Record
from nas_jax.data.scenes import SceneSource
from nas_jax.data.sources import Report, Source, Split, expand
from nas_jax.data.tar_names import all_keys_of
from nas_jax.data.tar_source import WebDatasetSource
from nas_jax.data.tfds_source import TfdsSource, local_entry
from nas_jax.data.worlds import WORLDS
from nas_jax.storage.paths import is_bucket
from nas_jax.storage.reading import glob, is_dir
from nas_jax.utils.errors import DataError

SCENES = "scenes"


class Corpus:
    """Several sources one after the other, as one.

    The same key in two sources is two pictures, unless `shared_keys`: shards of different
    collections are often numbered alike.
    """

    def __init__(self, parts: Sequence[Source], shared_keys: bool = False):
        self.parts, self.shared_keys = tuple(parts), shared_keys
        # of each part, and the length at the end
        self.starts = (0, *accumulate(len(part) for part in parts))
        self.files = tuple(file for part in parts for file in part.files)
        self.origins = tuple(file for part in parts for file in part.origins)
        self.remote = any(part.remote for part in parts)
        self.report = Report()
        for part in parts:
            self.report.merge(part.report)

    def __len__(self) -> int:
        return self.starts[-1]

    def part(self, index: int) -> int:
        """Which source a record is of."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return bisect_right(self.starts, index) - 1

    def _locate(self, index: int) -> tuple[Source, int]:
        number = self.part(index)
        return self.parts[number], index - self.starts[number]

    def __getitem__(self, index: int) -> Record:
        number = self.part(index)
        record = self.parts[number][index - self.starts[number]]
        if number and not self.shared_keys:
            record = replace(record, image_id=record.image_id ^ _salt(number))
        return record

    def key(self, index: int) -> str:
        """See Source."""
        source, local = self._locate(index)
        return source.key(local)

    def file(self, index: int) -> str:
        """See Source."""
        source, local = self._locate(index)
        return source.file(local)

    def origin(self, index: int) -> str:
        """See Source."""
        source, local = self._locate(index)
        return source.origin(local)

    def captions(self, index: int) -> tuple[str, ...]:
        """See Source."""
        source, local = self._locate(index)
        return source.captions(local)

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """See Source."""
        source, local = self._locate(index)
        return source.negatives(local)

    def group(self, index: int) -> str:
        """See Source."""
        source, local = self._locate(index)
        return source.group(local)

    def retrieval_captions(self, index: int) -> tuple[str, ...]:
        """The captions of this picture alone; only the first where that is the picture's name."""
        source, local = self._locate(index)
        texts = source.captions(local)
        return texts[:1] if source.name_first else texts

    def summary(self) -> str:
        """A line for each part: how many records of what, and the id of a prepared folder."""
        lines = []
        for part in self.parts:
            if isinstance(part, PreparedSource):
                name = f"{part.folder}, manifest {part.id}"
            else:
                name = part.files[0] + (
                    f" and {len(part.files) - 1} more" if len(part.files) > 1 else ""
                )
            lines.append(f"{len(part)} pictures of {name}")
        return "\n".join(lines)

    def identity(self) -> str:
        """Of the parts in their order."""
        return hashlib.blake2b(
            " ".join(part.identity() for part in self.parts).encode(), digest_size=8
        ).hexdigest()


def _salt(number: int) -> int:
    return (
        int.from_bytes(
            hashlib.blake2b(str(number).encode(), digest_size=4, person=b"part").digest(), "big"
        )
        >> 1
    )


# ---------------------------------------------------------------------------------- from the config


def open_corpus(config: DataConfig, split: str, seed: int) -> Corpus:
    """The "train" or "val" records of a config. Scenes are never held out.

    "val" needs data.val or data.holdout. With weights each entry is a source of its own; without,
    neighbouring tars (or lists of one image root) are one source, in which the same key means the
    same picture. The
    two pictures of a line in data.quads go to the same side of the holdout.

    Raises:
      DataError: those of the sources; an entry that names nothing.
    """
    name = _setting(config, split)
    entries = config.val if name == "data.val" else config.train
    chosen = Split(split, config.holdout, linked_keys(config) if config.holdout else {})
    roots = config.val_image_roots if name == "data.val" else config.image_roots
    groups: list[tuple[Callable, list[str], str]] = []
    for entry, root in zip(entries, roots or [config.image_root] * len(entries), strict=True):
        opener = _opener(entry, name)
        if split == "val" and opener is _open_scenes:
            continue
        paths = expand((entry,), name) if opener in JOINED else (entry,)
        same = groups and groups[-1][0] is opener and groups[-1][2] == root
        if opener in JOINED and not config.weights and same:
            groups[-1][1].extend(path for path in paths if path not in groups[-1][1])
        else:
            groups.append((opener, list(paths), root))
    parts = [
        opener(tuple(paths), replace(config, image_root=root), chosen, seed)
        for opener, paths, root in groups
    ]
    return Corpus(parts, config.shared_keys)


def _setting(config: DataConfig, split: str) -> str:
    """The field that names the records of a split."""
    return "data.val" if split == "val" and config.val else "data.train"


def _open_scenes(entries: tuple[str, ...], config: DataConfig, split: Split, seed: int) -> Source:
    world, varied = WORLDS[config.scene_world], config.scene_variations
    return SceneSource(split.name, config.num_train, seed, config.image_size, world, varied)


def _open_tfds(entries: tuple[str, ...], config: DataConfig, split: Split, seed: int) -> Source:
    entry = local_entry(entries[0], config.cache)
    return TfdsSource(entry, split, config.clean_captions, config.tfds_captions)


def _open_tars(paths: tuple[str, ...], config: DataConfig, split: Split, seed: int) -> Source:
    return WebDatasetSource(paths, split, config.clean_captions, config.cache)


def _open_lists(paths: tuple[str, ...], config: DataConfig, split: Split, seed: int) -> Source:
    setting = _setting(config, split.name)
    roots = "data.val_image_roots" if setting == "data.val" else "data.image_roots"
    given = config.image_roots or config.val_image_roots or len(config.train + config.val) > 1
    root = roots if given else "data.image_root"
    return AlbefJsonSource(paths, config.image_root, split, config.clean_captions, (setting, root))


def _open_prepared(folders: tuple[str, ...], config: DataConfig, split: Split, seed: int) -> Source:
    return PreparedSource(local_folder(folders[0], config.cache), split, config.clean_captions)


JOINED = (_open_tars, _open_lists)  # neighbouring files of these make one source


def _opener(
    entry: str, setting: str
) -> Callable[[tuple[str, ...], DataConfig, Split, int], Source]:
    if entry == SCENES:
        return _open_scenes
    if entry.startswith("tfds:"):
        return _open_tfds
    if entry.endswith(".tar"):
        return _open_tars
    if entry.endswith(".json"):
        return _open_lists
    folder = os.path.expanduser(entry)
    if is_prepared(folder):
        return _open_prepared
    if is_dir(folder) and (is_bucket(folder) or is_dir(os.path.join(folder, UNITS))):
        return _open_prepared  # which says what is missing
    raise _other_form(entry, setting)


def _other_form(entry: str, setting: str) -> DataError:
    """What to do with an entry of data.train or data.val that is of none of their forms."""
    got = f"the entry {entry!r} of {setting}"
    expected = "scenes, tfds:NAME, *.tar, *.json or a prepared folder"
    if is_bucket(entry):
        remedy = "correct the path; nas_jax.data.prepare makes folders from other files, on a disk"
        return DataError(got, expected, remedy)
    from nas_jax.data.prepare.forms import list_inputs  # here: it imports what this room has

    try:
        listed = list_inputs([entry])
    except DataError as error:  # what prepare would say
        if not glob(entry):
            return DataError(got, expected, "correct the path")
        return DataError(f"{got}: {error.got}", expected, error.remedy)
    tars = sorted({os.path.dirname(path) for kind, path in listed if kind == "webdataset"})
    if len(tars) == 1 and all(path.endswith(".tar") for _, path in listed):
        pattern = os.path.join(tars[0], "*.tar")
        return DataError(got, expected, f"name its tars: put {pattern!r} in its place")
    return DataError(got, expected, f"run {prepare_command(entry, setting)}")


def linked_keys(config: DataConfig) -> dict[str, str]:
    """Key, or its last part alone where lines name pictures so -> the smallest key it is linked
    with by lines of data.quads.
    """
    first: dict[str, str] = {}

    def root(key: str) -> str:
        while first.setdefault(key, key) != key:
            key = first[key]
        return key

    for path in expand(config.quads, "data.quads"):
        for _, entry in read_pairs(path, ("image_0", "image_1")):
            # A name may be the key itself (lists) or a file name with the key in it (tars): one is
            # linked with the other in each reading by itself.
            names = (entry["image_0"], entry["image_1"])
            for pair in zip(*((name, *all_keys_of(name)) for name in names), strict=True):
                one, other = sorted(map(root, pair))
                first[other] = one
    return {key: root(key) for key in first}
