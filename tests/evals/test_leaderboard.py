"""The page of several models: which number stands there, what is marked, what is drawn where."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from nas_jax.evals import compare, leaderboard
from nas_jax.evals.detail import question_result
from nas_jax.evals.questions import Benchmark, Question, Scored
from nas_jax.evals.results import read, write
from nas_jax.utils.errors import CheckpointError, DataError

PARTS = ("colour", "number", "place")


def result(right: dict[str, int], name: str = "toys", scorer: str = "itm", each: int = 40):
    """40 questions a category, of which the first `right` are answered right."""
    asked = [(part, k) for part in PARTS for k in range(each)]
    questions = tuple(
        Question(f"{part}{k}", part, (number,), ("yes", "no"))
        for number, (part, k) in enumerate(asked)
    )
    benchmark = Benchmark(name, "choice", questions, [], {}, headline="macro/accuracy")
    cells = [np.array([[1.0, 0.0 if k < right[part] else 2.0]]) for part, k in asked]
    return question_result(benchmark, [Scored(scorer, cells)], resamples=200)


@pytest.fixture
def models(tmp_path):
    """NAME=RESULTS of two models; the second was also asked about something else."""
    good = result({"colour": 40, "number": 30, "place": 20})
    better = result({"colour": 40, "number": 36, "place": 20})
    other = result({"colour": 20, "number": 20, "place": 20}, "tools")
    write(tmp_path / "a", {"text_length": 64}, [good])
    write(tmp_path / "b", {"text_length": 64}, [better, other])
    return [f"good={tmp_path / 'a'}", f"better={tmp_path / 'b'}"]


def test_the_first_table_has_the_headline_its_best_and_chance(models, tmp_path, capsys):
    assert leaderboard.main([*models, "--out", str(tmp_path / "board")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines[: lines.index("") + 6]
    rows = {line.split(" | ")[0].strip("| "): line for line in first if line.startswith("|")}
    assert rows[""].startswith("|  | toys macro/accuracy | tools macro/accuracy")
    (better, tools) = rows["better, itm"].split(" | ")[1:3]
    assert better.startswith("80.0 (") and better.endswith("*")
    assert tools.startswith("50.0 (") and "(chance)" in tools and "*" not in tools
    good = next(line for line in lines if line.startswith("| good, itm"))
    assert good.split(" | ")[1].startswith("75.0 (") and "*" not in good and good.endswith("- |")
    assert "Not asked alike" not in "\n".join(lines)


def test_marks_stand_at_their_values(models, tmp_path):
    assert leaderboard.main([*models, "--out", str(tmp_path / "board")]) == 0
    page = (tmp_path / "board/leaderboard.html").read_text()
    assert "<script" not in page and "http" not in page
    bars = [svg for svg in re.findall(r"<svg.*?</svg>", page) if ">80</text>" in svg]
    assert len(bars) == 2
    # the first model of the table is a circle, the second a square, on every picture
    circles = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', bars[0])]
    squares = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', bars[0])]
    assert circles == pytest.approx([190 + 4.2 * x for x in (80, 100, 90, 50)], abs=0.06)
    assert squares == pytest.approx([185.5 + 4.2 * x for x in (75, 100, 75, 50)], abs=0.06)
    assert "<circle" in bars[1] and "<rect" not in bars[1]  # one model alone was asked that
    assert len(re.findall(r"<polygon", page)) == 2 * (4 + 1) + 2 + 1  # rings, chance, models


def test_what_was_asked_differently_is_said_or_refused(models, tmp_path, capsys):
    few = result({"colour": 9, "number": 9, "place": 9}, each=10)
    write(tmp_path / "c", {"text_length": 30}, [few])
    boards = leaderboard.collect([(m, *read(tmp_path / f)) for m, f in (("x", "a"), ("y", "c"))])
    assert boards[0].notes == (
        "y was asked 30 items, x 120, and not the same ones",
        "text_length: 64 for x, 30 for y",
    )
    text = leaderboard.to_markdown(boards)
    assert "Not asked alike in toys" in text and "text_length: 64" in leaderboard.to_html(boards)
    same = f"good={tmp_path / 'c'}"
    write(tmp_path / "none", {}, [])
    for wrong, line in (
        ([models[0], same], "toys of good twice; expected one result a model"),
        ([models[0], "--scorer=itx"], "no result under itx; expected one of itm"),
        ([models[0], "--scorer=itm,itx"], "no result under itx; expected one of itm"),
        ([models[0], f"none={tmp_path / 'none'}"], "none without results"),
        ([str(tmp_path / "a")], "expected NAME=RESULTS"),
    ):
        assert leaderboard.main([*wrong, "--out", str(tmp_path / "no")]) == DataError.exit_code
        assert line in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_below_chance_is_not_at_chance(tmp_path, capsys):
    worse = result({"colour": 2, "number": 1, "place": 0})
    write(tmp_path / "a=b", {}, [worse])  # the path may have = in it
    assert leaderboard.main([f"worse={tmp_path / 'a=b'}", "--out", str(tmp_path / "board")]) == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("| worse"))
    assert line.startswith("| worse, itm | 2.5 (") and "chance" not in line


def test_a_board_has_one_quantity(models, tmp_path):
    protocol, (old,) = read(tmp_path / "a")
    without = dataclasses.replace(
        old, headline="", rows=tuple(row for row in old.rows if row.part == "all")
    )
    whole = dataclasses.replace(old, headline="")  # of a file that is older than the field
    found = [("new", protocol, [old]), ("old", protocol, [whole]), ("part", protocol, [without])]
    (board,) = leaderboard.collect(found)
    quantities = {one.model: f"{one.headline.part}/accuracy" for one in board.entries}
    assert quantities == {"new": "macro/accuracy", "old": "macro/accuracy", "part": "all/accuracy"}
    assert board.quantity == "macro/accuracy"
    text = leaderboard.to_markdown([board])
    assert "|  | colour | number | place |" in text and "| part, itm | - | - | - |" in text
    assert board.notes == ("part, itm has no macro/accuracy; its number is all/accuracy",)


@pytest.mark.parametrize("value", [None, float("nan"), "high"])
def test_results_without_numbers_are_refused(models, tmp_path, capsys, value):
    file = tmp_path / "a/results.json"
    content = json.loads(file.read_text())
    content["results"][0]["rows"][0]["value"] = value
    file.write_text(json.dumps(content))
    assert leaderboard.main([models[0], "--out", str(tmp_path / "board")]) == DataError.exit_code
    assert f"error: {file}: " in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(models, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = ["--out", str(tmp_path / "file/board")]
    assert leaderboard.main([models[0], *out]) == CheckpointError.exit_code
    assert "expected a writable --out with room" in capsys.readouterr().err
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "a"), *out]) == 4
    assert "expected a writable --out with room" in capsys.readouterr().err
