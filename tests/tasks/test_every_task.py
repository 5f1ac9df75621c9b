"""What holds of all tasks: an account of the weights, results during training, the same numbers
after a restart and on several devices.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from task_runs import run_of

from nas_jax import runner
from nas_jax.config import from_config_dict, to_dict
from nas_jax.evals.config import check_has_scores
from nas_jax.evals.results import read
from nas_jax.methods import method_class
from nas_jax.tasks import TASKS
from nas_jax.tasks import task as task_file
from nas_jax.tasks.finetuned import FineTuned
from nas_jax.train.trained import open_trained
from nas_jax.utils.errors import ConfigError

MESHES = Path(__file__).parents[1] / "parallel/step_on_meshes.py"
# those with a network and a loss of their own; the others are ALBEF's or NAS's
NAMES = tuple(name for name, task in TASKS.items() if issubclass(task.method, FineTuned))


@pytest.fixture(autouse=True)
def few_items(monkeypatch):
    monkeypatch.setattr(task_file, "TEST_SCENES", 30)


@pytest.fixture(scope="module", params=NAMES)
def trained(request, pretrained, tmp_path_factory):
    """The name of a task, and the work directory of a run of four steps."""
    workdir = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_file, "TEST_SCENES", 30)
        assert runner.train(run_of(request.param, pretrained), workdir) == 0
    return request.param, workdir


def test_every_tensor_of_the_weights_and_of_the_model_is_listed(trained, pretrained):
    name, workdir = trained
    lines = [line.split(maxsplit=2) for line in (workdir / "weights.txt").read_text().splitlines()]
    actions = {tensor: action for action, tensor, *_ in lines}
    assert len(actions) == len(lines)
    model, weights = (
        {full.removeprefix("params/") for full in open_trained(one).saved if "params/" in full[:7]}
        for one in (workdir, pretrained)
    )
    of = {action: {t for t, a in actions.items() if a == action} for action in actions.values()}
    copied = {line[2].split()[1] for line in lines if line[0] == "copied"}
    assert of["used"] <= model & weights and of["unused"] == weights - model - copied
    made = of.get("new", set()) | of.get("copied", set())
    assert of["used"] | made == model
    assert {"mlm_head/bias", "temp"} - copied <= of["unused"]  # pretraining heads are gone
    assert any("head" in tensor for tensor in made)
    assert "text_encoder/word_embedding/embedding" in of["used"]


def test_results_say_how_they_were_made_and_are_beside_majority_and_text_alone(trained):
    name, workdir = trained
    if name == "nlvr2_ta":  # it prepares a model, and has no test of its own
        assert not (workdir / "evals/4").exists()
        return
    protocol, results = read(workdir / "evals/4")
    assert protocol["checkpoint"]["method"] == name and protocol["image_size"] == 16
    rows = {row.key: row for result in results for row in result.rows}
    assert set(TASKS[name].keys(TASKS[name].tests(run_of(name, "").data, 0))) <= rows.keys()
    for key in (f"{test}/all/{name}/{TASKS[name].quantities[0]}" for test in ("val", "heldout")):
        row = rows[key]
        assert row.count > 0 and row.blind is not None and 0 < row.chance < 100
        assert row.low <= row.value <= row.high
    assert all(result.protocol["chance"] and result.protocol["text-only"] for result in results)


def test_a_restart_gives_the_same_bits(trained, pretrained, tmp_path):
    name, workdir = trained
    half = run_of(name, pretrained, steps=2)
    assert runner.train(half, tmp_path) == 0
    assert runner.train(run_of(name, pretrained), tmp_path) == 0
    records = [open_trained(one).record["arrays"] for one in (workdir, tmp_path)]
    assert records[0] == records[1] and len(records[0]) > 100
    losses = [
        [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
        for one in (workdir, tmp_path)
    ]
    whole, again = ([e["loss"] for e in entries if "loss" in e] for entries in losses)
    assert whole == again and len(set(whole)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_step_is_the_same_on_eight_devices(name):
    done = subprocess.run(
        [sys.executable, str(MESHES), f"--method={name}", "mixed in 4 pieces"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])["mixed in 4 pieces"]
    assert found.pop("loss") < 1e-5
    assert found and all(error < 1e-4 for error, _ in found.values()), found


def test_the_dropout_and_the_teacher_are_on(pretrained):
    """Negative control of the two tests above: two seeds give two losses."""
    import jax
    import tiny

    from nas_jax.methods.draws import Draws

    method = tiny.built(TASKS["snli_ve"].method.Config(), model=tiny.model(dropout=0.3))
    params, state = method.init(jax.random.key(0))
    batch = tiny.batch(wants=method.wants)
    step = jax.jit(method.loss, static_argnums=5)
    args = (np.int32(3), None)
    one, other = (step(params, state, batch, Draws(jax.random.key(k)), *args)[0] for k in (1, 2))
    assert one != other
    moved = jax.tree.map(lambda leaf: leaf + 0.1, state)
    assert step(params, moved, batch, Draws(jax.random.key(1)), *args)[0] != one


def test_a_checkpoint_of_a_task_is_known_to_every_command():
    """Where nothing has imported the tasks yet, as in `python -m nas_jax.evals`."""
    program = "from nas_jax.methods import method_class; print(method_class('retrieval').__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "Retrieval", done.stderr[-500:]
    with pytest.raises(ConfigError, match="one of albef.*snli_ve"):
        method_class("vqa2")
    check_has_scores(TASKS["retrieval"].method, "this")
    with pytest.raises(ConfigError, match="a checkpoint of a method that gives .* no scores"):
        check_has_scores(TASKS["vqa"].method, "a checkpoint")


def test_what_only_pretraining_has_is_refused():
    run = to_dict(run_of("snli_ve", ""))
    with pytest.raises(ConfigError, match="gives pictures and captions no scores"):
        from_config_dict(run | {"eval": {"benchmarks": ("valse",), "data": "x"}})
    with pytest.raises(ConfigError, match="of albef"):
        from_config_dict(run | {"method": {"name": "snli_ve", "itc": {}}})
    data = replace(run_of("snli_ve", "").data, siblings=2)
    with pytest.raises(ValueError, match="they are for pretraining"):
        TASKS["snli_ve"].open_source(data, "train", 0)
