"""Watching a run: what is recorded of every step, trackers, the watchdog and the profile.

The step is one of a line.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import threading
import time
import types
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax.methods.method import Method, norm_distance
from nas_jax.parallel.mesh import make_mesh
from nas_jax.train import watch
from nas_jax.train.config import RESUMABLE, TrainConfig
from nas_jax.train.loop import Training, run
from nas_jax.train.machine import PEAKS, matmul_flops, memory, peak_flops
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.state import TrainState
from nas_jax.train.step import make_train_step
from nas_jax.train.watchdog import Watchdog
from nas_jax.utils.errors import ConfigError

CONFIG = TrainConfig(steps=8, log_every=2, checkpoint_every=4, hang_seconds=0.0)
RECORD = {"name": "tiny", "optimizer": {"lr": 0.1}}
STUCK = 1.0  # seconds that a stuck step takes
LIMIT = 0.25  # and after how many the watchdog reports


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    method_state: dict


def init_state():
    return State(jnp.int32(0), {"w_DxD": jnp.eye(8)}, {})


def sleep_at(step, seconds):
    time.sleep(float(seconds) if int(step) == 6 else 0.0)
    return np.float32(0)


@functools.cache
def make_step(stuck=0.0):
    def step(state, batch, stage):
        pause = (
            jax.pure_callback(
                sleep_at, jax.ShapeDtypeStruct((), jnp.float32), state.step + 1, stuck
            )
            if stuck
            else 0
        )
        loss = jnp.square(batch["x_BxD"] @ state.params["w_DxD"]).mean() + pause
        return state.replace(step=state.step + 1), {"loss": loss}

    return step


def batches(start, stuck_at=None):
    for step in range(start, 100):
        if step + 1 == stuck_at:
            time.sleep(STUCK)
        yield {"x_BxD": np.random.default_rng(step).normal(size=(4, 8)).astype(np.float32)}


def train(workdir, config=CONFIG, step=None, **kwargs):
    read = kwargs.pop("batches", batches)
    training = Training(step or make_step(), init_state, read, config.steps, make_mesh())
    return run(training, config, workdir, RECORD, **kwargs)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plain")
    train(workdir)
    return workdir


def test_the_time_of_a_run_is_split_and_its_speed_compared_with_the_peak(tmp_path, plain, capsys):
    train(tmp_path, replace(CONFIG, peak_tflops=1e-6, hang_seconds=60.0))
    timings = lines(tmp_path / "timings.jsonl")
    assert [entry["step"] for entry in timings] == [2, 4, 6, 8]
    parts = ("input", "compute", "checkpoint", "evaluation", "compile")
    total = sum(entry[f"{part}_seconds"] for entry in timings for part in parts)
    assert 0.5 * timings[-1]["elapsed"] < total <= timings[-1]["elapsed"]
    assert timings[0]["compile_seconds"] > 0 and timings[1]["checkpoint_seconds"] > 0  # of step 4
    for entry in timings:
        assert entry["mfu"] == pytest.approx(entry["tflops_per_device"] / 1e-6)
        # One matmul of 4 x 8 by 8 x 8; the first step, which compiles, is not timed.
        per_step = 2 * 4 * 8 * 8 / make_mesh().size
        assert entry["tflops_per_device"] * 1e12 * entry["seconds_per_step"] == pytest.approx(
            per_step, rel=1e-6
        )
        assert entry["host_gib"] > 0.01
    (start,) = lines(tmp_path / "starts.jsonl")
    assert (start["step"], start["parameters"], start["total_steps"]) == (0, 64, 8)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    # nothing is known of the peak of this CPU
    assert "mfu" not in lines(plain / "timings.jsonl")[0]
    train(tmp_path, replace(CONFIG, steps=8))
    assert [start["step"] for start in lines(tmp_path / "starts.jsonl")] == [0, 8]


def test_peaks_memory_and_operations():
    assert (
        peak_flops("NVIDIA H100 80GB HBM3") == PEAKS["H100"]
        and peak_flops("NVIDIA H100 PCIe") is None
    )
    assert (
        peak_flops("TPU v5 lite") == 197e12
        and peak_flops("TPU v5p") == 459e12
        and peak_flops("cpu") is None
    )
    assert peak_flops("cpu", 2.0) == 2e12
    assert set(memory()) >= {"host_gib"}

    def program(x):
        y = jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=5)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda: y, lambda: y @ y)

    assert (
        matmul_flops(jax.make_jaxpr(jax.checkpoint(program))(jnp.ones((4, 4))).jaxpr)
        == 6 * 2 * 4**3
    )


class Quartic(Method):
    """A loss of two modules; the state counts the steps, in the gradients that it was shown."""

    def __init__(self):
        super().__init__(config=None, network=None, setting=None)

    def loss(self, params, state, batch, draw, step, stage):
        loss = jnp.square(jnp.tanh(batch["x_BxD"] @ params["a"]["w"])).sum()
        loss += (params["b"] ** 4).sum()
        return loss, (state, {"loss": loss})

    def after_gradient(self, state, grads):
        return {"seen": state["seen"] + jnp.ones_like(grads["b"])}


def test_the_step_reports_modules_and_learns_the_same():
    """Gradient norms add up to the whole, and the new parameters have the same bits without the
    norms of parts.
    """
    params = {"a": {"w": jnp.linspace(-1, 1, 64).reshape(8, 8)}, "b": jnp.linspace(0.5, 1, 8)}
    optimizer, schedule = make_optimizer(OptimizerConfig(), 100, 10)
    rng, method_state = jnp.zeros(2, jnp.uint32), {"seen": jnp.zeros(8)}
    state = TrainState(jnp.int32(0), params, optimizer.init(params), method_state, rng)
    batch, method = next(batches(0)), Quartic()
    step = jax.jit(make_train_step(method, optimizer, schedule), static_argnums=2)
    new, metrics = step(state, batch, None)
    assert float(new.method_state["seen"].sum()) == 8 and int(new.step) == 1
    parts = [float(metrics[f"grad_norm/{name}"]) for name in params]
    assert min(parts) > 0
    assert np.hypot(*parts) == pytest.approx(float(metrics["optim/grad_norm"]), rel=1e-5)
    teacher = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    assert float(norm_distance(teacher, params)) == pytest.approx(0.1, rel=1e-5)

    @jax.jit
    def bare(params, opt_state):
        grads = jax.grad(lambda params: method.loss(params, {}, batch, None, 0, None)[0])(params)
        updates, _ = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), optax.tree.norm(grads)

    jax.tree.map(np.testing.assert_array_equal, new.params, bare(params, state.opt_state)[0])


# ----------------------------------------------------------------------------------------- watchdog


def reports(text):
    return [line for line in text.splitlines() if "nothing done for" in line]


@pytest.mark.parametrize(
    ("where", "culprit"), [("input", "in batches"), ("compute", "in sleep_at")]
)
def test_a_stuck_run_says_where_once_and_goes_on(tmp_path, where, culprit, capfd):
    config = replace(CONFIG, hang_seconds=LIMIT)
    if where == "input":  # far enough along that the batches read ahead are used up
        result = train(tmp_path, config, batches=lambda start: batches(start, stuck_at=6))
    else:
        result = train(tmp_path, config, make_step(STUCK))
    assert result.step == 8
    err = capfd.readouterr().err
    (line,) = [line for line in reports(err) if f"waits for {where}" in line]
    assert "process 0" in line and "after step " in line and "device prefetch" in line
    assert err.count(culprit) >= 1 and "hang: over after" in err
    file = (tmp_path / "hang-0.txt").read_text()
    assert (
        reports(file)[-1].split(" ", 2)[2].split(",")[0] in line
        and culprit in file
        and "Thread 0x" in file
    )


def test_the_watchdog_is_patient_names_the_process_and_needs_no_lock(tmp_path, capfd, monkeypatch):
    # Among the threads is one that is just being started, and has no number yet.
    threads, starting = threading.enumerate, threading.Thread(name="starting")
    monkeypatch.setattr(threading, "enumerate", lambda: [*threads(), starting])
    with Watchdog(0.2, tmp_path, process=3) as dog:
        for phase in ("compile", "evaluation"):
            with dog.waiting(phase):
                time.sleep(0.5)  # less than six times the limit
        dog.beat(7)
        assert not reports(capfd.readouterr().err)
        with dog.waiting("barrier"):
            time.sleep(0.9)  # long enough for several
        (line,) = reports(capfd.readouterr().err)
        assert "process 3" in line and "after step 7, waits for barrier" in line
        assert (tmp_path / "hang-3.txt").exists()
        # keeps Python's lock, so that no Python thread can report
        ctypes.PyDLL(None).usleep(900_000)
        assert "most recent call first" in capfd.readouterr().err
    gone = tmp_path / "gone"
    with Watchdog(0.1, gone) as dog, dog.waiting("checkpoint"):
        time.sleep(0.3)
    err = capfd.readouterr().err
    assert "waits for checkpoint" in err and f"writing {gone}/hang-0.txt failed" in err
    with Watchdog(0.0, tmp_path, process=4):
        time.sleep(0.05)
    assert not (tmp_path / "hang-4.txt").exists()


# ----------------------------------------------------------------------------------------- trackers


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules with the parts of wandb and mlflow that are used, which note every call."""
    calls = []

    def note(name, answer=None):
        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            return answer(*args, **kwargs) if callable(answer) else answer

        return call

    wandb_run = types.SimpleNamespace(
        define_metric=note("define_metric"), log=note("wandb.log"), finish=note("wandb.finish")
    )
    wandb = types.SimpleNamespace(init=note("wandb.init", wandb_run), Settings=dict)
    client = types.SimpleNamespace(
        get_experiment_by_name=note("get"),
        create_experiment=note("create", "7"),
        create_run=note("run", types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))),
        log_batch=note("log_batch", types.SimpleNamespace(wait=note("wait"))),
        set_terminated=note("end"),
    )
    mlflow = types.ModuleType("mlflow")
    mlflow.MlflowClient = note("client", client)
    entities = types.ModuleType("mlflow.entities")
    entities.Metric, entities.Param = (lambda *fields: fields), (lambda *fields: fields)
    for name, module in {"wandb": wandb, "mlflow": mlflow, "mlflow.entities": entities}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return calls


