"""Boxes and phrases: the forms that data sets have, what prepare keeps, and what it leaves out."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest
from data import hostile

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import open_corpus
from nas_jax.data.prepare.__main__ import main as prepare
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.prepared_files import iter_records, read_manifest
from nas_jax.data.records import Region
from nas_jax.data.regions import placed, regions_of

ONE, TWO = [1, 2, 3, 4], [5, 6, 7, 8]
BOX_1, BOX_2 = (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)
NEAR = {
    "boxes with phrases": {"boxes": [ONE, TWO], "phrases": ["a dog", "a cat"]},
    "in a table": {"bboxes": "[[1, 2, 3, 4], [5, 6, 7, 8]]", "phrases": "['a dog', \"a cat\"]"},
    "objects": {"regions": [{"bbox": ONE, "phrase": "a dog"}, {"box": TWO, "caption": " a cat"}]},
    "Visual Genome": {"regions": [
        {"x": 1, "y": 2, "width": 3, "height": 4, "phrase": "a dog", "region_id": 7},
        {"x": 5, "y": 6, "width": 7, "height": 8, "phrase": "a cat"}]},
    "X-VLM": {"elems": [{"bb": ONE, "caption": "a dog"}, {"bb": TWO, "caption": "a cat"}]},
    "imagefolder": {"objects": {"bbox": [ONE, TWO], "category": ["a dog", "a cat"]}},
    "corners in shares": {"bbox_info": [
        {"bbox": [0.05, 0.1, 0.2, 0.3, 0.9], "short_expr": "a dog"},
        {"bbox": [0.25, 0.3, 0.6, 0.7], "short_expr": "a cat"}]},
}  # fmt: skip
FAR = {
    "the caption of one box": ({"bbox": ONE}, ["a dog"], [(BOX_1, "a dog")]),
    "one of several captions": ({"bbox": ONE}, ["a dog", "a cat"], [(BOX_1, "")]),
    "two boxes of a phrase": ({"boxes": [ONE, TWO], "phrase": "dogs"}, None,
                              [(BOX_1, "dogs"), (BOX_2, "dogs")]),
    "phrases alone": ({"phrases": ["a dog", "a cat", 3, ""]}, ["x"],
                      [(None, "a dog"), (None, "a cat")]),
    "numbers of categories": ({"objects": {"bbox": [ONE], "category": [3]}}, ["x"], [(BOX_1, "")]),
    "other things of these names": ({"objects": ["dog"], "regions": "north", "elems": None,
                                     "bbox_info": [{"short_expr": "a hat"}]}, ["x"], []),
}  # fmt: skip


@pytest.mark.parametrize("form", NEAR)
def test_boxes_with_phrases_in_the_forms_that_data_sets_have(form):
    regions, wrong = placed(regions_of(NEAR[form]), (20, 20))
    assert wrong == [] and [one.phrase for one in regions] == ["a dog", "a cat"]
    assert [one.box for one in regions] == [pytest.approx(BOX_1), pytest.approx(BOX_2)]


@pytest.mark.parametrize("form", FAR)
def test_one_box_phrases_alone_and_other_fields(form):
    entry, captions, expected = FAR[form]
    assert placed(regions_of(entry, captions), (20, 20)) == ([Region(*one) for one in expected], [])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbox": [1, 2, 3]}, "no box [x, y, width, height]: [1, 2, 3]"),
        ({"bbox": "a dog"}, "no box [x, y, width, height]: 'a dog'"),
        ({"boxes": [[1, 2, 3, float("nan")]]}, "no box [x, y, width, height]: [1, 2, 3, nan]"),
        ({"boxes": [[1, 2, 3, True]]}, "no box [x, y, width, height]: [1, 2, 3, True]"),
        ({"box": [1, 2, 0, 3]}, "a box without area: [1, 2, 0, 3]"),
        ({"box": [10, 2, 12, 3]}, "a box outside the picture of 20x10: [10, 2, 12, 3]"),
        ({"box": [-5, 2, 7, 3]}, "a box outside the picture of 20x10: [-5, 2, 7, 3]"),
        ({"boxes": [ONE, ONE], "phrases": ["a", "b", "c"]}, "2 boxes for 3 phrases"),
        ({"bbox_info": [{"bbox": [4, 4, 90, 90]}]}, "no shares of a picture [left, top, right, "
         "bottom]: [4, 4, 90, 90]"),
    ],
)  # fmt: skip
def test_what_is_no_box_is_named(entry, message):
    assert placed(regions_of(entry), (20, 10)) == ([], [message])


def test_a_box_that_sticks_out_by_a_rounded_pixel_is_cut():
    regions, wrong = placed(
        regions_of({"boxes": [[-0.5, 0, 20.9, 10], [0, 0, 20, 11.1]]}), (20, 10)
    )
    assert [one.box for one in regions] == [(0, 0, 20, 10)] and len(wrong) == 1


# -------------------------------------------------------------------------------------- from files

ENTRIES = [
    {"image": "0.jpg", "caption": "a cat", "boxes": [[0, 0, 32, 24], [8, 8, 90, 90]],
     "phrases": ["a cat's head", "a\u0007 tail"]},
    {"image": "0.jpg", "caption": "a dog", "boxes": [[4, 4, 8, 8]], "phrases": ["a dog"]},
    {"image": "1.jpg", "caption": "a pig"},
]  # fmt: skip
KEPT = (Region((0.0, 0.0, 32.0, 24.0), "a cat's head"), Region((4.0, 4.0, 8.0, 8.0), "a dog"))


def coco(entries: list[dict]) -> dict:
    """The same as COCO has it, a box for each caption."""
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(2)]
    rows = [(0, "a cat's head", [0, 0, 32, 24]), (0, "bad", [8, 8, 90, 90]),
            (0, "a dog", [4, 4, 8, 8]), (1, "a pig", None)]  # fmt: skip
    names = ("image_id", "caption", "bbox")
    return {"images": images, "annotations": [dict(zip(names, row, strict=True)) for row in rows]}


def table(entries: list[dict]) -> str:
    names = ("image", "caption", "boxes", "phrases")
    text = io.StringIO()
    writer = csv.DictWriter(text, names, delimiter="\t")
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue()


FORMS = {
    "a.json": json.dumps,
    "a.jsonl": lambda entries: "\n".join(map(json.dumps, entries)),
    "a.tsv": table,
    "coco.json": lambda entries: json.dumps(coco(entries)),
    "named.json": lambda entries: json.dumps({"a": entries[0], "b": entries[1], "c": entries[2]}),
}


def pictures(folder: Path) -> None:
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(hostile.jpeg(number, width=64, height=48))


def made(folder: Path, path: Path, *flags: str) -> PreparedSource:
    assert prepare([str(path), "--out", str(folder), "--workers", "0", *flags]) == 0
    return PreparedSource(folder)


def all_regions(source) -> dict[str, tuple[Region, ...]]:
    found: dict[str, tuple[Region, ...]] = {}
    for k in range(len(source)):
        found[source.key(k)] = found.get(source.key(k), ()) + source[k].regions
    return found


@pytest.mark.parametrize("form", FORMS)
def test_lists_keep_their_regions_through_prepare(tmp_path, capsys, form):
    pictures(tmp_path)
    (tmp_path / form).write_text(FORMS[form](ENTRIES))
    source = made(tmp_path / "out", tmp_path / form)
    assert all_regions(source) == {"0.jpg": KEPT, "1.jpg": ()}
    said = capsys.readouterr().out
    assert "2 boxes and 2 phrases of " in said and "1 left out (like 0.jpg: a box outside" in said
    assert read_manifest(tmp_path / "out")["regions"]["lost"] == 1
    # a record without has the fields of older folders
    assert set(list(iter_records(source.files[0]))[-1]) == {"key", "id", "captions", "image"}


def test_parquet_keeps_its_regions(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "jpg": [hostile.jpeg(k, width=64, height=48) for k in range(2)],
        "caption": ["a cat", "a pig"],
        "Objects": [{"bbox": [list(one.box) for one in KEPT], "name": [r.phrase for r in KEPT]},
                    None],
    }  # fmt: skip
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    source = made(tmp_path / "out", tmp_path / "a.parquet")
    assert [source[k].regions for k in range(2)] == [KEPT, ()]


def test_tars_and_lists_have_them_without_preparing(tmp_path):
    pictures(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps([*ENTRIES, {
        "image": "1.jpg", "caption": "a hen", "bbox": [1, 2]}]))  # fmt: skip
    (tmp_path / "0.json").write_text(json.dumps(ENTRIES[0]))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.jpg", "0.json"):
            tar.add(tmp_path / name, name)
    config = DataConfig(train=(str(tmp_path / "a.json"),), image_root=str(tmp_path))
    listed = open_corpus(config, "train", 0)
    # the size of the picture is not known: a box is not compared with it
    assert listed[0].regions == (KEPT[0], Region((8.0, 8.0, 90.0, 90.0), "a\u0007 tail"))
    assert listed[1].regions == KEPT[1:] and listed[3].regions == ()
    tarred = open_corpus(DataConfig(train=(str(tmp_path / "a.tar"),)), "train", 0)
    assert tarred[0].regions == listed[0].regions
    assert made(tmp_path / "out", tmp_path / "a.tar")[0].regions == KEPT[:1]


def test_boxes_shrink_with_the_picture_and_outlast_leaving_others_out(tmp_path):
    pictures(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(ENTRIES))
    out = tmp_path / "out"
    source = made(out, tmp_path / "a.json", "--short-side", "24")
    assert source.about(0).width == 32
    assert source[0].regions == (
        Region((0.0, 0.0, 16.0, 12.0), "a cat's head"), Region((2.0, 2.0, 4.0, 4.0), "a dog"),
    )  # fmt: skip
    record = source[0]
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/0.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    (tmp_path / "eval/0.txt").write_text("a pig")
    evals = made(tmp_path / "evals", tmp_path / "eval")
    leave = ["--against", evals.folder, "--leave-out", "--max-distance", "-1", "--workers", "0"]
    assert prepare(["--out", str(out), *leave]) == 0
    left = PreparedSource(out)
    assert len(left) == 1 and left[0] == record
    assert read_manifest(out)["regions"]["lost"] == 1
