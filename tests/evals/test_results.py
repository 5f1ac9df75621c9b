"""The command line, what it writes, and the comparison of two models."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import main
from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.data.tokenizer import learn_wordpiece
from nas_jax.evals import __main__ as command
from nas_jax.evals import compare, results
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.metrics import Metric
from nas_jax.evals.pairs import check_answers_differ
from nas_jax.evals.questions import Benchmark, Question
from nas_jax.evals.results import Result
from nas_jax.train.trained import Trained
from nas_jax.utils.errors import CheckpointError, ConfigError, DataError

WORDS = "a red blue green cat dog bird left right of the on"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a run of the smallest NAS leaves: config, tokenizer, two checkpoints with other
    weights.
    """
    folder = tmp_path_factory.mktemp("run") / "nas"
    tokenizer = learn_wordpiece([WORDS], 120)
    tokenizer.save(folder / "tokenizer")
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_text_length=16, init_std=0.3)
    method = tiny.method("nas", model=model)
    sections = {"model": model, "method": method.config}
    config = {name: dataclasses.asdict(section) for name, section in sections.items()}
    (folder / "config.json").write_text(
        json.dumps({"name": "tiny", "seed": 0, "data": {}} | config)
    )
    abstract, state = jax.eval_shape(method.init, jax.random.key(0))
    with CheckpointManager(folder / "checkpoints") as manager:
        for step in (10, 20):
            rng = np.random.default_rng(step)
            tree = {"params": abstract, "method_state": {"dictionary": state["dictionary"]}}
            tree = jax.tree.map(
                lambda leaf, rng=rng: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), tree
            )
            manager.save(step, tree, {"next_step": step}, {})
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six pairs over three pictures, of two categories."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for number, colour in enumerate(("red", "blue", "green")):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for category, animal in (("colour", "cat"), ("animal", "dog")):
            foil = f"a bird left of {animal}"
            lines.append(
                {
                    "image": f"{number}.png",
                    "caption": f"a {colour} {animal}",
                    "foil": foil,
                    "category": category,
                }
            )
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_command_writes_every_score_and_the_protocol(workdir, pairs, tmp_path, capsys):
    arguments = ["--checkpoint", workdir, "--benchmark", "own", "--data", pairs, "--out", tmp_path]
    arguments += ["--text-length", 16, "--batch-size", 4, "--match-rows", 16]
    assert command.main([*map(str, arguments), "--scorer", "itm,itm+itc"]) == 0
    assert "own:mine/all/itm/accuracy" in capsys.readouterr().out

    protocol, (result,) = results.read(tmp_path)
    found = protocol["checkpoint"]
    assert (found["path"], found["name"], found["step"]) == ("nas/checkpoints/20", "tiny", 20)
    assert protocol["text_length"] == 16 and protocol["scorers"] == ["itm", "itm+itc"]
    checkpoints = [workdir / "checkpoints" / step for step in ("10", "20")]
    digests = [results.digest(one, ("dictionary",)) for one in checkpoints]
    assert protocol["checkpoint"]["digest"] == digests[1] != digests[0] and len(digests[0]) == 16
    assert result.counts == {"questions": 6, "images": 3, "texts": 8}
    assert result.units == (0, 0, 1, 1, 2, 2)
    assert result.averages == {"macro": ("animal", "colour")}
    # The table follows from the scores in the file.
    cells = np.array(result.scores["itm"])
    assert cells.shape == (6, 1, 2) and len(set(cells.ravel())) == 12
    wins = cells[:, 0, 0] > cells[:, 0, 1]
    assert result.hits["itm"]["accuracy"] == wins.tolist()
    row = result.rows[0]
    assert (row.key, row.value) == ("own:mine/all/itm/accuracy", pytest.approx(100 * wins.mean()))
    blind = np.array(result.blind["itm"])
    assert row.blind == pytest.approx(100 * (blind[:, 0, 0] > blind[:, 0, 1]).mean())

    # Written and read again, nothing changes; the page needs no network.
    results.write(tmp_path / "again", protocol, [result])
    assert results.read(tmp_path / "again") == (protocol, [result])
    page = (tmp_path / "again" / "results.html").read_text()
    assert "http" not in page and "<script" not in page and page.count("<svg") == len(result.rows)
    assert (tmp_path / "again" / "results.md").read_text().count("| own") == 0


