"""What a refusal advises works: the command that it names takes the same input, or says more.

Each case writes files that training or prepare refuses. The test does what the line says, until the
data open or the advice names no command any more; the same line twice is a fault.
"""

import gzip
import json
import re
import shlex
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from data import hostile

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import open_corpus
from nas_jax.data.pair_files import file_eval_sets
from nas_jax.data.pair_lines import read_pairs
from nas_jax.data.prepare.__main__ import main
from nas_jax.evals.benchmarks import load_benchmark
from nas_jax.utils.errors import DataError

COUNT = 4
LIST = [{"image": f"p/{i}.jpg", "caption": f"a dog {i}"} for i in range(COUNT)]
COMMAND = re.compile(
    r"python -m nas_jax\.data\.prepare (.*), and put '(.*)' in its place in data\.train"
)
FIELD = re.compile(r"(data\.\w+)=('[^']*')")
PLACE = re.compile(r"name its tars: put ('[^']*') in its place")
FLAGS = re.compile(r"pass (--image-root \S+(?: --strip \S+)?)\.$")


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(COUNT):
        (folder / f"{i}.jpg").write_bytes(hostile.jpeg(i))


def renamed(form: str, names=("image", "caption")) -> list[dict]:
    rows = [(form.format(i), row["caption"]) for i, row in enumerate(LIST)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: list[dict]) -> str:
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])


def tars(folder: Path) -> None:
    for number in range(2):
        pairs = hostile.sample(f"{number}", hostile.jpeg(number), "x")
        hostile.write_tar(folder / f"{number}.tar", pairs)


