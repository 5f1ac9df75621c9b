"""Records of downstream tasks: pictures, a text, and the answer that is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nas_jax.data.records import NegativeCaption, Record
from nas_jax.data.scene_tasks import Draw, Posed, scene_rng
from nas_jax.data.sources import Report, image_id_of
from nas_jax.data.worlds import World
from nas_jax.storage import reading
from nas_jax.storage.paths import is_bucket, join
from nas_jax.utils.errors import DataError

LOOKED_FOR = 20  # pictures of a list, of which one must exist


@dataclass(frozen=True)
class Asked(Record):
    """A record with the answer of its task, and what a task adds."""

    gold: Any = None
    others: tuple[Any, ...] = ()  # further pictures, as `image`


def asked(record: Record) -> Asked:
    """A record as that of a task. Raises DataError where it has no answer."""
    if not isinstance(record, Asked):
        raise DataError(
            f"record {record.key!r} without the answer of a task",
            "a record of the task",
            "train the task on its own files, or on scenes",
        )
    return record


class Entry(NamedTuple):
    """One item of a file."""

    key: str  # unique in the file
    images: tuple[str, ...]  # paths, from data.image_root
    text: str
    gold: Any
    about: Any = None  # what else a test reads: the sentence that several items share


class _Source:
    """What both kinds of sources have of `data.sources.Source`."""

    name_first = False
    files: tuple[str, ...]

    def __init__(self):
        self.report = Report()

    @property
    def origins(self) -> tuple[str, ...]:
        """As `files`."""
        return self.files

    def key(self, index: int) -> str:
        """Of the record."""
        raise NotImplementedError

    def file(self, index: int) -> str:
        """The file of the record."""
        raise NotImplementedError

    def origin(self, index: int) -> str:
        """As `file`."""
        return self.file(index)

    def negatives(self, index: int) -> tuple[tuple[NegativeCaption, ...], int]:
        """Tasks have none."""
        return (), 0

    def group(self, index: int) -> str:
        """Each record is by itself."""
        return self.key(index)

    @staticmethod
    def key_of(name: str) -> str:
        """As it is."""
        return name


class FileSource(_Source):
    """The entries of one file."""

    def __init__(self, path: str, entries: Sequence[Entry], image_root: str):
        """Raises DataError where the file has no entry, or where none of some pictures exists."""
        super().__init__()
        self.files, self.entries, self.image_root = (path,), tuple(entries), image_root
        self.remote = is_bucket(path) or is_bucket(image_root)
        if not self.entries:
            raise DataError(f"{path} without an entry", "one or more", "copy the file again")
        images = [
            self.entries[k].images[0] for k in range(0, len(self), -(-len(self) // LOOKED_FOR))
        ]
        if not any(reading.is_file(join(image_root, image)) for image in images):
            first = join(image_root, images[0])
            raise DataError(
                f"no picture {first!r}, nor any other of {len(images)} in {path}",
                "paths that start from data.image_root",
                f"set data.image_root (now {image_root!r}) to the folder that holds "
                f"{images[0].split('/')[0]!r}",
            )

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        """Of the entry."""
        return self.entries[index].key

    def file(self, index: int) -> str:
        """The one file."""
        return self.files[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """The one text."""
        return (self.entries[index].text,)

    def identity(self) -> str:
        """Of keys and texts in their order."""
        digest = hashlib.blake2b(digest_size=8)
        for entry in self.entries:
            digest.update(json.dumps([entry.key, entry.text]).encode())
        return digest.hexdigest()

    def gold(self, index: int) -> Any:
        """The answer, without the picture."""
        return self.entries[index].gold

    def about(self, index: int) -> Any:
        """What else a test reads of the item."""
        return self.entries[index].about

    def __getitem__(self, index: int) -> Asked:
        entry = self.entries[index]
        first, *others = (reading.read_bytes(join(self.image_root, one)) for one in entry.images)
        image_id = image_id_of(entry.images[0])
        texts = self.captions(index)
        return Asked(entry.key, first, texts, image_id, gold=entry.gold, others=tuple(others))


class SceneItems(_Source):
    """Drawn scenes with a question."""

    files, remote = ("scenes",), False

    def __init__(
        self,
        task: str,
        draw: Draw,
        split: str,
        size: tuple[int, int],
        seed: int,
        world: World,
        sharing: int = 1,
    ):
        """split: train, val or heldout; size: items, and pixels a side; sharing: neighbouring items
        with one text.
        """
        super().__init__()
        self.task, self.draw, self.split, self.seed, self.world = task, draw, split, seed, world
        self.count, self.image_size, self.sharing = *size, sharing

    def __len__(self) -> int:
        return self.count

    def posed(self, index: int) -> Posed:
        """The item, before its pictures are drawn."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        number, within = divmod(index, self.sharing)
        rng = scene_rng(self.task, self.split, self.seed, number)
        own = (within,) if self.sharing > 1 else ()
        return self.draw(self.world, rng, self.split == "heldout", *own)

    def about(self, index: int) -> Any:
        """The number of the text."""
        return index // self.sharing

    def key(self, index: int) -> str:
        """Task, split, seed and index."""
        return f"{self.task}-{self.split}-{self.seed}-{index}"

    def file(self, index: int) -> str:
        """Scenes come from no file."""
        return self.files[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """The one text; nothing is drawn."""
        return (self.posed(index).text,)

    def identity(self) -> str:
        """Of what decides the scenes."""
        return f"{self.task}-{self.split}-{self.seed}-{self.count}-{self.world.name}"

    def gold(self, index: int) -> Any:
        """The answer; nothing is drawn."""
        return self.posed(index).gold

    def __getitem__(self, index: int) -> Asked:
        posed = self.posed(index)
        first, *others = (shown.picture(self.image_size) for shown in posed.shown)
        key, texts = self.key(index), (posed.text,)
        return Asked(key, first, texts, index, gold=posed.gold, others=tuple(others))


# ------------------------------------------------------------------------------------------- files

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """A text that is not empty."""
    return isinstance(value, str) and bool(value)


def read_list(path: str, fields: Mapping[str, tuple[Check, str]]) -> list[dict[str, Any]]:
    """The objects of a json list, or of a file with an object a line.

    fields: name -> what its value must pass, and that in words.

    Raises DataError, with the place, on a file that is missing or no such list, and on an entry
    without a field.
    """
    try:
        text = reading.read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "a readable file", "check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}", "UTF-8", "save it as UTF-8") from error
    entries = _whole(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    wanted = ", ".join(f"{name} ({words})" for name, (_, words) in fields.items())
    for place, entry in entries:
        if not isinstance(entry, dict):
            raise DataError(
                f"{path}, {place}: {entry!r:.60}", f"an object with {wanted}", "mend it"
            )
        for name, (passes, words) in fields.items():
            if name not in entry:
                has = ", ".join(entry) or "no field"
                got = f"{path}, {place}, without {name!r} (it has {has})"
                raise DataError(got, wanted, "use the file of this task, or mend that entry")
            if not passes(entry[name]):
                got = f"{path}, {place}: {name}={entry[name]!r:.60}"
                raise DataError(got, words, "mend that entry")
    return [entry for _, entry in entries]


def _whole(path: str, text: str) -> list[tuple[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        remedy = "copy it again; it may be cut short"
        raise DataError(f"{path}: {error}", "a json list", remedy) from error
    return [(f"entry {number}", entry) for number, entry in enumerate(found)]


def _lines(path: str, text: str) -> list[tuple[str, Any]]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((f"line {number}", json.loads(line)))
        except ValueError as error:
            expected = "a json list, or one json object a line"
            raise DataError(
                f"{path}, line {number}: {error}", expected, "mend that line"
            ) from error
    return found
