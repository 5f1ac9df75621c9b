"""Every command of docs/what_do_you_have.md runs on such files, and its table is the code's."""

import csv
import gzip
import json
import re
import shlex
import zipfile
from pathlib import Path

import pytest
from data import hostile
from test_docs import ROOT, commands

from nas_jax.data import list_fields
from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import open_corpus
from nas_jax.data.prepare.__main__ import main
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.records import Region
from nas_jax.evals.benchmarks.__main__ import main as benchmarks

COUNT = 3
CECLIP = "ceclip.parquet"
# folder -> negative captions and pictures of its first record
GIVEN = {"data/triplets": (1, 1), "data/ceclip": (2, 0), "data/negclip": (1, 1)}
GIVEN["data/swaps"] = (1, 1)
REGIONS = (Region((0.0, 0.0, 8.0, 8.0), "a hat"),)
PAGE = (ROOT / "docs/what_do_you_have.md").read_text()
COMMANDS = [command.text for command in commands("page", PAGE)]


def pictures(folder: str, form: str = "{}.jpg") -> None:
    for i in range(COUNT):
        path = Path(folder, form.format(i))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hostile.jpeg(i))


def rows(form: str, names=("image", "caption")) -> list[dict]:
    return [dict(zip(names, (form.format(i), f"a dog {i}"), strict=True)) for i in range(COUNT)]


def table(path: str, rows: list[dict], delimiter: str = ",") -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def tars(folder: str) -> None:
    Path(folder).mkdir(exist_ok=True)
    for number in range(2):
        some = hostile.sample(f"{number}", hostile.jpeg(number), "a dog")
        hostile.write_tar(Path(folder, f"{number:05d}.tar"), some)


def tgz() -> None:
    some = [pair for i in range(COUNT) for pair in hostile.sample(f"{i}", hostile.jpeg(i), "a dog")]
    path = hostile.write_tar(Path("pairs.tar"), some)
    Path("pairs.tgz").write_bytes(gzip.compress(Path(path).read_bytes()))


def pair_files() -> None:
    pictures("sbu/00000")
    for i in range(COUNT):
        Path(f"sbu/00000/{i}.txt").write_text("a dog")


def parquet() -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    Path("hub/data").mkdir(parents=True)
    image = [{"bytes": hostile.jpeg(i), "path": None} for i in range(COUNT)]
    for split in ("train", "test"):
        write_table(
            arrow.table({"image": image, "caption": ["a dog"] * COUNT}),
            f"hub/data/{split}-00000-of-00001.parquet",
        )


def karpathy() -> None:
    pictures("coco/val2014")
    images = [
        {"filepath": "val2014", "filename": f"{i}.jpg", "split": split, "sentences": [{"raw": "x"}]}
        for i, split in enumerate(("train", "restval", "test"))
    ]
    Path("dataset_coco.json").write_text(json.dumps({"images": images}))


def coco() -> None:
    pictures("train2014")
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(COUNT)],
        "annotations": [{"image_id": i, "caption": "a dog"} for i in range(COUNT)],
    }
    Path("captions_train2014.json").write_text(json.dumps(content))


