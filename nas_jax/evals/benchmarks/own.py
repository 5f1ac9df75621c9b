"""Anyone's own questions, without code: jsonl, csv or json files with the pictures beside them.

Each file is a benchmark of its own, "own:NAME". Its lines are of one form:

| form | fields |
|---|---|
| pair | image, caption, foil; or foils, a list, all of which the caption has to beat |
| pair with kinds | image, caption, foils: {kind: foil or list} or [{foil, kind}]; or kinds: [...] |
| quad | image_0, image_1, caption_0, caption_1 |
| picture | caption, image, foil_images: [...]; or images: [right, wrong, ...] |
| yes or no | image, caption, label: true or false |

All may have id, category, and a box [left, top, width, height] of each picture, in pixels: box,
box_0 and box_1, foil_boxes, boxes. Foils with kinds are a question each, with the kind as category;
the quantity "caption" says how many captions beat all their foils. Pictures lie anywhere below the
folder, or in .tar or .zip files in it: "noto-foils.jsonl" looks in the tars whose names begin with
the same word ("noto.tar"), and in all where there are none. A list of pictures with captions alone
is for the benchmark "retrieval".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_jax.data.pair_lines import FOIL_FIELDS, first_word
from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.own_files import entries_of
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, category_of, each, foils_of, name_of, text
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

PICTURE_FIELDS = ("foil_image", "foil_images", "negative_image", "negative_images")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KINDS_OF_FILES = (("*.jsonl", "*.jsonl.gz", "*.ndjson"), ("*.csv",), ("*.json", "*.json.gz"))
EXPECTED = (
    "lines {image, caption, foil}, {image_0, image_1, caption_0, caption_1}, {caption, image, "
    "foil_images} or {image, caption, label}"
)


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """One benchmark for each jsonl file; where there is none, for each csv; where there is none
    either, for each json. `data_dir` may also be one such file.
    """
    paths = [data_dir] if data_dir.is_file() else []
    for patterns in KINDS_OF_FILES:
        paths = paths or sorted(path for one in patterns for path in data_dir.glob(one))
    if not paths:
        remedy = "write your questions into one"
        raise DataError(
            f"no *.jsonl, *.csv or *.json in {data_dir}", f"files with {EXPECTED}", remedy
        )
    return tuple(_load(path, options) for path in paths)


def form_of(entry: Any) -> str:
    """The form of a line: pair, kinds, quad, picture, yes_no or retrieval.

    Raises Unusable where it has the fields of none.
    """
    if not isinstance(entry, Mapping):
        raise Unusable("no object")
    if "image_0" in entry:
        return "quad"
    if "images" in entry or any(field in entry for field in PICTURE_FIELDS):
        return "picture"
    if "label" in entry:
        return "yes_no"
    foils = next((entry[field] for field in FOIL_FIELDS if field in entry), None)
    if isinstance(foils, Mapping) or "kinds" in entry:
        return "kinds"
    if isinstance(foils, list) and foils and isinstance(foils[0], Mapping):
        return "kinds"
    if not any(field in entry for field in FOIL_FIELDS):
        return "retrieval"
    return "pair"


def _load(path: Path, options: LoadOptions) -> Benchmark:
    lines = entries_of(path)
    form = next((form_of(entry) for _, entry in lines if isinstance(entry, Mapping)), "pair")
    items = Items()
    if form == "retrieval":
        # a line of another form shows that a foil was forgotten here
        others = (entry for _, entry in lines if isinstance(entry, Mapping))
        form = next((one for one in map(form_of, others) if one != "retrieval"), form)
    if form == "retrieval":
        got, remedy = (
            f"{path}: lines without foils",
            f"for retrieval, --benchmark retrieval --data {path}",
        )
        raise DataError(got, EXPECTED, remedy)

    def drafts(number: int, entry: Any) -> list[Draft]:
        found = form_of(entry)
        if found != form:
            raise Unusable(
                "no foil" if found == "retrieval" else f"a line of form {found}", str(number)
            )
        key = name_of(entry, "id") if "id" in entry else str(number)
        return _DRAFTS[form](key, entry)

    made = each(lines, drafts, items.report)
    items.drafts = [draft for one in made for draft in one]
    fields: dict[str, Any] = {"headline": "all/group" if form == "quad" else "all/accuracy"}
    if form == "kinds":
        fields["together"] = {"caption": tuple(tuple(one.key for one in of) for of in made)}
    tars = sorted(path.parent.glob("*.tar"))
    of_word = [tar for tar in tars if first_word(tar) == first_word(path)]
    files = Files(path.parent, of_word or tars)
    name = f"own:{path.name.removesuffix('.gz').rpartition('.')[0]}"
    kind = "choice" if form in ("pair", "kinds") else form
    return assemble(name, kind, items, files, options, **fields)


def _picture(entry: Mapping[str, Any], field: str, box_field: str = "box") -> PictureRef:
    return PictureRef(name_of(entry, field), _box(entry.get(box_field)))


def _box(value: Any) -> tuple[int, int, int, int] | None:
    """Left, top, width, height. Raises Unusable on anything else."""
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 4
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        raise Unusable("no box of four numbers")
    left, top, width, height = (round(one) for one in value)
    if width < 1 or height < 1:
        raise Unusable("empty box")
    return left, top, width, height


def _quad(key: str, entry: Mapping[str, Any]) -> list[Draft]:
    pictures = tuple(_picture(entry, f"image_{k}", f"box_{k}") for k in range(2))
    texts = tuple(text(entry, f"caption_{k}") for k in range(2))
    return [Draft(key, category_of(entry), pictures, texts)]


def _pair(key: str, entry: Mapping[str, Any]) -> list[Draft]:
    texts = (text(entry, "caption"), *foils_of(entry))
    return [Draft(key, category_of(entry), (_picture(entry, "image"),), texts)]


def _kinds(key: str, entry: Mapping[str, Any]) -> list[Draft]:
    """A question a foil."""
    caption, picture = text(entry, "caption"), _picture(entry, "image")
    found: list[Draft] = []
    for foil, kind in _foils_with_kinds(entry):
        texts = caption, text({"foil": foil}, "foil")
        kind = category_of({"category": kind})
        found.append(Draft(f"{key}#{len(found)}-{kind}", kind, (picture,), texts))
    if not found:
        raise Unusable("no foil", key)
    return found


def _foils_with_kinds(entry: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    field = next((name for name in FOIL_FIELDS if name in entry), "foil")
    given = entry.get(field)
    if isinstance(given, Mapping):
        lists = {kind: foil if isinstance(foil, list) else [foil] for kind, foil in given.items()}
        return [(foil, kind) for kind, foils in lists.items() for foil in foils]
    foils = _given(entry, FOIL_FIELDS)
    if all(isinstance(foil, Mapping) for foil in foils):
        return [(foil.get("foil"), foil.get("kind", foil.get("category"))) for foil in foils]
    kinds = entry.get("kinds")
    if not isinstance(kinds, list) or len(kinds) != len(foils):
        raise Unusable("no kind of each foil")
    return list(zip(foils, kinds, strict=True))


def _pictures(key: str, entry: Mapping[str, Any]) -> list[Draft]:
    """The right picture among others."""
    if "images" in entry:
        names, boxes = entry["images"], entry.get("boxes")
    else:
        wrong = _given(entry, PICTURE_FIELDS)
        names = [entry.get("image"), *wrong]
        others = entry.get("foil_boxes")
        boxes = [entry.get("box"), *(others if isinstance(others, list) else [None] * len(wrong))]
    if not isinstance(names, list) or len(names) < 2:
        raise Unusable("no foil image")
    boxes = [None] * len(names) if boxes is None else boxes
    if not isinstance(boxes, list) or len(boxes) != len(names):
        raise Unusable("no box of each picture")
    pictures = tuple(
        PictureRef(name_of({"image": name}, "image"), _box(box))
        for name, box in zip(names, boxes, strict=True)
    )
    return [Draft(key, category_of(entry), pictures, (text(entry, "caption"),))]


def _yes_no(key: str, entry: Mapping[str, Any]) -> list[Draft]:
    true = TRUTH.get(str(entry["label"]).strip().lower())
    if true is None:
        raise Unusable("no label of true or false")
    fields = (_picture(entry, "image"),), (text(entry, "caption"),), true
    return [Draft(key, category_of(entry), *fields)]


_DRAFTS = {"pair": _pair, "kinds": _kinds, "quad": _quad, "picture": _pictures, "yes_no": _yes_no}


def _given(entry: Mapping[str, Any], fields: Sequence[str]) -> list[Any]:
    """The value of the first field that is there, as a list."""
    value = entry.get(next((name for name in fields if name in entry), fields[0]))
    return value if isinstance(value, list) else [value]
