"""What the hub reads of a card: front matter, model-index and `.eval_results/`."""

from __future__ import annotations

import argparse
import json
import os

import exports
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from nas_jax.convert import card_data, model_card
from nas_jax.convert.__main__ import main
from nas_jax.convert.export import Export
from nas_jax.convert.gate_rows import TOLERANCE, GateReport, OutputRow
from nas_jax.convert.hf_config import export_config
from nas_jax.evals import results
from nas_jax.evals.metrics import Metric
from nas_jax.train.trained import open_trained

KEY = "winoground/all/itm/group"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return open_trained(exports.save_nas(tmp_path_factory.mktemp("run"), exports.tokenizer()))


def evaluated(trained, folder, step=3):
    """A results.json of that checkpoint: a quad benchmark and a retrieval without an interval."""
    where = {"benchmark": "winoground", "scorer": "itm", "quantity": "group"}
    quads = [
        Metric(part="all", **where, value=31.25, low=27.0, high=35.5, chance=50 / 3, count=400),
        Metric(part="both", **where, value=12.5, chance=50 / 3, blind=0.0, count=26),
    ]
    recall = Metric("val:x", "retrieval", "itc", "r@1", value=7.0, chance=100 / 9, count=9)
    common = {"dropped": {}, "keys": (), "units": ()}
    found = [
        results.Result(
            "winoground", "quad", {"crop": "none"}, counts={"questions": 400}, rows=tuple(quads),
            categories=("both",), **common,
        ),
        results.Result(
            "val:x", "retrieval", {}, counts={"queries": 9}, rows=(recall,), categories=("none",),
            **common,
        ),
    ]  # fmt: skip
    about = results.about_checkpoint(trained.workdir, 3, trained.config["name"], trained.method)
    protocol = {"checkpoint": about | {"step": step}, "image_size": 16, "text_length": 14}
    return results.write(folder, protocol, found)


def labels(*words) -> card_data.Labels:
    parser = argparse.ArgumentParser()
    card_data.add_arguments(parser)
    return card_data.labels_of(parser.parse_args([str(word) for word in words]))


def card_of(trained, given) -> tuple[str, list]:
    report = GateReport((OutputRow("real/itm_logits", 1e-6, TOLERANCE),), "5", 0, 0)
    config = export_config(trained, trained.tokenizer)
    made = Export(trained.workdir, trained, "nas", config, report, "", "python", print)
    measured = card_data.read_results(given, trained)
    return model_card.write(made, ["A note."], given, measured), measured


