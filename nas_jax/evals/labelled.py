"""Pictures with a class: from a folder, a list, TFDS, or drawn.

A folder has one folder of pictures a class, or `labels.jsonl` with lines {image, label}; and
optionally `classes.txt`, one name a line, which fixes the classes and their order. The name of a
folder or label is that of the class, with blanks for underscores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nas_jax.data.pair_lines import read_lines
from nas_jax.data.scene_captions import Noun, Statement
from nas_jax.data.scene_pictures import render
from nas_jax.data.scene_tasks import scene_rng
from nas_jax.data.scenes import choose, draw_scene
from nas_jax.data.sources import Report
from nas_jax.data.tfds_labels import TfdsLabels
from nas_jax.data.worlds import World
from nas_jax.evals.benchmarks.pictures import SUFFIXES, Files, Pictures
from nas_jax.evals.benchmarks.reading import each, text
from nas_jax.utils.errors import DataError

TFDS = "tfds:"


@dataclass(frozen=True)
class Labelled:
    """Pictures with a class each."""

    pairs: tuple[tuple[str, str], ...]  # (name of the picture, class)
    names: tuple[str, ...]  # the classes, in their order
    files: Pictures
    report: Report = field(default_factory=Report)  # lines that could not be used


def read_labelled(source: str) -> Labelled:
    """Pictures of a folder, or of `tfds:NAME[:SPLIT]`.

    Raises DataError: no pictures, a label that is not in classes.txt, fewer than two classes.
    """
    if source.startswith(TFDS):
        found = TfdsLabels(source)
        labels, names = map(_named, found.labels), tuple(map(_named, found.names))
        pairs = tuple((str(position), label) for position, label in enumerate(labels))
        return Labelled(pairs, _enough(names, source), found)
    folder, report = Path(source), Report()
    listed = (folder / "labels.jsonl").is_file()
    given = _from_lines(folder, report) if listed else _from_folders(folder)
    return Labelled(tuple(given), _class_names(folder, given), Files(folder), report)


def _from_lines(folder: Path, report: Report) -> list[tuple[str, str]]:
    def pair(number: int, entry: Mapping) -> tuple[str, str]:
        return text(entry, "image"), _named(text(entry, "label"))

    found = each(read_lines(folder / "labels.jsonl"), pair, report)
    if not found:
        got = f"no line of {folder / 'labels.jsonl'} can be used: {report.line() or 'it is empty'}"
        raise DataError(got, "{image, label} in each, both text", "mend the lines")
    return found


def _from_folders(folder: Path) -> list[tuple[str, str]]:
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}", "one with a folder of pictures a class", "check the path"
        )
    found = [
        (f"{within.name}/{path.name}", _named(within.name))
        for within in sorted(folder.iterdir())
        if within.is_dir()
        for path in sorted(within.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise DataError(
            f"no pictures in folders of {folder}",
            "a folder a class, or labels.jsonl",
            "check the path",
        )
    return found


def _named(label: str) -> str:
    return " ".join(label.replace("_", " ").split())


def _class_names(folder: Path, pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    path, labels = folder / "classes.txt", sorted({label for _, label in pairs})
    listed = labels
    if path.is_file():
        listed = [_named(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = tuple(dict.fromkeys(name for name in listed if name))
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise DataError(
            f"label {unknown[0]!r}, which is not in {path}", "a line for each class", "add it"
        )
    return _enough(names, str(folder))


def _enough(names: tuple[str, ...], source: str) -> tuple[str, ...]:
    if len(names) < 2:
        got = f"{len(names)} classes in {source}"
        raise DataError(got, "two or more", "check the folders or labels")
    return names


class DrawnThings:
    """Scenes of three shapes, one of them big, whose name is their class: equally many of each."""

    def __init__(self, world: World, split: str, count: int, seed: int, image_size: int):
        self._world, self._split, self._seed, self._size = world, split, seed, image_size
        names = tuple(Noun(shape, colour, "big").text("") for colour, shape in world.seen)
        pairs = tuple((str(k), names[k % len(names)]) for k in range(count))
        self.labelled = Labelled(pairs, names, self)

    def read(self, name: str) -> np.ndarray:
        """The picture of a number: a function of it, the seed and the split."""
        index = int(name)
        colour, shape = self._world.seen[index % len(self._world.seen)]
        rng = scene_rng("probe", self._split, self._seed, index)
        others = [Noun(*choose(rng, self._world.seen)[::-1], "small") for _ in range(2)]
        statement = Statement((Noun(shape, colour, "big"), *others))
        return render(draw_scene(self._world, statement, rng), self._size)
