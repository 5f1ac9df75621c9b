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
from nas_jax.evals.rescore import score
from nas_jax.evals.score import check, main
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
    with pytest.raises(DataError, match="1 items of valse without scores .*, 0 scores of other"):
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
    (tmp_path / "two").mkdir()
    write_lines(tmp_path / "two" / "other.jsonl", read_lines(tmp_path / "mine.jsonl"))
    with pytest.raises(DataError, match="has scores of own:mine, without own:other"):
        score("own", tmp_path / "run" / "results.json", tmp_path / "two")


@pytest.mark.parametrize("wrong", ["NaN", "null", "true", '"0.9"', "Infinity"])
@pytest.mark.parametrize("field", ["scores", "blind"])
def test_a_score_is_a_finite_number(tmp_path, wrong, field):
    """All of these were read, as 0, 1 or a loss; the control is the line before."""
    pairs = [{"image": "x", "caption": f"a {k}", "foil": f"b {k}", "id": str(k)} for k in range(2)]
    write_lines(tmp_path / "mine.jsonl", pairs)
    cells = {"scores": "[[0.9, 0.1]]", "blind": "[[0.5, 0.5]]"}
    good, bad = (
        ", ".join(f'"{n}": {c}' for n, c in cells.items()),
        cells | {field: f"[[1, {wrong}]]"},
    )
    path, bad = tmp_path / "s.txt", ", ".join(f'"{name}": {cell}' for name, cell in bad.items())
    path.write_text(f'{{"key": "0", {good}}}\n\n{{"key": "1", {good}}}\n')
    assert score("own", path, tmp_path)[0].value == 100.0
    path.write_text(f'{{"key": "0", {good}}}\n\n{{"key": "1", {bad}}}\n')
    with pytest.raises(DataError, match=f"line 3: score {wrong}; expected a finite number"):
        score("own", path, tmp_path)


def by_key(rows) -> dict[str, object]:
    return {row.key: row for row in rows}


def write_two(folder: Path, ids: tuple[str, str] = ("a", "b")) -> None:
    """Two files of pairs, of which the second has two items more and another number of foils."""
    for name, first, count, foils in (("one", ids[0], 2, 1), ("two", ids[1], 4, 2)):
        lines = [
            {
                "image": "x",
                "caption": "c",
                "foil": [f"f{n}" for n in range(foils)],
                "id": f"{first}{k}",
            }
            for k in range(count)
        ]
        write_lines(folder / f"{name}.jsonl", lines)


def test_a_file_goes_to_the_benchmarks_that_its_keys_and_shapes_are_of(tmp_path, caplog):
    write_two(tmp_path)
    path, right, wrong = tmp_path / "s.txt", [[1, 0]], [[0, 1, 0]]
    one = [{"key": f"a{k}", "scores": right} for k in range(2)]
    two = [{"key": f"b{k}", "scores": wrong} for k in range(4)]
    write_lines(path, [*two, *one])
    found = by_key(score("own", path, tmp_path))
    assert {key: (row.value, row.count) for key, row in found.items()} == {
        "own:one/all/score/accuracy": (100.0, 2),
        "own:two/all/score/accuracy": (0.0, 4),
    }
    assert "no scores" not in caplog.text
    write_lines(path, two)  # the other is not scored, and that is said
    assert [row.benchmark for row in score("own", path, tmp_path)] == ["own:two"]
    assert "no scores of own:one" in caplog.text

    write_two(tmp_path, ("a", "a"))  # the same keys, told apart by shape
    same = [{"key": f"a{k}", "scores": wrong} for k in range(4)]
    write_lines(path, same)
    assert [row.key for row in score("own", path, tmp_path)] == ["own:two/all/score/accuracy"]
    write_lines(path, one)
    assert [row.key for row in score("own", path, tmp_path)] == ["own:one/all/score/accuracy"]


