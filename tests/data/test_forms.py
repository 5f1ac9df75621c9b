"""prepare: every form gives the same records in units of any size, and odd files are refused."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data import hostile

from nas_jax.data.image_ops import decode
from nas_jax.data.prepare import Options, prepare
from nas_jax.data.prepare.__main__ import main
from nas_jax.data.prepare.inputs import list_inputs, plan, read_unit
from nas_jax.data.prepare.items import InputPair
from nas_jax.data.prepared import PreparedSource
from nas_jax.utils.errors import DataError, UserError
from nas_jax.utils.logging import Console

QUIET = Console(enabled=False)
COUNT = 7
CAPTIONS = tuple(
    f"é{i}, a\t“dog”\nof two lines 😀" if i % 2 else f"a cat {i}" for i in range(COUNT)
)
PLAIN = tuple(f"a cat, number {i} 😀" for i in range(COUNT))  # for forms without quotes


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(COUNT):
        (folder / f"{i}.jpg").write_bytes(hostile.jpeg(i))
    return folder


def entries(texts=CAPTIONS, image="p/{}.jpg", names=("image", "caption")) -> list[dict]:
    return [dict(zip(names, (image.format(i), text), strict=True)) for i, text in enumerate(texts)]


def table(rows: list[dict], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def text_form(name, make, encoding="utf-8", pack=bytes):
    def write(folder: Path) -> Path:
        pictures(folder / "p")
        (folder / name).write_bytes(pack(make().encode(encoding)))
        return folder / name

    return write


def pair_folders(folder: Path) -> Path:
    for i in range(COUNT):
        shard = folder / "files" / f"{i // 4:05d}"
        shard.mkdir(parents=True, exist_ok=True)
        (shard / f"{i}.jpg").write_bytes(hostile.jpeg(i))
        (shard / f"{i}.txt").write_text(CAPTIONS[i])
        (shard / f"{i}.json").write_text(json.dumps({"caption": CAPTIONS[i], "sha256": "x"}))
    for number in range(2):  # what img2dataset leaves beside its shards
        (folder / "files" / f"{number:05d}_stats.json").write_text("{}")
        (folder / "files" / f"{number:05d}.parquet").write_bytes(b"PAR1")
    return folder / "files"


def members(some: range) -> list[tuple[str, bytes]]:
    """All pictures first, so that a sample is not in one place."""
    found = [(f"{i}.jpg", hostile.jpeg(i)) for i in some]
    return found + [(f"{i}.txt", CAPTIONS[i].encode()) for i in some]


def tars(folder: Path) -> Path:
    (folder / "tars").mkdir()
    for number, some in enumerate((range(4), range(4, COUNT))):
        hostile.write_tar(folder / "tars" / f"{number:05d}.tar", members(some))
        (folder / "tars" / f"{number:05d}_stats.json").write_text("{}")
    return folder / "tars"


def packed_tar(name: str, mode: str):
    def write(folder: Path) -> Path:
        with tarfile.open(folder / name, mode) as tar:
            for member, data in members(range(COUNT)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return folder / name

    return write


def metadata(folder: Path) -> Path:
    rows = entries(image="{}.jpg", names=("file_name", "text"))
    (pictures(folder / "p") / "metadata.csv").write_text(table(rows, ","))
    (folder / "p" / "words.txt").write_text("of no picture")
    return folder / "p"


def parquet(kind: str, row_group: int = 3, name: str = "train-00000.parquet"):
    def write(folder: Path) -> Path:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        images = {
            "struct": [{"bytes": hostile.jpeg(i), "path": f"{i}.jpg"} for i in range(COUNT)],
            "bytes": [hostile.jpeg(i) for i in range(COUNT)],
            "path": [f"p/{i}.jpg" for i in range(COUNT)],
        }[kind]
        pictures(folder / "p")
        columns = {"Image": images, "id": list(range(COUNT)), "Text": [[text] for text in CAPTIONS]}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_table(arrow.table(columns), folder / name, row_group_size=row_group)
        return folder / name

    return write


def in_data(folder: Path) -> Path:
    return parquet("struct", name="hub/data/train-0.parquet")(folder).parents[1]


FORMS = {
    "csv": text_form("a.csv", lambda: table(entries(), ",")),
    "tsv": text_form("a.tsv", lambda: table(entries(), "\t")),
    "openclip csv": text_form("a.csv", lambda: table(entries(names=("filepath", "title")), ",")),
    "openclip tsv": text_form("b.tsv", lambda: table(entries(names=("filepath", "title")), "\t")),
    "bars": text_form("a.csv", lambda: table(entries(names=("image_name", "comment")), "|")),
    "captions.txt": text_form("captions.txt", lambda: table(entries(), ",")),
    "json lines": text_form("a.json", lambda: lines(entries())),
    "ndjson": text_form("a.ndjson", lambda: lines(entries())),
    "array in jsonl": text_form("a.jsonl", lambda: json.dumps(entries(), indent=1)),
    "captions by picture": text_form(
        "a.json", lambda: json.dumps({e["image"]: [e["caption"]] for e in entries()})
    ),
    "entries by name": text_form("a.json", lambda: json.dumps(dict(enumerate(entries())))),
    "wrapped": text_form("a.json", lambda: json.dumps({"data": entries()})),
    "Windows": text_form("a.json", lambda: json.dumps(entries(image="p\\{}.jpg"))),
    "json.gz": text_form("a.json.gz", lambda: json.dumps(entries()), pack=gzip.compress),
    "json.xz": text_form("a.json.xz", lambda: lines(entries()), pack=lzma.compress),
    "jsonl.gz": text_form("a.jsonl.gz", lambda: lines(entries()), pack=gzip.compress),
    "csv.bz2": text_form("a.csv.bz2", lambda: table(entries(), ","), pack=bz2.compress),
    "utf-16 json": text_form("a.json", lambda: json.dumps(entries(), ensure_ascii=False), "utf-16"),
    "utf-16 jsonl": text_form("a.jsonl", lambda: lines(entries()), "utf-16"),
    "utf-16 tsv.gz": text_form(
        "a.tsv.gz", lambda: table(entries(), "\t"), "utf-16", pack=gzip.compress
    ),
    "mark": text_form("a.csv", lambda: "\ufeff" + table(entries(), ",")),
    "metadata.csv": metadata,
    "files": pair_folders,
    "tars": tars,
    "tgz": packed_tar("a.tgz", "w:gz"),
    "tar.xz": packed_tar("a.tar.xz", "w:xz"),
    "parquet": parquet("struct"),
    "parquet, bytes": parquet("bytes"),
    "parquet, paths": parquet("path"),
    "parquet in data/": in_data,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_records_in_units_of_any_size(tmp_path, form):
    listed = list_inputs([str(FORMS[form](tmp_path))])
    for size in (1, 3, 100):
        found = [pair for unit in plan(listed, size=size) for pair in read_unit(unit, tmp_path)]
        assert [(pair.image, tuple(pair.captions)) for pair in found] == [
            (hostile.jpeg(i), (text,)) for i, text in enumerate(CAPTIONS)
        ]
        assert len({pair.key for pair in found}) == COUNT
        assert all(Path(pair.file).exists() for pair in found)
        counted = [unit.count for unit in plan(listed, size=size)]
        assert sum(counted) in (0, COUNT)  # 0: only reading a tar tells
        assert "tar" in form or "tgz" in form or len(counted) > 1 or size == 100
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_token_file_merges_the_captions_of_a_picture(tmp_path):
    pictures(tmp_path / "p")
    text = "".join(
        f'p/{i}.jpg#{k}\t"{k}", {PLAIN[i]}\n' for i in range(COUNT) for k in range(1 + i % 2)
    )
    (tmp_path / "Flickr8k.token.txt").write_text(text)
    manifest = prepare([str(tmp_path / "Flickr8k.token.txt")], tmp_path / "out", workers=0)
    source = PreparedSource(tmp_path / "out")
    assert [(source.key(i), len(source.captions(i))) for i in range(COUNT)] == [
        (f"p/{i}.jpg", 1 + i % 2) for i in range(COUNT)
    ]
    assert source.captions(1)[1] == f'"1", {PLAIN[1]}' and manifest["source"]["kind"] == "token"


def test_braces_name_files_in_order(tmp_path):
    tars(tmp_path)
    found = list_inputs([str(tmp_path / "tars/{00000..00001}.tar"), str(tmp_path / "tars")])
    assert [path[-9:] for _, path in found] == ["00000.tar", "00001.tar"]
    with pytest.raises(DataError, match="no file '.*00002.tar', one of .*00002}"):
        list_inputs([str(tmp_path / "tars/{00000..00002}.tar")])


def test_packed_tars_and_folders_of_pairs_name_pictures_as_tars_do(tmp_path):
    """A caption of a sample is its name: retrieval asks with the first alone."""
    for form in ("tars", "tgz", "files"):
        (tmp_path / form).mkdir()
        path = FORMS[form](tmp_path / form)
        prepare([str(path)], tmp_path / f"{form}-out", workers=0, console=QUIET)
        source = PreparedSource(tmp_path / f"{form}-out")
        assert source.name_first and [source.key(i) for i in range(COUNT)] == list("0123456")


def test_a_zip_of_pictures(tmp_path):
    """With and without the folder that the list names, and with members that cannot be read."""
    (tmp_path / "a.json").write_text(json.dumps(entries()))
    for name, prefix in (("same.zip", "p/"), ("bare.zip", ""), ("deep.zip", "train/p/")):
        with zipfile.ZipFile(tmp_path / name, "w") as packed:
            for i in range(COUNT - 1):
                packed.writestr(f"{prefix}{i}.jpg", hostile.jpeg(i))
        options = Options(image_root=str(tmp_path / name))
        out = tmp_path / f"{name}-out"
        manifest = prepare(
            [str(tmp_path / "a.json")], out, options, workers=0, max_lost=0.5, console=QUIET
        )
        assert manifest["counts"]["images_out"] == COUNT - 1
        assert manifest["lost"]["missing file"]["count"] == 1
        assert PreparedSource(out)[2].image == hostile.jpeg(2)
    data = bytearray((tmp_path / "same.zip").read_bytes())
    data[data.index(hostile.jpeg(3)) + 200] ^= 255
    (tmp_path / "bad.zip").write_bytes(data)
    (unit,) = plan(list_inputs([str(tmp_path / "a.json")]), str(tmp_path / "bad.zip"))
    reasons = [getattr(item, "reason", "") for item in read_unit(unit)]
    assert reasons == ["", "", "", "unreadable file", "", "", "missing file"]


def test_paths_of_another_machine(tmp_path):
    pictures(tmp_path / "p")
    for paths, prefix in (("C:\\data\\p\\{}.jpg", "C:\\data\\"), ("/data/x/p/{}.jpg", "/data/x/")):
        (tmp_path / "a.json").write_text(json.dumps(entries(image=paths)))
        out = tmp_path / f"out{ord(paths[0])}"
        prepare([str(tmp_path / "a.json")], out, Options(strip=prefix), workers=0, console=QUIET)
        source = PreparedSource(out)
        assert [source.key(i) for i in range(COUNT)] == [f"p/{i}.jpg" for i in range(COUNT)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,caption\np/0.jpg,one\np/1.jpg,a dog, running\n", "line 3, with 3 fields"),
        ("a.csv", "image,caption\np/0.jpg\n", "line 2, with 1 fields; expected 2 fields"),
        ("a.tsv", 'image\tcaption\np/0.jpg\t"a\nb"\np/1.jpg\tx\ty\n', "line 4, with 3 fields"),
        ("a.tsv", 'image\tcaption\np/0.jpg\tx\np/1.jpg\t"open\np/2.jpg\tz\n', "line 3: unexpected"),
        ("a.tsv", 'image\tcaption\np/0.jpg\t"a" dog\n', "line 2: '\\t' expected after"),
        ("a.csv", "image,caption\np/0.jpg," + 140_000 * "x" + "\n", "line 2: field larger"),
        ("a.token", "p/0.jpg#0\tx\np/1.jpg#0 y\n", "line 2, without a tab"),
        ("a.csv", "url,caption\nhttps://a,x\n", "img2dataset --url_list"),
        ("a.csv", "p/0.jpg,x\np/1.jpg,y\n", "write a header line"),
        ("a.csv", "", "header ''"),
        ("a.txt", "some words\n", "no known form"),
        ("a.parquet", "PAR1 and no more", "a whole parquet file"),
        ("a.zip", "PK\3\4", "python -m zipfile -e"),
        ("a.json.gz", "\x1f\x8b\x08 cut", "packed and not whole"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, capsys, name, text, message):
    pictures(tmp_path / "p")
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert main([str(tmp_path / name), "--out", str(tmp_path / "out"), "--workers", "0"]) == 3
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_utf_16_without_a_mark_is_named(tmp_path):
    for name, encoding in (("a.json", "utf-16-le"), ("a.tsv", "utf-16-be")):
        (tmp_path / name).write_text("[{}]", encoding=encoding)
        with pytest.raises(DataError, match="UTF-16 without a mark.*save as UTF-8"):
            list_inputs([str(tmp_path / name)])


def test_a_packed_tar_that_is_cut_keeps_what_is_whole(tmp_path):
    path = packed_tar("a.tgz", "w:gz")(tmp_path)
    path.write_bytes(path.read_bytes()[:-600])
    items = list(read_unit(next(plan([("webdataset", str(path))])), tmp_path))
    assert items[-1].reason == "tar cut short" and items[-1].file == str(path)


def test_a_packed_list_that_is_cut_is_refused(tmp_path):
    path = FORMS["jsonl.gz"](tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not whole.*copy it again"):
        list(plan(list_inputs([str(path)])))


def test_a_few_odd_entries_at_the_start_are_losses(tmp_path):
    pictures(tmp_path / "p")
    odd = [{"image": "p/gone.jpg", "caption": "x"}, {"image": "p/1.jpg", "caption": None}, None, 5]
    (tmp_path / "a.json").write_text(json.dumps([*odd, *entries()]))
    out = tmp_path / "out"
    manifest = prepare([str(tmp_path / "a.json")], out, workers=0, max_lost=0.5, console=QUIET)
    assert {reason: found["count"] for reason, found in manifest["lost"].items()} == {
        "missing file": 1,
        "no caption": 1,
        "damaged json": 2,
    }


def test_a_folder_with_files_of_two_forms_is_asked_about(tmp_path):
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.jsonl").touch()
    hostile.write_tar(tmp_path / "both" / "a.tar", hostile.sample("a", hostile.jpeg(1), "x"))
    with pytest.raises(DataError, match=r"1 \*.tar, 1 files \*.jsonl.*name .*both/a.jsonl"):
        list_inputs([str(tmp_path / "both")])
    pictures(tmp_path / "only")
    with pytest.raises(DataError, match="7 pictures and no captions"):
        list_inputs([str(tmp_path / "only")])
    metadata(tmp_path / "split")
    with pytest.raises(DataError, match="name one, like .*split/p"):
        list_inputs([str(tmp_path / "split")])


# ------------------------------------------------------------------------------------------ parquet


def test_parquet_rows_of_one_picture_are_one_record_and_holes_are_losses(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    image = [{"bytes": hostile.jpeg(i), "path": None} for i in (0, 0, 1, 2)]
    rows = {
        "image": [*image, None, {"bytes": None, "path": "gone.jpg"}, {"bytes": b"x", "path": "b"}],
        "caption": ["one", "two", None, "three", "four", "five", "six"],
        "image_id": [7, 7, 8, 9, 10, 11, 12],
    }
    write_table(arrow.table(rows), tmp_path / "a.parquet")
    out = tmp_path / "out"
    manifest = prepare([str(tmp_path / "a.parquet")], out, workers=0, max_lost=1, console=QUIET)
    source = PreparedSource(out)
    assert [(source.key(i), source.captions(i)) for i in range(len(source))] == [
        ("7", ("one", "two")),
        ("9", ("three",)),
    ]
    lost = {reason: found["count"] for reason, found in manifest["lost"].items()}
    assert lost == {"no caption": 1, "no image": 1, "missing file": 1, "not an image": 1}


def test_parquet_is_read_in_pieces_of_a_row_group(tmp_path):
    """A file whose pictures are in one row group of 48 MB takes a fraction of that."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rng = np.random.default_rng(0)
    noise = [rng.bytes(1 << 16) for _ in range(768)]
    rows = arrow.table({"image": noise, "text": ["x"] * len(noise)})
    # a page holds at least the rows that are written at once
    write_table(rows, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=16)
    (unit,) = plan(list_inputs([str(tmp_path / "a.parquet")]))
    before, most, count = arrow.total_allocated_bytes(), 0, 0
    for pair in read_unit(unit):
        most = max(most, arrow.total_allocated_bytes() - before)
        assert pair.image == noise[count]
        count += 1
    assert count == len(noise) and most < 20e6