def tgz(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for i in range(COUNT):
            (path.parent / f"{i}.txt").write_text("x")
            tar.add(path.parent / "p" / f"{i}.jpg", f"{i}.jpg")
            tar.add(path.parent / f"{i}.txt", f"{i}.txt")


def zip_of_pictures(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images.zip", "w") as packed:
        for i in range(COUNT):
            packed.write(folder / "p" / f"{i}.jpg", f"{i}.jpg")
    shutil.rmtree(folder / "p")


def zip_of_all(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("list.json", json.dumps(LIST))
        for i in range(COUNT):
            packed.write(path.parent / "p" / f"{i}.jpg", f"p/{i}.jpg")


# name -> (the entry, what it holds: a text, or a function of the folder or path)
CASES = {
    "csv": ("a.csv", table(LIST)),
    "openclip": ("a.tsv", table(renamed("p/{}.jpg", ("filepath", "title"))).replace(",", "\t")),
    "jsonl": ("a.jsonl", lines(LIST)),
    "lines in json": ("a.json", lines(LIST)),
    "utf-16": ("a.json", json.dumps(LIST).encode("utf-16")),
    "gz": ("a.json.gz", gzip.compress(json.dumps(LIST).encode())),
    "tgz": ("a.tgz", tgz),
    "folder of tars": ("", tars),
    "folder of a list": ("", lambda folder: (folder / "a.jsonl").write_text(lines(LIST))),
    "other fields": ("a.json", json.dumps(renamed("p/{}.jpg", ("img_path", "text")))),
    "unknown fields": ("a.json", json.dumps(renamed("p/{}.jpg", ("bild", "wort")))),
    "captions by picture": ("a.json", json.dumps({f"p/{i}.jpg": ["x"] for i in range(COUNT)})),
    "coco": (
        "a.json",
        json.dumps(
            {
                "images": [{"id": i, "file_name": f"p/{i}.jpg"} for i in range(COUNT)],
                "annotations": [{"image_id": i, "caption": "x"} for i in range(COUNT)],
            }
        ),
    ),
    "other root": ("a.json", json.dumps(renamed("{}.jpg"))),
    "other root, lines": ("a.jsonl", lines(renamed("{}.jpg"))),
    "absolute": ("a.json", json.dumps(renamed("/data/user/coco/p/{}.jpg"))),
    "absolute, lines": ("a.jsonl", lines(renamed("/data/user/coco/p/{}.jpg"))),
    "Windows": ("a.json", json.dumps(renamed("p\\{}.jpg"))),
    "Windows, absolute": ("a.json", json.dumps(renamed("C:\\my data\\p\\{}.jpg"))),
    # and a file of one of these names is in a folder near by
    "nowhere": (
        "a.json",
        lambda path: (
            path.write_text(json.dumps(renamed("/elsewhere/{}.png"))),
            (path.parent / "p" / "0.png").write_bytes(b"of something else"),
        ),
    ),
    "zip of pictures": (
        "a.json",
        lambda path: (path.write_text(json.dumps(LIST)), zip_of_pictures(path.parent)),
    ),
    "zip": ("a.zip", zip_of_all),
    "addresses": ("a.csv", "url,caption\nhttps://example.org/a.jpg,x\n"),
    "uneven": ("a.csv", "image,caption\np/0.jpg,x\np/1.jpg,x,y\n"),
    "cut short": ("a.json", json.dumps(LIST)[:-30]),
    "a picture": ("p/0.jpg", None),
    "nothing": ("gone.csv", None),
    "pictures alone": ("p", None),
}
STUCK = {  # what no command can mend: the remedy that is left at the end
    "unknown fields": "rename the fields",
    "nowhere": "--image-root FOLDER, the one that holds",
    "addresses": "download the pictures first",
    "uneven": "mend that line",
    "cut short": "it may be cut short",
    "a picture": "convert it to one of these",
    "nothing": "correct the path",
    "pictures alone": "name the list with INPUT and the folder with --image-root",
}


def follow(said: str, flags: list[str], config: dict, capsys) -> tuple[str, list[str], dict]:
    """Does what a line advises: what is said then ("" where all is well), flags and config."""
    if found := COMMAND.search(said):
        flags, config = shlex.split(found[1]), {"train": (found[2],)}
    elif found := FLAGS.search(said):
        flags = [*flags, *shlex.split(found[1])]
    elif found := re.search(r"python -m zipfile -e (\S+) (\S+) and name the folder", said):
        zipfile.main(["-e", found[1], found[2]])
        return "", flags, {"train": (found[2],)}
    elif found := PLACE.search(said):
        return "", flags, config | {"train": (eval(found[1]),)}
    elif found := FIELD.search(said):
        return "", flags, config | {found[1].removeprefix("data."): eval(found[2])}
    else:
        return said, flags, config
    capsys.readouterr()
    code = main([*flags, "--workers", "0"])
    return capsys.readouterr().err.strip() if code else "", flags, config


@pytest.mark.parametrize("case", CASES)
def test_advice_leads_on(tmp_path, capsys, monkeypatch, case):
    folder = tmp_path / "d"
    pictures(folder / "p")
    name, content = CASES[case]
    if callable(content):
        content(folder / name)
    elif content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    config, flags, heard = {"train": (str(Path("d", name)),)}, [], []
    for _ in range(5):
        try:
            opened = open_corpus(DataConfig(**config), "train", 0)
            break
        except DataError as error:
            said = f"error: {error}"
        before = None
        while said and said != before:
            assert said.count("error: ") == 1 and "\n" not in said
            assert said not in heard, f"the advice leads back: {said}"
            heard.append(said)
            before = said
            said, flags, config = follow(said, flags, config, capsys)
        if said:
            assert STUCK.get(case, "no such case") in said, heard
            return
    assert case not in STUCK and opened.key(0) is not None
    assert opened[0].image == hostile.jpeg(0), heard


def test_a_list_with_a_few_dead_or_odd_entries_is_read(tmp_path):
    """And its first picture may be among them. Many are another form."""
    pictures(tmp_path / "p")
    odd = [{"image": "gone.jpg", "caption": "x"}, {"image": "p/0.jpg", "caption": None}]
    odd += [{"image": "p/1.jpg", "caption": float("nan")}, {"image": "p/1.jpg", "caption": 3}]
    odd += [None, {"image": "p/1.jpg"}]
    entries = odd + [{"image": f"p/{i % COUNT}.jpg", "caption": f"dog {i}"} for i in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    config = DataConfig(train=(str(tmp_path / "a.json"),), image_root=str(tmp_path))
    opened = open_corpus(config, "train", 0)
    assert len(opened) == 61 and opened.key(0) == "gone.jpg"
    assert opened.report == {"no image or caption": 2, "no caption": 3}
    (tmp_path / "a.json").write_text(json.dumps(entries[2:20]))
    with pytest.raises(DataError, match="a.json, entry 2, with NoneType; expected image"):
        open_corpus(config, "train", 0)
    (tmp_path / "a.json").write_text(json.dumps([odd[0]] * 60 + entries))
    assert len(open_corpus(config, "train", 0)) == 121
    (tmp_path / "a.json").write_text(json.dumps([odd[0]] * 60))
    with pytest.raises(DataError, match="nor any other of 60"):
        open_corpus(config, "train", 0)


def test_braces_in_data_train(tmp_path):
    tars(tmp_path)
    opened = open_corpus(DataConfig(train=(str(tmp_path / "{0..1}.tar"),)), "train", 0)
    assert [opened.key(i) for i in range(len(opened))] == ["0", "1"]
    with pytest.raises(DataError, match="no file '.*2.tar'.*check data.train"):
        open_corpus(DataConfig(train=(str(tmp_path / "{0..2}.tar"),)), "train", 0)


def test_lines_of_pairs_may_be_an_array_packed_or_in_utf_16(tmp_path):
    path = tmp_path / "foils.jsonl"
    rows = [{"image": "a", "caption": "b"}, {"image": "c", "caption": "d"}]
    forms = [lines(rows), json.dumps(rows, indent=1), "\ufeff" + lines(rows)]
    packed = [gzip.compress(lines(rows).encode("utf-16")), lines(rows).encode("utf-16")]
    for data in [*(form.encode() for form in forms), gzip.compress(forms[1].encode()), *packed]:
        path.write_bytes(data)
        assert [row for _, row in read_pairs(str(path), ["image"], ["caption"])] == rows
    path.write_text(json.dumps(rows)[:-3])
    with pytest.raises(DataError, match="a json array.*copy it again"):
        read_pairs(str(path), ["image"])
    path.write_bytes(packed[0][:-9])
    with pytest.raises(DataError, match="foils.jsonl: .*end-of-stream"):
        read_pairs(str(path), ["image"])


def test_foils_of_a_run_and_of_a_benchmark_are_the_same_lines(tmp_path):
    """Every spelling that `own` takes, data.foils takes; what one refuses, the other counts."""
    pictures(tmp_path / "p")
    (tmp_path / "a.json").write_text(json.dumps([row | {"image": row["image"]} for row in LIST]))
    pair = {"image": "p/1.jpg", "caption": "a dog"}
    told = [{"foils": ["a cat", "a cow"]}, {"negative_caption": "a cup", "category": 2.5}]
    config = DataConfig(
        val=(str(tmp_path / "a.json"),),
        foils=(str(tmp_path / "b.jsonl"),),
        image_root=str(tmp_path),
        image_size=16,
    )
    (tmp_path / "b.jsonl").write_text(lines([pair | more for more in told]))
    (found,) = file_eval_sets(config)
    assert [(foil.foil, foil.category) for foil in found.foils] == [
        ("a cat", "none"),
        ("a cow", "none"),
        ("a cup", "2.5"),
    ]
    (benchmark,) = load_benchmark("own", tmp_path, 16)
    assert [(one.texts[1:], one.category) for one in benchmark.questions] == [
        (("a cat", "a cow"), "none"),
        (("a cup",), "2.5"),
    ]
    for odd in ({"foil": " "}, {"foil": "a cat", "category": [1]}, {"foil": "x", "image": True}):
        (tmp_path / "b.jsonl").write_text(lines([pair | odd]))
        with pytest.raises(DataError, match="line 1, without"):
            file_eval_sets(config)
        with pytest.raises(DataError, match="1 of 1 items cannot be used: 1 no "):
            load_benchmark("own", tmp_path, 16)


def test_foils_of_a_run_may_be_lists_and_their_categories_null_or_numbers(tmp_path):
    pictures(tmp_path / "p")
    (tmp_path / "a.json").write_text(json.dumps(LIST))
    pair = {"image": "p/1.jpg", "caption": "a dog"}
    told = [{"foil": "a cat", "category": 3}, {"foil": ["a cow", "a cup"], "category": None}]
    (tmp_path / "foils.jsonl").write_text(lines([pair | more for more in told]))
    config = DataConfig(
        val=(str(tmp_path / "a.json"),),
        foils=(str(tmp_path / "foils.jsonl"),),
        image_root=str(tmp_path),
        image_size=16,
    )
    (found,) = file_eval_sets(config)
    assert [(foil.image, foil.foil, foil.category) for foil in found.foils] == [
        (1, "a cat", "3"),
        (1, "a cow", "none"),
        (1, "a cup", "none"),
    ]
    (tmp_path / "foils.jsonl").write_text(lines([pair | {"foil": []}]))
    with pytest.raises(DataError, match="line 1, without 'foil'"):
        file_eval_sets(config)


def test_two_lists_of_one_name_get_two_folders_and_the_field_that_names_them(tmp_path):
    """What is prepared of a.csv and a.tsv must not be one folder; a list of data.val belongs
    there.
    """
    pictures(tmp_path / "p")
    (tmp_path / "a.csv").write_text(table(LIST))
    (tmp_path / "a.json").write_text(lines(LIST))
    (tmp_path / "good.json").write_text(json.dumps(LIST))
    told = []
    for name in ("a.csv", "a.json"):
        val, train = (str(tmp_path / name) for name in (name, "good.json"))
        config = DataConfig(train=(train,), val=(val,), image_root=str(tmp_path))
        with pytest.raises(DataError, match="in its place in data.val.$") as caught:
            open_corpus(config, "val", 0)
        assert "data.train" not in str(caught.value)
        told.append(re.search(r"put '(.*)' in its place", str(caught.value))[1])
    assert len(set(told)) == 2
    (tmp_path / "b.csv").write_text(table(LIST))
    with pytest.raises(DataError) as caught:
        open_corpus(DataConfig(train=(str(tmp_path / "[ab].csv"),)), "train", 0)
    assert re.search(r"put '([^*?\[\]{}]*)' in its place in data.train", str(caught.value))