def test_equal_keys_and_shapes_are_never_guessed(tmp_path):
    for name in ("one", "two"):
        pairs = [{"image": "x", "caption": "c", "foil": "f", "id": str(k)} for k in range(2)]
        write_lines(tmp_path / f"{name}.jsonl", pairs)
    path, lines = tmp_path / "s.txt", [{"key": str(k), "scores": [[k, 0]]} for k in range(2)]
    write_lines(path, lines)
    with pytest.raises(DataError, match="those of own:one and of own:two.*pass --only own:one"):
        score("own", path, tmp_path)
    assert [row.key for row in score("own", path, tmp_path, only="own:two")] == [
        "own:two/all/score/accuracy"
    ]
    both = [{**line, "benchmark": "own:one"} for line in lines]
    both += [{"benchmark": "own:two", "key": str(k), "scores": [[1, 0]]} for k in range(2)]
    write_lines(path, both)
    found = by_key(score("own", path, tmp_path))
    assert found["own:one/all/score/accuracy"].value == 50.0
    assert found["own:two/all/score/accuracy"].value == 100.0
    write_lines(path, [{**lines[0], "benchmark": "own:three"}])
    with pytest.raises(DataError, match="benchmark 'own:three'; expected one of own:one, own:two"):
        score("own", path, tmp_path)
    with pytest.raises(ConfigError, match="--only 'two'; expected one of own:one, own:two"):
        score("own", path, tmp_path, only="two")


def test_items_without_scores_are_few_and_named(tmp_path, caplog):
    """As many as --max-dropped lets; of a results.json also those that it says it lost."""
    from nas_jax.evals import results

    pairs = [{"image": "x", "caption": "c", "foil": "f", "id": f"k{k}"} for k in range(20)]
    write_lines(tmp_path / "mine.jsonl", pairs)
    path, lines = tmp_path / "s.txt", [{"key": f"k{k}", "scores": [1, 0]} for k in range(18)]
    write_lines(path, lines)
    with pytest.raises(DataError, match=r"2 items of own:mine without scores \('k18', 'k19'\), 0"):
        score("own", path, tmp_path)
    assert score("own", path, tmp_path, max_dropped=0.1)[0].count == 18
    assert "2 of 20 items of own:mine have no score and are left out, like 'k18'" in caplog.text
    write_lines(path, [*lines, {"key": "zz", "scores": [1, 0]}])
    with pytest.raises(DataError, match=r"2 items .*, 1 scores of other items \('zz'\)"):
        score("own", path, tmp_path, max_dropped=0.5)

    keys = tuple(f"k{k}" for k in range(18))
    columns = {"keys": keys, "categories": ("none",) * 18, "units": (0,) * 18, "rows": ()}
    columns |= {"scores": {name: [[[1.0, 0.0]]] * 18 for name in ("itc", "itm")}, "counts": {}}
    for lost in (2, 1):
        one = results.Result("own:mine", "choice", {}, {"missing picture": lost}, **columns)
        folder = results.write(tmp_path / f"lost{lost}", {}, [one])
        if lost == 2:
            found = score("own", folder / "results.json", tmp_path)
            assert [(row.scorer, row.count) for row in found] == [("itc", 18), ("itm", 18)]
            (row,) = score("own", folder / "results.json", tmp_path, "itm")
            assert row.scorer == "itm"
            with pytest.raises(ConfigError, match="one of itc, itm, which"):
                score("own", folder / "results.json", tmp_path, "score")
        else:
            with pytest.raises(DataError, match="2 items of own:mine without scores"):
                score("own", folder / "results.json", tmp_path)


def test_a_flat_list_is_one_picture_or_one_text_and_nothing_else(tmp_path):
    write_lines(tmp_path / "mine.jsonl", [{"image": "x", "caption": "c", "foil": "f", "id": "k"}])
    path = tmp_path / "s.txt"
    write_lines(path, [{"key": "k", "scores": [1, 0]}])
    assert score("own", path, tmp_path)[0].value == 100.0
    for wrong in ([[1], [0]], [1, 0, 0]):
        write_lines(path, [{"key": "k", "scores": wrong}])
        with pytest.raises(DataError, match=r"for 'k'; expected \(1, 2\)"):
            score("own", path, tmp_path)
    quad = {"image_0": "x", "image_1": "y", "caption_0": "c", "caption_1": "d", "id": "k"}
    write_lines(tmp_path / "mine.jsonl", [quad])
    write_lines(path, [{"key": "k", "scores": [1, 0, 0, 1]}])  # which is first is not said
    with pytest.raises(DataError, match=r"shape \(4,\) for 'k'; expected \(2, 2\)"):
        score("own", path, tmp_path)