def named(calls, name):
    return [(args, kwargs) for found, args, kwargs in calls if found == name]


def test_trackers_get_every_number_and_a_second_start_goes_on_in_the_same_run(
    tmp_path, plain, stand_ins
):
    config = replace(CONFIG, wandb="project", wandb_mode="offline", mlflow="experiment")
    train(tmp_path, config)
    ((_, init),) = named(stand_ins, "wandb.init")
    assert (init["project"], init["mode"], init["name"], init["config"]) == (
        "project",
        "offline",
        "tiny",
        RECORD,
    )
    logged = [args[0] for args, _ in named(stand_ins, "wandb.log")]
    steps = {entry["step"]: entry["loss"] for entry in logged if "loss" in entry}
    assert steps == {entry["step"]: entry["loss"] for entry in lines(plain / "metrics.jsonl")}
    assert sum("time/compute_seconds" in entry for entry in logged) == 4
    assert [kwargs for _, kwargs in named(stand_ins, "wandb.finish")] == [{"exit_code": 0}]
    ((uri,), _) = named(stand_ins, "client")[0]
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    batches_sent = [kwargs for _, kwargs in named(stand_ins, "log_batch")]
    assert ("optimizer.lr", "0.1") in batches_sent[0]["params"]
    sent = {
        (metric[3], metric[0]): metric[1]
        for kwargs in batches_sent[1:]
        for metric in kwargs["metrics"]
    }
    assert {step: value for (step, name), value in sent.items() if name == "loss"} == steps
    assert named(stand_ins, "end")[-1][0] == ("m1", "FINISHED")
    train(tmp_path, replace(config, steps=10))
    assert (
        named(stand_ins, "wandb.init")[1][1]["id"] == init["id"]
        and len(named(stand_ins, "run")) == 1
    )
    assert watch._letters("val/r@1 (x)") == "val/r_1 _x_"
    stand_ins.clear()
    with watch.open_trackers(config, tmp_path, RECORD, write=False) as trackers:
        trackers.add(1, {"loss": 1.0})
    assert stand_ins == []  # only the first process


