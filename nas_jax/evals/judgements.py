"""Other judgements of which captions and pictures of COCO's test set belong together.

In COCO a caption is right for the one picture that it was written for, though it is true of others
too. These files, as the package eccv_caption has them, name them:

| name | files | what it is |
|---|---|---|
| eccv | eccv_image_to_caption.json, eccv_caption_to_image.json | ECCV Caption (Chun et al. 2022) |
| cxc | cxc_image_to_caption.json, cxc_caption_to_image.json | CxC (Parekh et al. 2021) |

{id of a picture: [ids of its right captions]} and {id of a caption: [ids of its right pictures]},
with COCO's ids. What is no key is no query. The candidates are all pictures, and of each the first
five captions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas_jax.evals.benchmarks.reading import read_json
from nas_jax.evals.metrics import DIRECTIONS
from nas_jax.evals.retrieval_lists import Item
from nas_jax.utils.errors import DataError

_LOG = logging.getLogger(__name__)
ABOUT = {"eccv": "ECCV Caption (Chun et al. 2022)", "cxc": "CxC (Parekh et al. 2021)"}
ENDS = dict(zip(DIRECTIONS, ("image_to_caption", "caption_to_image"), strict=True))
# queries of the published files: pictures, captions
QUERIES = {"eccv": (1261, 1332), "cxc": (5000, 24972)}


@dataclass(frozen=True)
class Answers:
    """The judged queries of one direction."""

    queries_Q: np.ndarray  # their columns
    right: list[np.ndarray]  # columns of the right candidates of each
    r_Q: np.ndarray  # number of right answers of each, also of those that are no candidates


@dataclass(frozen=True)
class Judgement:
    """What is right of a retrieval set, by the files of one name.

    Columns are numbers of the pictures of the set, and of their captions one after the other.
    """

    name: str
    answers: Mapping[str, Answers]  # one of DIRECTIONS -> answers

    def right(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Right texts of the images that are queries, right images of the texts that are."""
        first, second = (self.answers[direction].right for direction in DIRECTIONS)
        return first, second

    def rule(self) -> str:
        """What a protocol says."""
        images, texts = (len(self.answers[direction].queries_Q) for direction in DIRECTIONS)
        return (
            f"{ABOUT[self.name]}: {images} pictures and {texts} captions are queries; candidates "
            "are all pictures and the first five captions of each"
        )


def files_of(folder: Path) -> dict[str, dict[str, Path]]:
    """Name -> direction -> file, of the judgements in a folder.

    Raises DataError where one of two is missing.
    """
    out = {}
    for name in ABOUT:
        paths = {way: folder / f"{name}_{end}.json" for way, end in ENDS.items()}
        missing = [path for path in paths.values() if not path.is_file()]
        if len(missing) == 1:
            got, expected = f"no {missing[0].name} in {folder}", "it beside the other direction"
            raise DataError(got, expected, "copy both from eccv_caption's folder data")
        if not missing:
            out[name] = paths
    return out


def read_judgements(
    files: Mapping[str, Mapping[str, Path]], items: Sequence[Item], list_path: Path, first: int
) -> tuple[Judgement, ...]:
    """The judgements of a set.

    Args:
      files: of `files_of`.
      items: the pictures of the set.
      list_path: where they are from.
      first: so many captions of each picture are candidates.

    Raises:
      DataError: a list without COCO's ids, files of another form, or of other pictures.
    """
    if not files:
        return ()
    without = next((item.image for item in items if not item.has_ids()), None)
    if without is not None:
        name = next(iter(next(iter(files.values())).values())).name
        raise DataError(
            f"{list_path}: {without} has no ids of COCO, which {name} beside it names",
            "Karpathy's dataset_coco.json, with cocoid and sentid",
            "put dataset_coco.json beside it, or take the judgements (eccv_*, cxc_*) away",
        )
    texts = (one for item in items for one in item.text_ids[:first])
    columns = (
        {one.image_id: column for column, one in enumerate(items) if one.image_id is not None},
        {one: column for column, one in enumerate(texts)},
    )
    return tuple(_read(name, paths, columns) for name, paths in files.items())


def _read(
    name: str, paths: Mapping[str, Path], columns: tuple[Mapping[int, int], Mapping[int, int]]
) -> Judgement:
    found = Judgement(
        name,
        {
            DIRECTIONS[0]: _answers(paths[DIRECTIONS[0]], *columns),
            DIRECTIONS[1]: _answers(paths[DIRECTIONS[1]], *columns[::-1]),
        },
    )
    counts = tuple(len(found.answers[direction].queries_Q) for direction in DIRECTIONS)
    if counts != QUERIES[name]:
        _LOG.warning(
            "%s: the published files judge %d pictures and %d captions, of this list %d and %d. "
            "Its numbers are not comparable with published ones.",
            *(ABOUT[name], *QUERIES[name], *counts),
        )
    return found


def _answers(path: Path, queries: Mapping[int, int], candidates: Mapping[int, int]) -> Answers:
    """queries, candidates: id -> column."""
    columns, right, counts = [], [], []
    for query, answers in sorted(_judged(path).items(), key=lambda one: queries.get(one[0], -1)):
        known = sorted(candidates[one] for one in answers if one in candidates)
        if query in queries and known:
            columns.append(queries[query])
            right.append(np.array(known))
            counts.append(len(answers))
    if not columns:
        remedy = "check that list and judgements are both of COCO's test set"
        raise DataError(f"{path} judges nothing of the list", "ids that the list has", remedy)
    return Answers(np.array(columns), right, np.array(counts))


def _judged(path: Path) -> dict[int, set[int]]:
    content = read_json(path, dict)
    try:
        return {int(query): {int(one) for one in found} for query, found in content.items()}
    except (TypeError, ValueError) as error:
        expected = "{id: [ids]}, numbers of COCO"
        raise DataError(f"{path}: {error}", expected, "copy it again") from error