def test_without_pyarrow_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"without the package pyarrow.*pip install 'nas_jax\[par"):
        list(plan(list_inputs([str(tmp_path / "a.parquet")])))


def test_pictures_come_whole_out_of_a_prepared_parquet(tmp_path):
    path = parquet("struct")(tmp_path)
    prepare([str(path)], tmp_path / "out", workers=2, console=QUIET)
    source = PreparedSource(tmp_path / "out")
    for i in range(COUNT):
        assert source[i].key == f"{i}.jpg" and source[i].captions == (CAPTIONS[i],)
        assert (decode(source[i].image) == decode(hostile.jpeg(i))).all()


def test_a_folder_of_pairs_whose_names_have_dots(tmp_path):
    names = ("scan v1.0", "scan v1.1", "a.b.c")
    for i, name in enumerate(names):
        (tmp_path / f"{name}.jpg").write_bytes(hostile.jpeg(i))
        (tmp_path / f"{name}.json").write_text(json.dumps({"caption": f"a dog {i}"}))
    found = [pair for unit in plan(list_inputs([str(tmp_path)])) for pair in read_unit(unit)]
    assert [(pair.key, pair.captions) for pair in found] == sorted(
        (name, [f"a dog {i}"]) for i, name in enumerate(names)
    )
    (tmp_path / "list v1.json").write_text(json.dumps(entries()))  # and a list is still asked about
    with pytest.raises(DataError, match="1 files .*json"):
        list_inputs([str(tmp_path)])


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "coco", "parquet"])
def test_the_first_pictures_may_all_be_missing(tmp_path, form):
    """Those are losses; only where none is found anywhere in the list is its root wrong."""
    pictures(tmp_path / "p")
    missing, texts = 470, [f"a dog {i}" for i in range(500)]

    def write(there: bool) -> Path:
        images = [f"{'p' if there and i >= missing else 'q'}/{i % COUNT}.jpg" for i in range(500)]
        rows = [{"image": a, "caption": b} for a, b in zip(images, texts, strict=True)]
        path = tmp_path / f"{there}.{form.replace('coco', 'json')}"
        if form == "parquet":
            arrow = pytest.importorskip("pyarrow")
            from pyarrow.parquet import write_table

            write_table(arrow.table({"image": images, "caption": texts}), path)
            return path
        coco = {
            "images": [{"id": i, "file_name": image} for i, image in enumerate(images)],
            "annotations": [{"image_id": i, "caption": text} for i, text in enumerate(texts)],
        }
        text = {"json": json.dumps(rows), "jsonl": lines(rows), "coco": json.dumps(coco)}
        path.write_text(text[form] if form in text else table(rows, ","))
        return path

    found = [one for unit in plan(list_inputs([str(write(True))])) for one in read_unit(unit)]
    kept = [one for one in found if isinstance(one, InputPair)]
    assert len(found) > 470 and {one.reason for one in found if one not in kept} == {"missing file"}
    assert sum(len(pair.captions) for pair in kept) == 500 - missing
    with pytest.raises(DataError, match=r"none of 2\d\d pictures .*q/0.jpg.*--image-root"):
        list(plan(list_inputs([str(write(False))])))