def given() -> None:
    """Files with negatives, and groups."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    Path("triplets").mkdir()
    members = [
        (f"{i}.{suffix}", data)
        for i in range(COUNT)
        for suffix, data in (
            ("image", hostile.jpeg(i)), ("caption", b"a dog"),
            ("neg_image", hostile.jpeg(i + 9)), ("neg_caption", b"a cat"),
        )
    ]  # fmt: skip
    hostile.write_tar(Path("triplets/shard-0.tar"), members)
    columns = {name: ["a cat"] * COUNT for name in ("relation_aug_caption", "adj_aug_caption")}
    image = [{"bytes": hostile.jpeg(i), "path": None} for i in range(COUNT)]
    write_table(arrow.table({"image": image, "caption": ["a dog"] * COUNT} | columns), CECLIP)
    rows_of = [(f"p/{i}.jpg", "a dog", "['a cat']", f"[{2 - i}]") for i in range(COUNT)]
    names = ("filepath", "title", "neg_caption", "neg_image")
    table("negclip.tsv", [dict(zip(names, row, strict=True)) for row in rows_of], "\t")
    pictures("swaps")
    pictures("swaps", "{}.neg.jpg")
    for i in range(COUNT):
        Path(f"swaps/{i}.txt").write_text("a dog on a hat")
        Path(f"swaps/{i}.neg.txt").write_text("a hat on a dog")
        folder = Path("variations", "dogs" if i < 2 else "hats")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(hostile.jpeg(i))
        (folder / f"{i}.txt").write_text("a dog")


def make_all() -> None:
    """The files that the page speaks of."""
    tars("cc3m")
    pair_files()
    tgz()
    pictures("birds")
    table("birds/metadata.csv", rows("{}.jpg", ("file_name", "text")))
    parquet()
    pictures("p")
    table("train.csv", rows("p/{}.jpg", ("filepath", "title")))
    pictures("pictures")
    Path("lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("{}.jpg")))
    Path("list.json.gz").write_bytes(gzip.compress(json.dumps(rows("{}.jpg")).encode()))
    pictures("Images")
    table("captions.txt", rows("{}.jpg"))
    Path("results.token").write_text("".join(f"{i}.jpg#0\ta dog\n" for i in range(COUNT)))
    coco()
    karpathy()
    with zipfile.ZipFile("pictures.zip", "w") as packed:
        for i in range(COUNT):
            packed.write(f"pictures/{i}.jpg", f"{i}.jpg")
    table("windows.tsv", rows("C:\\data\\{}.jpg"), "\t")
    given()
    boxes = [row | {"boxes": [[0, 0, 8, 8]], "phrases": ["a hat"]} for row in rows("{}.jpg")]
    Path("boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in boxes))
    pictures("mine")
    Path("mine/pairs.jsonl").write_text('{"image": "1.jpg", "caption": "a dog", "foil": "a cat"}')


def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_all()
    run = 0
    for text in COMMANDS:
        words = shlex.split(text)
        if any(word.startswith("tfds:") or "://" in word for word in words):
            continue  # tests/data/test_prepare.py, tests/data/test_remote.py
        if "nas_jax.evals.benchmarks" in words:
            assert benchmarks(words[3:]) == 0 and "1 items" in capsys.readouterr().out
            continue
        assert words[:3] == ["python", "-m", "nas_jax.data.prepare"]
        assert main([*words[3:], "--workers", "0"]) == 0, (text, capsys.readouterr().err)
        source = PreparedSource(words[words.index("--out") + 1])
        assert len(source) == (2 if "cc3m" in text or "karpathy" in text else COUNT) + (
            COUNT if text.endswith("data/hub") else 0
        )
        assert source[0].image == hostile.jpeg(0)
        negatives, images = source.negatives(0)
        assert (len(negatives), images) == GIVEN.get(words[words.index("--out") + 1], (0, 0)), text
        assert source[0].group == ("dogs" if "--groups" in words else "")
        assert source[0].regions == (REGIONS if "boxes.jsonl" in words else ())
        run += 1
    assert run == len(COMMANDS) - 5 > 14
    pattern = re.search(r"`data\.train=\('cc3m/(.*?)',\)`", PAGE)[1].replace("00012", "00001")
    assert len(open_corpus(DataConfig(train=(f"cc3m/{pattern}",)), "train", 0)) == 2


def test_the_table_of_fields_is_that_of_the_code():
    told = {
        line.split("|")[1].strip(): tuple(re.findall(r"`(\w+)`", line.split("|")[2]))
        for line in PAGE.splitlines()
        if line.startswith("| ") and "`" in line
    }
    assert told == {
        "picture, as a path": list_fields.IMAGE_FIELDS,
        "picture, in parquet also": list_fields.BYTES_FIELDS,
        "captions: a text or a list": list_fields.CAPTION_FIELDS,
        "name of a picture, in parquet": list_fields.KEY_FIELDS,
    }


def test_the_troubles_name_files_that_exist():
    text = (ROOT / "docs/data_troubles.md").read_text()
    places = re.findall(r"`([\w/]+\.py)`", text)
    assert len(places) > 10 and all((ROOT / place).is_file() for place in places)