def test_a_tracker_that_fails_is_dropped_and_one_that_is_missing_is_named_before_training(
    tmp_path, plain, stand_ins, monkeypatch, caplog
):
    def fail(*args, **kwargs):
        raise RuntimeError("network gone\nmore")

    monkeypatch.setattr(sys.modules["wandb"].init(), "log", fail)
    train(tmp_path / "a", replace(CONFIG, wandb="project"))
    warnings = [record.getMessage() for record in caplog.records if record.name == watch.__name__]
    assert warnings == [
        "Weights & Biases stopped at step 2 (network gone); all numbers are in the work directory"
    ]
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.raises(
        ConfigError, match="train.wandb='project': network gone; .*wandb_mode=offline"
    ):
        train(tmp_path / "b", replace(CONFIG, wandb="project"))

    for package in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, package)
        monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            ConfigError, match=f"without the package {package}; .*pip install {package}"
        ):
            train(tmp_path / "c", replace(CONFIG, **{package: "x"}))
    assert not (tmp_path / "c/metrics.jsonl").exists()


# ------------------------------------------------------------------------------------------ profile


def test_chosen_steps_are_profiled(tmp_path, plain, capsys):
    train(tmp_path, replace(CONFIG, profile_steps=(3, 4)))
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"step_num" in content and b"train" in content
    assert f"profile: {tmp_path / 'profile'}" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    assert not (plain / "profile").exists()


@pytest.mark.parametrize(
    "field",
    [
        {"hang_seconds": -1.0},
        {"wandb_mode": "off"},
        {"profile_steps": (3,)},
        {"profile_steps": (5, 3)},
        {"profile_steps": (0, 3)},
        {"peak_tflops": -1.0},
    ],
)
def test_a_bad_field_is_named(field):
    with pytest.raises(ConfigError, match=f"train.{next(iter(field))}"):
        TrainConfig(**field).validate()


def test_watching_may_change_between_two_starts():
    fields = (
        "wandb",
        "wandb_mode",
        "mlflow",
        "mlflow_uri",
        "hang_seconds",
        "profile_steps",
        "peak_tflops",
    )
    assert {f"train.{field}" for field in fields} <= set(RESUMABLE)
