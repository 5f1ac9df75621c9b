"""Files of RefCOCO+ as ALBEF lays them out: lists of texts, and beside them, for tests, detections
(MAttNet's dets.json) and the data of REFER (refs(unc).p, instances.json).
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from nas_jax.data.records import Box
from nas_jax.data.regions import as_box
from nas_jax.data.scene_tasks import Named
from nas_jax.storage import reading
from nas_jax.storage.paths import join
from nas_jax.tasks.records import Entry, is_text, read_list
from nas_jax.utils.errors import DataError

DETECTIONS, REFS, INSTANCES = "dets.json", "refs(unc).p", "instances.json"


def read_texts(path: str) -> list[Entry]:
    """Pictures with referring expressions, to train on. Raises DataError."""
    return [
        Entry(f"{number}", (one["image"],), one["text"], None)
        for number, one in enumerate(_listed(path))
    ]


def read_named(path: str) -> list[Entry]:
    """The same with boxes (`Named`), to test on.

    Raises DataError: a file beside it is missing or of another form, or lacks a referent or picture
    of the list.
    """
    folder, listed = os.path.dirname(path), _listed(path)
    detections = _json(folder, DETECTIONS)
    refs = {ref["ref_id"]: ref for ref in _refs(folder)}
    instances = _json(folder, INSTANCES)
    try:
        sizes = {one["id"]: (one["width"], one["height"]) for one in instances["images"]}
        boxes = {one["id"]: one["bbox"] for one in instances["annotations"]}
    except (KeyError, TypeError) as error:
        got = f"{join(folder, INSTANCES)}: {error!r}"
        raise DataError(got, "images and annotations, as in COCO", "use REFER's file") from error
    entries = []
    for number, one in enumerate(listed):
        try:
            ref = refs[one["ref_id"]]
            found = detections[str(ref["image_id"])]
            proposals = tuple(as_box(box[:4]) for box in found)
            box, size = as_box(boxes[ref["ann_id"]]), sizes[ref["image_id"]]
        except KeyError as error:
            got = f"{path}, entry {number}: {error} is not in {REFS}, {INSTANCES} or {DETECTIONS}"
            raise DataError(got, "files of one data set", "use those of RefCOCO+ (unc)") from error
        except (ValueError, TypeError) as error:
            got = f"{path}, entry {number}: {error} in {INSTANCES} or {DETECTIONS}"
            raise DataError(got, "boxes of four numbers, in pixels", "mend that box") from error
        gold = Named(box, proposals, size, ref.get("split", ""))
        entries.append(Entry(f"{one['ref_id']}#{number}", (one["image"],), one["text"], gold))
    return entries


def _listed(path: str) -> list[dict[str, Any]]:
    fields = {
        "image": (is_text, "a path"),
        "text": (is_text, "a referring expression"),
        "ref_id": (lambda one: type(one) is int, "the number of a referent in REFER's data"),
    }
    return read_list(path, fields)


def _bytes(folder: str, name: str) -> bytes:
    path = join(folder, name)
    try:
        return reading.read_bytes(path)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}",
            f"{DETECTIONS}, {REFS} and {INSTANCES} beside the list of a test",
            "put the detections of MAttNet and the files of REFER's refcoco+ there",
        ) from error


def _json(folder: str, name: str) -> Mapping[str, Any]:
    content = _bytes(folder, name)
    try:
        found = json.loads(content)
    except ValueError as error:
        path = join(folder, name)
        raise DataError(f"{path}: {error}", "a json file", "copy it again") from error
    if not isinstance(found, dict):
        got = f"{join(folder, name)} with a {type(found).__name__}"
        raise DataError(got, "an object by name", "use the file of that name for RefCOCO+")
    return found


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _refs(folder: str) -> Sequence[Mapping[str, Any]]:
    path = join(folder, REFS)
    try:
        refs = _PlainUnpickler(io.BytesIO(_bytes(folder, REFS)), encoding="latin1").load()
        if all({"ref_id", "image_id", "ann_id"} <= ref.keys() for ref in refs):
            return refs
        problem = "an entry without ref_id, image_id or ann_id"
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it likes
        problem = str(error) or type(error).__name__
    expected = "REFER's pickled list of plain referents"
    raise DataError(f"{path}: {problem}", expected, "copy it again from REFER's data")


def iou(one: Box, other: Box) -> float:
    """Intersection over union as REFER computes it, with pixels counted at both ends."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right = min(one[0] + one[2] - 1, other[0] + other[2] - 1)
    bottom = min(one[1] + one[3] - 1, other[1] + other[3] - 1)
    inside = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0
    return inside / (one[2] * one[3] + other[2] * other[3] - inside)
