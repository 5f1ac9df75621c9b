"""What all sources of pictures with captions have in common: the protocol, what opening one drops,
which keys a split keeps, and how entries of a config become paths.

`albef_source`, `tar_source`, `prepared`, `tfds_source` and `scenes` are the sources.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nas_jax.data.patterns import expand_braces
from nas_jax.data.records import NegativeCaption, Record
from nas_jax.data.text_ops import clean_words
from nas_jax.storage import reading
from nas_jax.utils.errors import DataError


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

    def __init__(self) -> None:
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


class Source(Protocol):
    """Pictures with captions by index, from 0 to len - 1.

    Picklable, and cheap to open in a worker.
    """

    report: Report  # what opening dropped
    files: tuple[str, ...]  # what is read
    origins: tuple[str, ...]  # what the pictures came in first; the same but for prepared folders

    @property
    def name_first(self) -> bool:
        """The first caption names the picture, the others may fit other pictures too."""

    @property
    def remote(self) -> bool:
        """Pictures come from a bucket, so that reading one is mostly waiting."""

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