def test_scores_without_picture_are_subtracted(tmp_path):
    """The text decides for the foil; what the picture adds decides for the caption."""
    lines = [{"image": "x", "caption": "c", "foil": "f", "id": f"k{k}"} for k in range(4)]
    write_lines(tmp_path / "mine.jsonl", lines)
    path = tmp_path / "s.txt"
    cells = [
        {"key": f"k{k}", "scores": [1, 2], "blind": [0.5, 2 if k < 3 else 1]} for k in range(4)
    ]
    write_lines(path, cells)
    (plain,) = score("own", path, tmp_path, "itm")
    assert (plain.value, plain.blind) == (0.0, 0.0)
    found = by_key(score("own", path, tmp_path, "itm", subtract_blind=True))
    assert found["own:mine/all/itm/accuracy"].value == 0.0
    assert found["own:mine/all/itm-blind/accuracy"].value == 75.0
    write_lines(path, [{name: cell[name] for name in ("key", "scores")} for cell in cells])
    with pytest.raises(ConfigError, match="--subtract-blind, but .* has none"):
        score("own", path, tmp_path, subtract_blind=True)


# ------------------------------------------------------------------------------ published forms

VSR = [("on", 1), ("near", 0), ("on", 0), ("behind", 0)]


def write_vsr(folder: Path, split: str, labels: list[tuple[str, int]]) -> None:
    (folder / split).mkdir(parents=True)
    write_lines(folder / split / "test.jsonl", [
        {"image": f"{k}.jpg", "caption": f"it {k}", "relation": relation, "label": label}
        for k, (relation, label) in enumerate(labels)
    ])  # fmt: skip


def test_vsr_as_published_joins_the_split_that_its_labels_are_of(tmp_path):
    write_vsr(tmp_path / "data" / "splits", "random", VSR)
    write_vsr(tmp_path / "data" / "splits", "zeroshot", VSR[::-1])
    write_vsr(tmp_path / "one", "random", VSR[::-1])
    path, probabilities = tmp_path / "scores.jsonl", (0.9, 0.2, 0.8, 0.5)
    lines = [
        {"label": label, "score": p, "relation": relation, "id": k}
        for k, ((relation, label), p) in enumerate(zip(VSR, probabilities, strict=True))
    ]
    write_lines(path, lines)
    for data in (None, tmp_path):
        name = "vsr_random" if data else "vsr"
        found = by_key(score("vsr", path, data))
        assert found[f"{name}/all/probability/accuracy"].value == 50.0
        assert found[f"{name}/all/probability/accuracy"].ties == 1  # exactly at the threshold
        assert found[f"{name}/Topological/probability/accuracy"].value == 50.0
        assert found[f"{name}/Proximity/probability/accuracy"].value == 100.0
        assert found[f"{name}/Projective/probability/accuracy"].value == 0.0
    with pytest.raises(DataError, match="label 1 of item 1; expected 0, as vsr_random has it"):
        score("vsr", path, tmp_path / "one")


SVO = [("A man walks.", 1, 2), ("a man walks", 1, 3), ("A dog sits.", 4, 5)]


def test_svo_counts_sentences_as_written_and_ranks_as_published(tmp_path):
    columns = "sentence,pos_triplet,neg_triplet,pos_url,neg_url,pos_image_id,neg_image_id"
    rows = [f'"{s}","a,b,c","a,d,c",u,v,{p},{n},False,True,False' for s, p, n in SVO]
    head = f"{columns},subj_neg,verb_neg,obj_neg"
    (tmp_path / "svo_probes.csv").write_text("\n".join([head, *rows]))
    path = tmp_path / "scores.jsonl"
    cells = [[[2], [-1]], [[2], [-1]], [[-2], [-1]]]
    write_lines(path, [{"key": str(k), "scores": cell} for k, cell in enumerate(cells)])
    found = by_key(score("svo", path, tmp_path, "itm"))
    assert found["svo/all/itm/p_pos"].value == pytest.approx(200 / 3)  # cleaned: 50.0
    assert found["svo/all/itm/p_pos"].count == 3
    flags = {"subj_neg": False, "verb_neg": True, "obj_neg": False, "pos_triplet": "a,b,c"}
    write_lines(path, [
        {"label": f"{k}_{side}", "score": 1 / (1 + math.exp(-value)), **flags}
        for k, cell in enumerate(cells) for side, (value,) in zip("pn", cell, strict=True)
    ])  # fmt: skip
    for data in (None, tmp_path):
        found = by_key(score("svo", path, data))
        assert found["svo/all/probability/accuracy"].value == pytest.approx(200 / 3)
        assert ("svo/all/probability/p_pos" in found) == (data is not None)
    (benchmark,) = load_benchmark("svo", tmp_path)
    assert benchmark.headline == "all/accuracy"


