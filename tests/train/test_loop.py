"""The loop with a method of three lines: what it promises about resuming, diverging and
stopping.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.parallel.mesh import make_mesh
from nas_jax.train.config import TrainConfig
from nas_jax.train.going_on import Course
from nas_jax.train.loop import Training, run
from nas_jax.utils.errors import CheckpointError, ConfigError, DataError, DivergedError

TOTAL = 20
CONFIG = TrainConfig(steps=TOTAL, log_every=1, eval_every=5, checkpoint_every=5)
RECORD = {"optimizer": {"learning_rate": 0.1}, "train": {"steps": TOTAL, "log_every": 1}}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    method_state: dict
    rng: jax.Array


@dataclasses.dataclass(frozen=True)
class Metric:
    key: str
    value: float


def init_state():
    rng = jax.random.key(0)
    params = {"w_D": jax.random.normal(rng, (16,))}
    return State(jnp.int32(0), params, {"mean": jnp.zeros(16)}, jax.random.key_data(rng))


@functools.cache  # so that all runs share one compilation
def make_step(nan_loss_at=-1, nan_params_at=-1):
    def train_step(state, batch, stage):
        noise = jax.random.normal(
            jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), (16,)
        )
        loss, grad = jax.value_and_grad(lambda w: ((batch["x_BxD"] @ w - 1.0) ** 2).mean())(
            state.params["w_D"]
        )
        step = state.step + 1
        loss = jnp.where(step == nan_loss_at, jnp.nan, loss)
        w_D = state.params["w_D"] - (0.01 if stage == "early" else 0.005) * grad + 0.001 * noise
        w_D = jnp.where(step == nan_params_at, jnp.inf, w_D)
        mean = 0.9 * state.method_state["mean"] + 0.1 * w_D
        return state.replace(step=step, params={"w_D": w_D}, method_state={"mean": mean}), {
            "loss": loss,
            "loss/itc": loss / 2,
            "optim/grad_norm": jnp.linalg.norm(grad),
        }

    return train_step


def batches(start, end=10**9):
    for step in range(start, end):
        rng = np.random.default_rng(step)
        yield {
            "x_BxD": rng.normal(size=(8, 16)).astype(np.float32),
            "skipped_B": rng.random(8) < 0.2,
        }


def evaluator(params, method_state, step):
    return [
        Metric("val/sum", float(params["w_D"].sum())),
        Metric("val/mean", float(method_state["mean"].mean())),
    ]


def train(workdir, config=CONFIG, step=None, hook=None, record=RECORD, **kwargs):
    """hook: called with each step before it."""

    def stage(step):
        if hook:
            hook(step + 1)
        return "early" if step < 12 else "late"

    of_run = {name: kwargs.pop(name) for name in ("defaults", "clock", "console") if name in kwargs}
    parts = {
        "batches": batches,
        "total_steps": config.steps,
        "mesh": make_mesh(),
        "evaluators": [evaluator],
        "stage": stage,
    }
    training = Training(step or make_step(), init_state, **parts | kwargs)
    return run(training, config, workdir, record, **of_run)


def send_at(step, number):
    return lambda now: os.kill(os.getpid(), number) if now == step else None


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return train(workdir), workdir


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_counts_and_records(uninterrupted, capsys):
    result, workdir = uninterrupted
    entries = metrics_of(workdir)
    train_entries = [entry for entry in entries if entry["kind"] == "train"]
    assert [entry["step"] for entry in train_entries] == list(range(1, TOTAL + 1))
    assert [entry["step"] for entry in entries if entry["kind"] == "eval"] == [5, 10, 15, 20]
    assert train_entries[-1]["loss"] < train_entries[0]["loss"]
    skipped = sum(int(batch["skipped_B"].sum()) for batch in batches(0, end=TOTAL))
    assert train_entries[-1]["data/skipped"] == skipped > 0
    timings = [json.loads(line) for line in (workdir / "timings.jsonl").read_text().splitlines()]
    assert all(
        0 <= entry["input_share"] <= 1 and entry["pairs_per_second"] > 0 for entry in timings
    )
    assert list((workdir / "tensorboard").glob("events*"))
    with CheckpointManager(workdir / "checkpoints", read_only=True) as manager:
        assert manager.metadata(TOTAL) == {"config": RECORD}
    assert int(result.state.step) == result.step == TOTAL and result.exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_continued_equals_never_interrupted(
    tmp_path, uninterrupted, number, capsys
):
    before = signal.getsignal(number)
    first = train(tmp_path, hook=send_at(8, number))  # not a multiple of any interval
    assert (first.step, first.exit_code) == (8, 128 + number)
    assert "step 8/20" in capsys.readouterr().out
    assert_same(train(tmp_path).state, uninterrupted[0].state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        uninterrupted[1] / "metrics.jsonl"
    ).read_bytes()
    assert signal.getsignal(number) == before  # handlers are given back


def test_other_records_are_refused(tmp_path):
    """A data position means nothing on other data."""
    train(tmp_path, total_steps=5, data_id="ab12")
    with pytest.raises(CheckpointError, match="on other records .digest ab12, here cd34."):
        train(tmp_path, data_id="cd34")
    assert train(tmp_path, total_steps=6, data_id="ab12").step == 6


def test_killed_between_checkpoints_repeats_the_lost_steps(tmp_path, uninterrupted):
    class Killed(Exception):
        pass

    def kill(step):
        if step == 14:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, hook=kill)
    path = tmp_path / "metrics.jsonl"
    assert metrics_of(tmp_path)[-1]["step"] > 10
    with path.open("a") as file:
        file.write('{"step": 13, "ki')  # as a kill inside a write leaves it
    evaluation = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if '"step": 10, "kind": "eval"' in line
    ]
    # as a kill inside the evaluation leaves it
    path.write_text(path.read_text().replace(evaluation[0], ""))
    assert_same(train(tmp_path).state, uninterrupted[0].state)
    assert path.read_bytes() == (uninterrupted[1] / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("fault", ["nan_loss_at", "nan_params_at"])
@pytest.mark.parametrize("at", [10, 13])  # at a checkpoint, and between two
def test_a_diverged_state_is_never_saved(tmp_path, fault, at):
    with pytest.raises(DivergedError, match=r"last good checkpoint: step (5|10) in") as error:
        train(tmp_path, step=make_step(**{fault: at}))
    assert f"not finite at step {at}" in str(error.value) or fault == "nan_params_at"
    good = 5 if at == 10 else 10
    with CheckpointManager(tmp_path / "checkpoints", read_only=True) as manager:
        assert manager.latest_step() == good
    assert max(entry["step"] for entry in metrics_of(tmp_path)) <= at
    healthy = train(tmp_path)
    assert np.isfinite(healthy.state.params["w_D"]).all() and healthy.step == TOTAL


def test_another_config_is_refused_and_named(tmp_path):
    with pytest.raises(DataError):  # before its first checkpoint a config may be mended
        train(
            tmp_path,
            batches=lambda start: batches(start, end=3),
            record={"optimizer": {"learning_rate": 9}},
        )
    train(tmp_path, dataclasses.replace(CONFIG, steps=2))
    changed = {"optimizer": {"learning_rate": 0.3}, "train": {"steps": 4, "log_every": 9}}
    with pytest.raises(
        CheckpointError, match=r"optimizer.learning_rate \(0.1, 0.3\); expected .*--workdir"
    ) as error:
        train(tmp_path, record=changed)
    assert "train.steps" not in str(error.value)
    record = RECORD | {"train": {"steps": 4, "log_every": 9}}
    assert train(tmp_path, dataclasses.replace(CONFIG, steps=4), record=record).step == 4


def test_time_budget_saves_evaluates_and_goes_on(tmp_path, uninterrupted, capsys):
    now = [0.0]

    def tick(step):
        now[0] += 1.0

    first = train(
        tmp_path,
        dataclasses.replace(CONFIG, stop_after_seconds=7.0),
        hook=tick,  # a second a step
        clock=lambda: now[0],
        report=lambda step, metrics: f"{len(metrics)} metrics at {step}",
    )
    assert (first.step, first.exit_code) == (7, 0)
    assert metrics_of(tmp_path)[-1]["kind"] == "eval"
    assert "2 metrics at 5\n" in (out := capsys.readouterr().out) and "2 metrics at 7\n" in out
    assert_same(train(tmp_path).state, uninterrupted[0].state)
    assert_same(train(tmp_path).state, uninterrupted[0].state)  # nothing left to do
    assert "nothing left to train" in capsys.readouterr().out


def test_data_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(DataError, match="ended before step 4; expected 20 batches"):
        train(tmp_path, batches=lambda start: batches(start, end=3))


@pytest.mark.parametrize(
    "field",
    [
        {"log_every": 0},
        {"epochs": 0, "steps": 0},
        {"keep_checkpoints": 0},
        {"stop_after_seconds": -1.0},
    ],
)
def test_train_config_names_the_bad_field(field):
    with pytest.raises(ConfigError, match=f"train.{next(iter(field))}"):
        TrainConfig(**field).validate()


def test_what_changes_between_two_starts_is_said(tmp_path, capsys):
    def record(steps):
        optimizer = {"schedule": "smooth", "lr": 1e-3, "warmup_steps": 2}
        return {"data": {"batch_size": 8}, "optimizer": optimizer, "train": {"steps": steps}}

    for steps, line in (
        (5, ""),
        (10, "train.steps 5 -> 10: the learning rate goes from"),
        (10, ""),
    ):
        config = dataclasses.replace(CONFIG, steps=steps)
        course = Course(record(steps), 40)
        train(tmp_path, config, record=record(steps), course=course)
        out = capsys.readouterr().out
        assert (line in out) if line else ("the learning rate" not in out)