def test_measured_numbers_become_a_model_index_with_n_and_protocol(trained, tmp_path):
    folder = evaluated(trained, tmp_path / "results")
    given = labels(
        *("--license", "apache-2.0", "--base_model", "owner/bert", "--language", "en"),
        *("--datasets", "owner/pairs", "--datasets", "other", "--results", folder),
        *("--leaderboard", f"{KEY}=owner/winoground:default"),
    )
    text, measured = card_of(trained, given)
    card = ModelCard(text)
    data = card.data
    assert (data.license, data.language, data.library_name) == (
        "apache-2.0", ["en"], "transformers"
    )  # fmt: skip
    assert (data.base_model, data.datasets) == (["owner/bert"], ["owner/pairs", "other"])
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert {"nas", "nas_jax", "image-text-matching"} <= set(data.tags)
    assert data.model_name == trained.config["name"]
    # no single category; the id of the leaderboard, or one that the hub takes
    group, recall = data.eval_results
    assert (group.task_type, group.dataset_type) == ("image-text-matching", "owner/winoground")
    assert (group.metric_type, group.metric_value) == ("group", 31.25)
    assert group.metric_args == {"n": 400, "low": 27.0, "high": 35.5, "chance": 16.6667}
    assert group.dataset_args["image_size"] == 16 and group.dataset_args["crop"] == "none"
    assert group.dataset_args["questions"] == "400 questions"
    assert (recall.task_type, recall.dataset_type) == ("image-text-retrieval", "val-x")
    assert recall.metric_args == {"n": 9, "chance": 11.1111} and recall.metric_value == 7.0
    assert str(trained.workdir) not in text and trained.workdir.name not in text
    assert "| winoground/both/itm/group | 12.5 |  | 16.7 | 0.0 | 26 |" in card.text
    assert "A note." in card.text and "License: apache-2.0." in card.text

    card_data.write_eval_results(tmp_path, given, measured)
    (file,) = (tmp_path / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("owner/winoground", "default", 31.25)
    assert KEY in entry.notes and "n 400" in entry.notes and "percent" in entry.notes


def test_classes_are_a_task_of_their_own_and_random_weights_no_result(trained, tmp_path):
    where = {"benchmark": "classes:photo@1", "part": "all", "quantity": "accuracy"}
    rows = tuple(
        Metric(**where, scorer=scorer, value=50.0, chance=10.0, count=9)
        for scorer in ("probe", "untrained", "itc")
    )
    found = results.Result(
        "classes:photo@1", "choice", {"classes": "10"}, {}, {"questions": 9}, rows, (), ("a",), ()
    )
    about = results.about_checkpoint(trained.workdir, 3, trained.config["name"], trained.method)
    folders = evaluated(trained, tmp_path / "a"), tmp_path / "b"
    results.write(folders[1], {"checkpoint": about}, [found])
    given = labels(
        "--results", folders[0], "--results", folders[1], folders[1]
    )  # as good as both behind one
    text, measured = card_of(trained, given)
    tasks = {one.metric_name: one.task_type for one in ModelCard(text).data.eval_results}
    assert tasks == {
        f"{KEY}, percent": "image-text-matching",
        "val:x/retrieval/itc/r@1, percent": "image-text-retrieval",
        "classes:photo@1/all/probe/accuracy, percent": "image-classification",
        "classes:photo@1/all/itc/accuracy, percent": "zero-shot-image-classification",
    }
    assert "| classes:photo@1/all/untrained/accuracy | 50.0 |" in text  # the table has it beside
    key = "classes:photo@1/all/untrained/accuracy=owner/x:y"
    with pytest.raises(card_data.ConfigError, match="untrained"):
        card_data.read_results(labels("--results", folders[1], "--leaderboard", key), trained)


def test_without_flags_nothing_is_made_up(trained):
    text, _ = card_of(trained, labels())
    data = ModelCard(text).data.to_dict()
    assert data.keys() == {"library_name", "pipeline_tag", "tags"}
    assert "No license is given" in text and "no evaluation on file" in text


def test_numbers_of_other_weights_are_refused(trained, tmp_path, capsys):
    """Before anything is computed, with nothing left."""
    other = evaluated(trained, tmp_path / "other", step=2)
    code = main(
        ["to-hf", "--checkpoint", str(trained.workdir), "--out", str(tmp_path / "out")]
        + ["--results", str(other)]
    )
    said = capsys.readouterr().err
    assert code == 3 and "expected results of checkpoint 3" in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == ["other"]

    changed = json.loads((other / "results.json").read_text())
    changed["protocol"]["checkpoint"] |= {"step": 3, "digest": "0" * 16}
    (other / "results.json").write_text(json.dumps(changed))
    with pytest.raises(card_data.DataError, match="expected results of checkpoint 3"):
        card_data.read_results(labels("--results", other), trained)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--license", "Apache 2"], "a license id of the hub"),
        (["--language", "English"], "ISO 639"),
        (["--base_model", "weights/of/bert"], "OWNER/NAME"),
        (["--leaderboard", "a/b"], "KEY=DATASET:TASK"),
        (["--leaderboard", f"{KEY}=owner/winoground:default"], "--results with it"),
    ],
)
def test_what_the_hub_would_refuse_is_one_line(trained, words, match):
    with pytest.raises(card_data.ConfigError, match=match):
        card_data.read_results(labels(*words), trained)


def test_the_same_metric_twice_is_refused(trained, tmp_path):
    folders = [evaluated(trained, tmp_path / name) for name in "ab"]
    with pytest.raises(card_data.DataError, match="each metric once"):
        card_data.read_results(labels("--results", *folders), trained)