def test_check_compares_vsr_and_leaves_nothing_out(tmp_path):
    (tmp_path / "VSR_random" / "albef").mkdir(parents=True)
    write_lines(tmp_path / "VSR_random" / "albef" / "albef_test.jsonl", [
        {"label": label, "score": p, "relation": relation, "id": k}
        for k, ((relation, label), p) in enumerate(zip(VSR, (0.9, 0.2, 0.8, 0.6), strict=True))
    ])  # fmt: skip
    numbers = {"Topological": 50.0, "Proximity": 100.0, "Projective": 0.1, "overall": 50.0}
    (tmp_path / "expected.json").write_text(json.dumps({"vsr_random": {"albef": numbers}}))
    found = {one.what: (one.published, one.ours, one.same) for one in check(tmp_path)}
    assert found == {
        "Topological": (50.0, 50.0, True), "Proximity": (100.0, 100.0, True),
        "Projective": (0.1, 0.0, False), "overall": (50.0, 50.0, True),
    }  # fmt: skip
    (tmp_path / "expected.json").write_text(json.dumps({"aro": {"albef": {"all": 1.0}}}))
    with pytest.raises(DataError, match="expected.json with 'aro'; expected numbers of valse"):
        check(tmp_path)


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
        ([{"label": "1_c2_i0", "score": 1}], DataError, "line 1: label '1_c2_i0'"),
        ([{"label": "1_c0_i0", "score": 1}] * 2, DataError, "line 2: item 1 has this score twice"),
        ([{"label": "1_c0_i0", "score": 1}], DataError, "item 1 has 1 scores; expected 4"),
        ([{"label": "1_c0_i0", "score": "x"}], DataError, 'line 1, item 1: score "x"'),
        ([{"instrument": "a", "type": "b", "id": 1, "score": 1}], DataError, "line 1: instrument"),
        ([{"key": "a", "scores": [[1]]}] * 2, DataError, "line 2: a second line of key 'a'"),
        ([{"key": "a", "scores": "x"}], DataError, 'line 1: scores "x"'),
        ([{"key": "a", "scores": [[1]]}], ConfigError, "without --data"),
        ([{"key": "a", "scores": [[1]]}, {"key": "b"}], DataError, "line 2: fields key"),
        ([{"key": "a", "scores": [[1, 2], [1]]}], DataError, "line 1: lists of 2, 1 scores"),
        ([{"key": "a", "scores": [[1]], "blind": [[1]]}, {"key": "b", "scores": [[1]]}],
         DataError, "blind scores of 1 of 2 items"),
        ([{"id": 0, "relation": "on", "label": 2, "score": 1}], DataError, "label 0 or 1"),
        ([{"key": "a", "scores": [[1]]}, 3], DataError, "line 2: 3"),
    ],
)  # fmt: skip
def test_malformed_scores(tmp_path, lines, kind, message):
    write_lines(tmp_path / "scores.jsonl", lines)
    with pytest.raises(kind, match=message):
        score("winoground", tmp_path / "scores.jsonl")


def test_command_line_errors_are_one_line(tmp_path, capsys):
    for argv, code in (
        (["valse"], 2),
        (["vlase", "--scores", "x"], 2),
        (["own", "--scores", "x", "--scorer", "itmm"], 2),
        (["own", "--scores", "x", "--max-dropped", "2"], 2),
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