def test_wrong_use_is_one_line(workdir, pairs, tmp_path, capsys):
    given = ["--checkpoint", str(workdir), "--benchmark", "own", "--data", str(pairs)]

    def refused(arguments, error, match):
        with pytest.raises(error, match=match):
            command.run(arguments)

    refused(given, ConfigError, "--text-length=64 for a model with 16 text positions")
    refused(given[:-2], ConfigError, "no --data; expected the files of own")
    refused([*given, "--benchmark", "vlase"], ConfigError, "benchmark 'vlase'")
    refused([*given, "--scorer", "itm,clip"], ConfigError, "--scorer=")
    refused(
        [*given, "--checkpoint", str(tmp_path)],
        CheckpointError,
        "expected a work directory with config.json",
    )
    late = [*given, "--text-length", "16", "--checkpoint", str(workdir / "checkpoints" / "15")]
    refused(late, CheckpointError, "no checkpoint 15")
    assert command.main(given[:-2]) == 2 and capsys.readouterr().err.startswith("error: no --data")
    with pytest.raises(ConfigError, match="eval.benchmarks=.* without eval.data"):
        EvalConfig(benchmarks=("valse",)).validate()
    other = Trained(tmp_path, 1, {"model": {"depth": 3}}, {}, {})
    with pytest.raises(CheckpointError, match="config.json of the run: unknown .* model.depth"):
        assert other.model
    (tmp_path / "results.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="KeyError"):
        results.read(tmp_path)


def test_names_on_the_command_line_become_a_tuple():
    short = main._names_as_tuple
    assert short("--config.evals=valse,own") == "--config.eval.benchmarks=('valse', 'own')"
    assert short("--config.eval.benchmarks=own") == "--config.eval.benchmarks=('own',)"
    assert short("--config.evals=") == "--config.eval.benchmarks=()"
    for other in (
        "--config.eval.benchmarks=('a', 'b')",
        "--config.eval.scorers=('itm',)",
        "--config=configs/demo.py",
    ):
        assert short(other) == other


def test_the_check_for_cut_answers_knows_every_form():
    class Letters:
        def encode(self, texts, length):
            ids = np.array([[ord(letter) for letter in text.ljust(40)[:length]] for text in texts])
            return ids, ids > 0

    def check(form, *texts):
        check_answers_differ(
            Benchmark("b", form, (Question("0", "", (0,), texts),), (), {}), Letters(), 3
        )

    for form, texts in {
        "choice": ("abc", "xyz", "abcd"),
        "quad": ("abc", "abcd"),
        "two_true": ("xyz", "abcd", "abc"),
    }.items():
        with pytest.raises(ConfigError, match="text_length=3 cuts"):
            check(form, *texts)
    check("two_true", "abcd", "abce", "xyz")  # the two right ones may be alike
    check("picture", "abc")


def made_up(hits, name="own:mine", keys=None, units=None, **protocol) -> Result:
    """A result with these hits, of two categories in turn."""
    count = len(hits)
    numbers = {"value": 100 * float(np.mean(hits)), "low": 0.0, "high": 100.0, "chance": 50.0}
    row = Metric(name, "all", "itm", "accuracy", count=count, **numbers)
    return Result(
        name=name,
        form="choice",
        protocol=protocol,
        dropped={},
        counts={"questions": count},
        rows=(row,),
        keys=tuple(keys or map(str, range(count))),
        categories=tuple("xy"[i % 2] for i in range(count)),
        units=tuple(units if units is not None else range(count)),
        averages={"macro": ("x", "y")},
        hits={"itm": {"accuracy": [bool(hit) for hit in hits]}},
    )


def test_a_known_difference_is_significant_and_none_is_not():
    rng = np.random.default_rng(0)
    weak = rng.random(400) < 0.6
    # one of four questions more, evenly over both categories
    better = weak | (np.arange(400) % 8 < 2)
    same_rate = rng.permutation(weak)
    for second, significant in ((better, True), (same_rate, False)):
        rows = {row.part: row for row in compare.compare([made_up(weak)], [made_up(second)], 2000)}
        assert list(rows) == ["all", "macro", "x", "y"]
        row = rows["all"]
        assert row.difference == pytest.approx(100 * (second.mean() - weak.mean()))
        assert row.low <= row.difference <= row.high
        assert (
            (row.p < 0.01 and row.p_mcnemar < 0.01 and row.low > 0)
            if significant
            else (row.p > 0.05 > row.low)
        )
        assert rows["macro"].difference == pytest.approx(
            (rows["x"].difference + rows["y"].difference) / 2
        )
        assert rows["macro"].p_mcnemar is None
    nothing = compare.compare([made_up(weak)], [made_up(weak)], 200)[0]
    assert (nothing.difference, nothing.low, nothing.high) == (0, 0, 0)
    assert (nothing.p, nothing.p_mcnemar) == (1, 1)
    # A hundred questions about each of four pictures are four observations, not four hundred.
    units = np.arange(400) // 100
    again = np.where(units == 0, True, weak)
    pooled = compare.compare([made_up(weak, units=units)], [made_up(again, units=units)], 2000)[0]
    assert pooled.p > 0.05 and pooled.p_mcnemar is None


def test_the_comparison_is_a_command(tmp_path, capsys):
    protocol = {
        "checkpoint": {"name": "albef", "path": "albef/checkpoints/1"},
        "text_length": 64,
        "image_size": 64,
    }
    other = protocol | {
        "checkpoint": {"name": "nas", "path": "nas/checkpoints/1"},
        "image_size": 96,
    }
    results.write(tmp_path / "a", protocol, [made_up([True, False] * 9)])
    results.write(tmp_path / "b", other, [made_up([True] * 18)])
    assert (
        compare.main(
            [str(tmp_path / "a"), str(tmp_path / "b" / "results.json"), "--out", str(tmp_path)]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "B: nas (nas/checkpoints/1)" in told and "image_size: 64 in A, 96 in B" in told
    assert "| own:mine | all | itm | accuracy | 50.0 | 100.0 | +50.0 |" in told
    assert (tmp_path / "compare.md").read_text().strip() == told.strip()
    page = (tmp_path / "compare.html").read_text()
    assert "http" not in page and page.count("<svg") == 4
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "gone")]) == 3
    assert "gone: No such file" in capsys.readouterr().err


def test_other_items_or_rules_are_refused():
    one = made_up([True] * 4)
    for other, match in (
        (made_up([True] * 4, name="valse"), "A has own:mine, B has valse"),
        (
            made_up([True] * 4, keys=["0", "1", "2", "9"]),
            "1 items only in A and 1 only in B, like '3'",
        ),
        (made_up([True] * 4, crop="bounding box"), "protocol .* in B"),
    ):
        with pytest.raises(DataError, match=match):
            compare.compare([one], [other], 100)
    with pytest.raises(DataError, match="text_length=64 in A, 30 in B"):
        compare.check_protocols({"text_length": 64}, {"text_length": 30})