def test_a_parquet_with_bytes_and_a_column_of_paths(tmp_path):
    """The bytes are the pictures, and the path is their name, before an id."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    columns = {"path": [f"a/{i}.jpg" for i in range(COUNT)], "id": list(range(COUNT))}
    columns |= {"jpg": [hostile.jpeg(i) for i in range(COUNT)], "text": CAPTIONS}
    write_table(arrow.table(columns), tmp_path / "a.parquet")
    (unit,) = plan(list_inputs([str(tmp_path / "a.parquet")]))
    found = list(read_unit(unit))
    assert [pair.key for pair in found] == columns["path"]
    assert [pair.image for pair in found] == columns["jpg"]


def test_a_parquet_without_captions_is_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "a.parquet"
    write_table(arrow.table({"image": [hostile.jpeg(0)], "width": [8]}), path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} with the columns image, width"):
        list(plan(list_inputs([str(path)])))


def test_losses_of_a_packed_tar_name_the_tar_itself(tmp_path):
    path = packed_tar("a.tgz", "w:gz")(tmp_path)
    with gzip.open(path) as file:
        data = file.read()
    end = -(-len(data.rstrip(b"\0")) // 512) * 512
    (tmp_path / "b.tgz").write_bytes(gzip.compress(data[:end]))  # without its end mark
    (unit,) = plan(list_inputs([str(tmp_path / "b.tgz")]))
    (lost,) = [one for one in read_unit(unit, tmp_path) if not isinstance(one, InputPair)]
    assert (lost.reason, lost.name, lost.file) == ("tar cut short", "b.tgz", unit.path)
