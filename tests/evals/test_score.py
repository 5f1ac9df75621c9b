"""The score command: published numbers from published scores, joins with annotations, intervals and
comparisons.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nas_jax.evals.benchmarks import load_benchmark, valse
from nas_jax.evals.numbers import numbers
from nas_jax.evals.questions import Benchmark, Question, Scored
from nas_jax.evals.score import check, main, score
from nas_jax.evals.score_files import read_scores
from nas_jax.evals.statistics import bootstrap_interval, mcnemar, resampled_weights
from nas_jax.utils.errors import ConfigError, DataError

PUBLISHED = Path(__file__).parent / "fixtures" / "published"
RNG = np.random.default_rng(0)


def test_published_scores_give_the_published_numbers(capsys):
    assert main(["--check", str(PUBLISHED)]) == 0
    assert capsys.readouterr().out.endswith("9 published numbers, 0 different\n")


def test_check_sees_a_wrong_number(tmp_path, capsys):
    for path in PUBLISHED.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(PUBLISHED)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    expected = json.loads((PUBLISHED / "expected.json").read_text())
    expected["valse_acc_r"]["albef_4m"]["existence"] += 0.1
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    assert [one.what for one in check(tmp_path) if not one.same] == ["existence"]
    assert main(["--check", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["different"] == 1


@pytest.mark.skipif(
    not os.environ.get("NAS_JAX_PUBLISHED"), reason="NAS_JAX_PUBLISHED names no folder of scores"
)
def test_all_published_scores():
    assert all(one.same for one in check(Path(os.environ["NAS_JAX_PUBLISHED"])))


# -------------------------------------------------------------------------------- joins with --data


@pytest.fixture
def annotated(tmp_path) -> Path:
    """VALSE's files with two valid examples and one invalid one a piece, and scores of the valid
    ones.
    """
    lines, number = [], 0
    for piece in valse.SIZES:
        entries = {}
        for votes in (3, 1, 2):
            entries[f"{piece}_{votes}"] = {
                "image_file": f"{piece}.jpg",
                "mturk": {"caption": votes},
            }
            entries[f"{piece}_{votes}"] |= {"caption": f"a {number}", "foil": f"b {number}"}
            if votes > 1:
                both = [("caption", 0.9), ("foil", 0.8 if votes == 3 else 0.9)]
                lines += [
                    {"instrument": piece, "id": number, "type": kind, "score": p}
                    for kind, p in both
                ]
            number += 1
        (tmp_path / f"{piece}.json").write_text(json.dumps(entries))
    write_lines(tmp_path / "scores.jsonl", lines)
    return tmp_path


def write_lines(path: Path, lines: list) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_join_with_the_annotations_by_number(annotated, capsys):
    argv = ["valse", "--scores", str(annotated / "scores.jsonl"), "--data", str(annotated)]
    assert main([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    found = {(row["part"], row["quantity"]): row for row in rows}
    assert list(rows[0]) == [
        *("benchmark", "part", "scorer", "quantity", "value", "low", "high"),
        *("chance", "blind", "count", "ties"),
    ]
    assert found["all", "accuracy"]["value"] == 50.0
    assert found["all", "accuracy"]["ties"] == len(valse.SIZES)
    assert found["all", "p_c"]["value"] == 100.0 and found["all", "p_f"]["value"] == 0.0

    lines = read_lines(annotated / "scores.jsonl")
    write_lines(annotated / "scores.jsonl", lines[2:])
    with pytest.raises(DataError, match="1 items of valse without scores, 0 scores of other items"):
        score("valse", annotated / "scores.jsonl", annotated)
    write_lines(annotated / "scores.jsonl", [*lines, *[{**line, "id": 1} for line in lines[:2]]])
    with pytest.raises(DataError, match="0 items of valse without scores, 1 scores of other items"):
        score("valse", annotated / "scores.jsonl", annotated)  # number 1 is an invalid example
    write_lines(annotated / "scores.jsonl", [{**line, "id": line["id"] + 1000} for line in lines])
    with pytest.raises(DataError, match="item 1000 of actant-swap"):
        score("valse", annotated / "scores.jsonl", annotated)


def test_any_benchmark_from_cells_by_key(tmp_path):
    pairs = [
        {"image": "x.png", "caption": f"a {k}", "foil": f"b {k}", "id": f"q{k}"} for k in range(4)
    ]
    write_lines(tmp_path / "mine.jsonl", pairs)
    scores = tmp_path / "scores" / "cells.jsonl.gz"
    scores.parent.mkdir()
    cells = [{"key": f"q{k}", "scores": [[1.0, float(k)]]} for k in reversed(range(4))]
    scores.write_bytes(gzip.compress("".join(json.dumps(cell) + "\n" for cell in cells).encode()))
    (row,) = score("own", scores, tmp_path)
    assert (row.key, row.value, row.ties, row.count) == ("own:mine/all/score/accuracy", 25.0, 1, 4)
    assert score("own", scores, tmp_path, "itm")[0].scorer == "itm"


def test_our_own_results_give_the_same_rows_again(tmp_path):
    from nas_jax.evals import results

    write_lines(
        tmp_path / "mine.jsonl",
        [{"image": "x", "caption": f"a {k}", "foil": f"b {k}"} for k in range(6)],
    )
    (benchmark,) = load_benchmark("own", tmp_path)
    cells = [RNG.normal(size=(1, 2)).astype(np.float32) for _ in benchmark.questions]
    found = numbers(benchmark, Scored("itm", cells))
    keys = tuple(question.key for question in benchmark.questions)
    written = {"itm": [results.plain(cell) for cell in cells]}
    columns = {"keys": keys, "categories": ("none",) * 6, "units": (0,) * 6, "scores": written}
    one = results.Result("own:mine", "choice", {}, {}, {}, tuple(found), **columns)
    results.write(tmp_path / "run", {}, [one])
    assert score("own", tmp_path / "run" / "results.json", tmp_path) == found
    with pytest.raises(DataError, match="without 'svo'"):
        read_scores(tmp_path / "run" / "results.json", "svo")


# ---------------------------------------------------------------------------------------- retrieval


def test_retrieval_denominators_and_chance(tmp_path, capsys):
    captions = [5] * 19 + [6]
    data = tmp_path / "test.json"
    entries = [{"image": str(k), "caption": ["a"] * count} for k, count in enumerate(captions)]
    data.write_text(json.dumps(entries))
    np.save(tmp_path / "test_i2t.npy", np.arange(20))
    np.save(tmp_path / "test_t2i.npy", np.array([0.0] * 100 + [19]))
    found = {
        (row.part, row.quantity): row for row in score("retrieval", tmp_path, data, resamples=50)
    }
    assert found["text_to_image", "r@1"].value == pytest.approx(10000 / 101)
    # the last caption of the last picture is its sixth
    assert found["text_to_image_first5", "r@1"].value == 100.0
    assert found["text_to_image", "r@1"].count == 101
    assert found["text_to_image_first5", "r@1"].count == 100
    assert found["image_to_text", "r@5"].value == 25.0
    assert found["text_to_image", "r@5"].chance == pytest.approx(25)
    assert found["image_to_text", "r@1"].chance == pytest.approx(100 * np.mean(captions) / 101)
    assert found["both", "r_mean"].value == pytest.approx(
        (found["image_to_text", "r_mean"].value + found["text_to_image", "r_mean"].value) / 2
    )
    assert main(["retrieval", "--scores", str(tmp_path / "test_i2t.npy")]) == 0
    out = capsys.readouterr().out.splitlines()
    wanted = "retrieval/image_to_text/ranks/r@1 5.00 0.00 to 15.00 - 0 20"
    assert " ".join(out[1].split()) == wanted

    np.save(tmp_path / "test_t2i.npy", np.array([0.0] * 100 + [20]))
    with pytest.raises(DataError, match="101 ranks up to 20; expected 101 ranks below 20"):
        score("retrieval", tmp_path, data)
    np.save(tmp_path / "test_t2i.npy", np.array([0.0, math.nan]))
    with pytest.raises(DataError, match="one rank from 0 a query"):
        score("retrieval", tmp_path)


# -------------------------------------------------------------------------------------- user errors


@pytest.mark.parametrize(
    ("lines", "kind", "message"),
    [
        ([{"a": 1}], DataError, "lines with a;"),
        ([], DataError, "lines with nothing"),
        ([{"label": "1_c2_i0", "score": 1}], DataError, "label '1_c2_i0'"),
        ([{"label": "1_c0_i0", "score": 1}] * 2, DataError, "item 1 has a score twice"),
        ([{"label": "1_c0_i0", "score": 1}], DataError, "item 1 has 1 scores; expected 4"),
        ([{"label": "1_c0_i0", "score": "x"}], DataError, "with score 'x'"),
        ([{"instrument": "a", "type": "b", "id": 1, "score": 1}], DataError, "in a line"),
        ([{"key": "a", "scores": [[1]]}] * 2, DataError, "a key comes twice"),
        ([{"key": "a", "scores": "x"}], DataError, "in a line"),
        ([{"key": "a", "scores": [[1]]}], ConfigError, "without --data"),
    ],
)
def test_malformed_scores(tmp_path, lines, kind, message):
    write_lines(tmp_path / "scores.jsonl", lines)
    with pytest.raises(kind, match=message):
        score("winoground", tmp_path / "scores.jsonl")


def test_command_line_errors_are_one_line(tmp_path, capsys):
    for argv, code in (
        (["valse"], 2),
        (["vlase", "--scores", "x"], 2),
        (["valse", "--scores", "nowhere"], 3),
        (["valse", "--check"], 2),
        (["retrieval", "--scores", str(tmp_path)], 3),
        (["--check", str(tmp_path)], 3),
    ):
        assert main(argv) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


# --------------------------------------------------------------------------------------- statistics


def test_interval_is_as_wide_as_the_binomial_says():
    hits = np.arange(1000) < 300
    low, high = bootstrap_interval(hits, resamples=2000)
    half = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((30 - half, 30 + half), abs=0.3)
    assert bootstrap_interval(hits, resamples=2000) == (low, high)  # seeded
    # one unit: nothing to draw from
    assert bootstrap_interval(hits, np.zeros(1000, int)) == (30.0, 30.0)
    weights = np.concatenate(list(resampled_weights(np.array([0, 0, 1, 2]), 300)))
    assert weights.shape == (300, 4) and (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 1:].sum(axis=1) == 3).all() and weights.mean() == pytest.approx(1, abs=0.1)


def test_mcnemar_is_the_exact_binomial_test():
    for first, second in ((0, 0), (3, 9), (9, 3), (40, 61), (0, 2000)):
        want = stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
        assert mcnemar(first, second) == pytest.approx(want, rel=1e-9, abs=1e-300)


def test_auroc_is_the_share_of_ordered_pairs():
    true = RNG.random(60) < 0.4
    values = RNG.integers(0, 6, 60).astype(float)  # few levels: many ties
    questions = tuple(
        Question(str(k), "a", (k,), ("t",), bool(label)) for k, label in enumerate(true)
    )
    cells = [np.array([[value]]) for value in values]
    found = numbers(Benchmark("made", "yes_no", questions, [], {}), Scored("itc", cells), 2)
    order = np.sign(values[true][:, None] - values[~true][None])
    assert [row.quantity for row in found] == ["auroc"] and found[0].count == 60
    assert found[0].value == pytest.approx(100 * np.mean(order / 2 + 0.5))
