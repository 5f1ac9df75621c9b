"""A model that is not of this package: questions out, answers in, by the commands of the docs;
and the tables of retrieval.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas_jax.data.sources import Report
from nas_jax.evals import compare, results
from nas_jax.evals.benchmarks import LoadOptions, load_with
from nas_jax.evals.export import Pictures, question_lines
from nas_jax.evals.export import main as questions
from nas_jax.evals.karpathy import load as load_list
from nas_jax.evals.rank_tables import table_results
from nas_jax.evals.score import main as score
from nas_jax.utils.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


def write_lines(path: Path, lines: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def paint(path: Path, colour: str, size: tuple[int, int] = (9, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)


@pytest.fixture
def mine(tmp_path) -> Path:
    """data/mine: pairs of which one is wrong, and foils with kinds; data/mine_captions.jsonl."""
    names = list(COLOURS)
    pairs = [
        {"image": f"{c}.png", "caption": f"A {c} square.", "foil": f"A {other} square.",
         "category": "colour"}
        for c in names for other in names if c != other
    ]  # fmt: skip
    pairs.append(
        {"image": "red.png", "caption": "a blue dot", "foil": "a red dot", "category": "x"}
    )
    foils = {"colour": "a green box", "shape": "a red ball"}  # the toy model knows no shapes: a tie
    write_lines(tmp_path / "data/mine/pairs.jsonl", pairs)
    kinds = [{"image": "red.png", "caption": "a red box", "foils": foils, "id": "k"}]
    write_lines(tmp_path / "data/mine/kinds.jsonl", kinds)
    captions = [{"image": f"mine/{c}.png", "captions": [f"all {c}", f"{c} too"]} for c in names]
    write_lines(tmp_path / "data/mine_captions.jsonl", captions)
    for colour in names:
        paint(tmp_path / "data/mine" / f"{colour}.png", colour)
    return tmp_path


def docs_blocks() -> tuple[list[str], dict[str, str]]:
    """The commands of the section, and its programs by name."""
    page = (ROOT / "docs/evaluation.md").read_text()
    section = page.split("## Any other model\n")[1].split("\n## ")[0]
    shell = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    commands = [
        line for block in shell for line in block.splitlines() if line and not line.startswith("#")
    ]
    programs = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    named = re.findall(r"`(data/\w+\.py)`", section)
    return commands, dict(zip(dict.fromkeys(named), programs, strict=True))


def test_the_commands_of_the_docs_score_a_model_of_another_kind(mine):
    commands, programs = docs_blocks()
    assert len(commands) == 6 and list(programs) == ["data/answer.py", "data/table.py"]
    for name, text in programs.items():
        (mine / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    said = {}
    for command in commands:
        text = re.sub(r"^python\b", shlex.quote(sys.executable), command)
        done = subprocess.run(
            text, shell=True, cwd=mine, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, command + done.stderr
        said[command] = done.stdout.splitlines()
    first = next(line for line in said[commands[2]] if line.startswith("own:pairs/all/"))
    assert first.split()[:2] == ["own:pairs/all/score/accuracy", "85.71"]
    protocol, found = results.read(mine / "results" / "mine")
    rows = {row.key: row for result in found for row in result.rows}
    pairs = rows["own:pairs/all/score/accuracy"]
    assert (pairs.value, pairs.count, pairs.ties) == (pytest.approx(100 * 6 / 7), 7, 0)
    assert rows["own:pairs/colour/score/accuracy"].value == 100.0
    assert rows["own:pairs/x/score/accuracy"].value == 0.0
    assert rows["own:kinds/colour/score/accuracy"].value == 100.0
    assert (rows["own:kinds/shape/score/accuracy"].ties, pairs.blind) == (1, 0.0)
    assert rows["own:kinds/all/score/caption"].value == 0.0
    assert protocol["checkpoint"] == {"name": "mine"}
    assert protocol["questions"]["pictures"] == "as they are"
    assert [result.protocol["text"] for result in found] == ["as written"] * 2
    page = (mine / "results" / "mine" / "results.html").read_text()
    assert "own:pairs" in page and "questions.pictures: as they are" in page

    _, tables = results.read(mine / "results" / "captions")
    rows = {row.key: row for result in tables for row in result.rows}
    assert rows["retrieval/6-own/text_to_image/score/r@1"].value == 100.0
    assert rows["retrieval/6-own/text_to_image/score/r@1"].chance == pytest.approx(100 / 3)
    assert rows["retrieval/6-own/image_to_text/score/r@1"].count == 3
    assert {result.protocol["text"] for result in tables} == {"as written"}
    assert compare.main([str(mine / "results" / "mine")] * 2) == 0


def test_questions_are_what_the_benchmark_asks(mine, capsys):
    """Pictures as they are, cut and resized; texts as written and cleaned; names alone."""
    box = [{"image": "red.png", "box": [1, 2, 4, 3], "caption": "Red!", "foil": "Blue!"}]
    write_lines(mine / "boxes/boxes.jsonl", box)
    paint(mine / "boxes/red.png", "red")
    out = mine / "q.jsonl"
    asked = ["own", "--data", str(mine / "boxes"), "--out", str(out)]
    assert questions([*asked]) == 3  # a part of a picture is no file of its own
    assert "parts of others, like red.png; expected files of their own" in capsys.readouterr().err
    assert questions([*asked, "--pictures", str(mine / "cut")]) == 0
    (line,) = read_lines(out)
    assert line["texts"] == ["Red!", "Blue!"] and "boxes" not in line
    assert Image.open(line["pictures"][0]).size == (4, 3)
    assert questions([*asked, "--names", "--clean"]) == 0
    (line,) = read_lines(out)
    assert (line["pictures"], line["boxes"]) == (["red.png"], [[1, 2, 4, 3]])
    assert line["texts"] == ["red", "blue"]
    assert (
        questions([*asked, "--pictures", str(mine / "small"), "--size", "5", "--fit", "crop"]) == 0
    )
    (line,) = read_lines(out)
    assert Image.open(line["pictures"][0]).size == (5, 5)
    protocol = json.loads((mine / "q.protocol.json").read_text())
    assert protocol["pictures"] == "5 pixels, the square in the middle, resized"
    assert protocol["texts"]["clean"] is False
    for wrong, code in ((["--size", "5"], 2), (["--fit", "x"], 2), (["--only", "x"], 2)):
        assert questions([*asked, *wrong]) == code
    capsys.readouterr()

    with tarfile.open(mine / "boxes/red.tar", "w") as tar:
        tar.add(mine / "boxes/red.png", "red.png")
    raw = (mine / "boxes/red.png").read_bytes()
    (mine / "boxes/red.png").unlink()
    write_lines(mine / "boxes/boxes.jsonl", [{**box[0], "box": None}] * 1)
    assert questions([*asked]) == 3
    assert "lie in tar or zip files" in capsys.readouterr().err
    assert questions([*asked, "--pictures", str(mine / "raw")]) == 0
    (line,) = read_lines(out)
    assert Path(line["pictures"][0]).read_bytes() == raw  # the very file


def test_pictures_that_are_loaded_are_not_exported(mine):
    def lines(image_size: int | None) -> list:
        loaded = load_with("own", mine / "data/mine", LoadOptions(image_size=image_size))
        return list(question_lines(loaded[0], Pictures(None, None, "squash"), Report()))

    assert lines(None)
    with pytest.raises(TypeError, match="with an image_size, Gallery"):
        lines(8)


def test_deep_pictures_are_written_in_the_range_that_is_given(mine, capsys):
    """12 bits stored in 16 and called nothing: unknown without the flag."""
    write_lines(mine / "deep/d.jsonl", [{"image": "d.png", "caption": "a", "foil": "b"}])
    (mine / "deep").mkdir(exist_ok=True)
    Image.fromarray(np.full((6, 6), 2048, np.uint16)).save(mine / "deep/d.png")
    out = mine / "q.jsonl"
    asked = ["own", "--data", str(mine / "deep"), "--out", str(out)]
    asked += ["--pictures", str(mine / "shown"), "--size", "4"]
    assert questions(asked) != 0 and "unknown range" in capsys.readouterr().err
    assert questions([*asked, "--image-range", "0", "4095"]) == 0
    (line,) = read_lines(out)
    assert abs(int(np.asarray(Image.open(line["pictures"][0])).mean()) - 128) <= 1
    assert questions([*asked, "--image-range", "5", "5"]) == 2


def test_the_square_in_the_middle_is_what_crop_shows():
    from nas_jax.evals.benchmarks.fits import fitted

    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:8] = 200
    assert (fitted(image, 4, "crop") == 200).all()
    assert not (fitted(image, 4, "squash") == 200).all()


def test_answers_to_cleaned_questions_are_read_as_such(mine, capsys):
    """A text of punctuation alone is asked as written, and left out where it is cleaned."""
    lines = [{"image": "red.png", "caption": "Red", "foil": "...", "id": "a"}]
    lines += [
        {"image": "red.png", "caption": "Red", "foil": "Blue", "id": f"b{k}"} for k in range(9)
    ]
    write_lines(mine / "own/one.jsonl", lines)
    paint(mine / "own/red.png", "red")
    for flags, count in (([], 10), (["--clean"], 9)):
        asked = ["own", "--data", str(mine / "own"), "--out", str(mine / "q.jsonl"), *flags]
        assert questions(asked) == 0
        keys = [line["key"] for line in read_lines(mine / "q.jsonl")]
        assert len(keys) == count
        write_lines(mine / "a.jsonl", [{"key": key, "scores": [1, 0]} for key in keys])
        given = ["own", "--data", str(mine / "own"), "--scores", str(mine / "a.jsonl")]
        capsys.readouterr()
        assert score([*given, "--questions", str(mine / "q.jsonl"), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert (row["count"], row["value"]) == (count, 100.0)


def test_what_was_lost_when_questions_were_written_needs_no_score(mine, capsys):
    lines = [{"image": "red.png", "caption": "r", "foil": "b", "id": f"k{k}"} for k in range(12)]
    write_lines(mine / "own/one.jsonl", [lines[0] | {"image": "gone.png"}, *lines[1:]])
    paint(mine / "own/red.png", "red")
    asked = ["own", "--data", str(mine / "own"), "--out", str(mine / "q.jsonl")]
    assert questions(asked) == 0
    keys = [line["key"] for line in read_lines(mine / "q.jsonl")]
    assert keys == [f"k{k}" for k in range(1, 12)]
    write_lines(mine / "a.jsonl", [{"key": key, "scores": [1, 0]} for key in keys])
    given = ["own", "--data", str(mine / "own"), "--scores", str(mine / "a.jsonl"), "--json"]
    assert score(given) == 3
    assert "1 items of own:one without scores ('k0')" in capsys.readouterr().err
    assert score([*given, "--questions", str(mine / "q.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["count"] == 11
    write_lines(mine / "a.jsonl", [{"key": key, "scores": [1, 0]} for key in keys[1:]])
    assert score([*given, "--questions", str(mine / "q.jsonl")]) == 3


# --------------------------------------------------------------------------------------- retrieval


def test_tables_are_ranked_strictly_under_both_rules(mine):
    path = mine / "list.jsonl"
    write_lines(path, [
        {"image": "a", "captions": ["one", "same"]}, {"image": "b", "captions": ["same", "two"]}
    ])  # fmt: skip
    collection = load_list("retrieval", path, LoadOptions())
    table = np.array([[1.0, 5, 5, 0], [0, 2, 2, 9]])  # (2, 4): "same" ties with "same"
    np.save(mine / "s.npy", table)
    rows = {
        row.key: row.value
        for result in table_results(mine / "s.npy", collection, "score", 20)
        for row in result.rows
    }
    assert rows["retrieval/4-own/image_to_text/score/r@1"] == 50.0
    assert rows["retrieval/4-wording/image_to_text/score/r@1"] == 100.0
    assert rows["retrieval/4-own/text_to_image/score/r@1"] == 75.0
    folder = mine / "both"
    folder.mkdir()
    np.save(folder / "i2t.npy", table)
    np.save(folder / "t2i.npy", -table.T)
    again = {
        row.key: row.value
        for result in table_results(folder, collection, "score", 20)
        for row in result.rows
    }
    assert again["retrieval/4-own/image_to_text/score/r@1"] == 50.0
    assert again["retrieval/4-own/text_to_image/score/r@1"] == 25.0
    for wrong, message in (
        (table.T, r"\(4, 2\); expected \(2, 4\) scores: 2 pictures and 4 texts"),
        (np.where(table == 9, np.nan, table), "a score that is not finite"),
    ):
        np.save(mine / "s.npy", wrong)
        with pytest.raises(DataError, match=message):
            table_results(mine / "s.npy", collection, "score", 20)


def test_long_captions_are_whole_and_cut_ones_are_told(mine, caplog):
    """Urban1k's own folder; and the same list under the 30 words of COCO."""
    long = " ".join(f"w{k}" for k in range(50))
    for k, colour in enumerate(COLOURS):
        paint(mine / "Urban1k/image" / f"{k + 1}.png", colour)
        (mine / "Urban1k/caption").mkdir(exist_ok=True)
        (mine / "Urban1k/caption" / f"{k + 1}.txt").write_text(f"{long} {colour}\n")
    for folder in (mine, mine / "Urban1k"):
        found = load_list("urban1k", folder, LoadOptions(4))
        assert [texts[0].split()[-1] for texts in found.eval_set.captions] == list(COLOURS)
        assert [int(image[0, 0].argmax()) for image in found.eval_set.images] == [0, 1, 2]
        assert found.text_length == 0 and "cut" not in found.protocol
        assert found.protocol["published images"] == "1000; this list has 3"
    assert "and the rest" not in caplog.text
    assert "urban1k: the published list has 1000 images, this one 3" in caplog.text
    entries = [{"image": f"{k}", "caption": [f"{long} {k}", "short"]} for k in range(4)]
    (mine / "coco.json").write_text(json.dumps(entries))
    found = load_list("coco", mine / "coco.json", LoadOptions())
    assert found.protocol["cut"] == "4 of 8 captions have more than 30 words"
    assert "coco: 4 of 8 captions have more than 30 words, and the rest is cut off" in caplog.text
    assert {len(text.split()) for texts in found.eval_set.captions for text in texts} == {30, 1}
    with pytest.raises(DataError, match="1 of 3 images cannot be used.*raise --max-dropped"):
        (mine / "Urban1k/image/2.png").unlink()
        load_list("urban1k", mine, LoadOptions(4))
