"""The benchmark of the training step: what it counts, how it reads a batch, and that it needs
little installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import step
from nas_jax.methods.albef import Stage
from nas_jax.models.sizes import model_config
from nas_jax.utils.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
REAL_BUILD = step.build
TRACE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError(f"{{name}} is not installed on machines that only train")

sys.meta_path.insert(0, Refuse())
import jax
from benchmarks import step
from nas_jax.models.sizes import SIZES, ModelConfig

SIZES["least"] = ModelConfig(
    16, 2, 1, 1, 1, image_size=16, patch_size=8, embed_dim=8, max_text_length=32
)
step.PRESETS["least"] = step.Preset("least", 4, 128, 16, 1.0, 0.5)
step.CODES = 8
step.limit_threads(1)
built = step.build(step.parse(["--preset", "least", "--nta"]))
with jax.set_mesh(built.mesh):
    batch = step.put_batch(built.batch, built.mesh)
    traced = built.step.trace(jax.eval_shape(built.init), batch, built.stage)
threads = step.describe(step.parse(["--preset", "least"]), built)["threads"]
print(threads, step.matmul_flops(traced.jaxpr.jaxpr))
"""
REFUSED = (
    "ml_collections",
    "grain",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "tensorboardX",
    "PIL",
    "cv2",
    "tokenizers",
    "transformers",
    "matplotlib",
    "torch",
    "clu",
)


def test_the_step_needs_jax_flax_optax_and_numpy_only():
    done = subprocess.run(
        [sys.executable, "-c", TRACE.format(refused=set(REFUSED))],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    threads, flops = done.stdout.split()
    assert threads == "1" and float(flops) > 0


class Toy(NamedTuple):
    """A state as small as it gets."""

    params: dict[str, jax.Array]
    steps: jax.Array


def toy_step(state: Toy, batch: dict, stage: Stage) -> tuple[Toy, dict]:
    """One matmul of (3, 5) and (5, 5) a step."""
    product = state.params["left"] @ state.params["right"]
    loss = product.sum() + state.steps + batch["image_id_B"].sum()
    return Toy(state.params | {"left": product}, state.steps + 1), {"loss": loss}


@pytest.mark.parametrize("count_only", [False, True])
def test_a_run_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, count_only: bool
):
    def build(options):
        built = REAL_BUILD(options)
        return built._replace(
            init=lambda: Toy({"left": jnp.ones((3, 5)), "right": jnp.eye(5)}, jnp.zeros(())),
            step=jax.jit(toy_step, donate_argnums=0, static_argnums=2),
            shardings=None,
        )

    monkeypatch.setattr(step, "build", build)
    monkeypatch.setattr(step, "dense_matmul", lambda dtype, platform: lambda seconds: 50.0)
    more = ["--count-only"] if count_only else []
    assert step.main(["--preset", "tinybody", "--steps", "3", *more]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (
        result["batch"] == 16 and result["real_tokens"] < result["length"] < 25
    )  # padded to 25, then cut to the longest
    assert result["params_M"] == 40e-6
    assert result["gflop_per_pair_matmuls"] == pytest.approx(2 * 3 * 5 * 5 / 16 / 1e9, rel=1e-4)
    assert (
        result["gflop_per_pair"]
        == result["gflop_per_pair_compiled"]
        >= result["gflop_per_pair_matmuls"]
    )
    assert result["arguments_MB"] > 0 and result["peak_memory_MB"] > 0
    if count_only:
        assert "loss" not in result and "cpu_seconds" not in result
        return
    assert result["loss"] == 15 + 15 * 16 / 2  # of the first step
    assert (
        result["steps"] == 3
        and 0 < result["wall_seconds"]["min"] <= result["wall_seconds"]["median"]
    )
    assert result["reference_equivalent"] == pytest.approx(2.10 / 0.63, rel=1e-4)


@pytest.mark.parametrize(
    ("preset", "millions"), [("tinybody", 4.7), ("tiny", 10.2), ("small", 36.0), ("base", 211.1)]
)
def test_presets_have_the_parameters_of_the_reference(preset: str, millions: float):
    options = step.parse(["--preset", preset])
    assert step.describe(options, step.build(options))["params_M"] == pytest.approx(
        millions, abs=0.05
    )


def test_matmuls_are_counted_inside_loops_and_conditions():
    left, right = jnp.zeros((3, 5)), jnp.zeros((5, 5))

    def computed(left, right):
        left, _ = jax.lax.scan(
            lambda x, _: (jax.checkpoint(jnp.matmul)(x, right), None), left, None, length=4
        )
        return jax.lax.cond(left[0, 0] > 0, lambda x: x @ right @ right, lambda x: x @ right, left)

    one = 2 * 3 * 5 * 5
    assert step.matmul_flops(jax.make_jaxpr(jax.jit(computed))(left, right).jaxpr) == (4 + 2) * one


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_matmul_runs_as_long_as_asked_and_its_first_call_does_not_count(
    monkeypatch, platform: str
):
    cpu, wall = iter([9.0, 1.0, 3.0, 8.0]), iter([99.0, 16.0, 64.0, 2.0])
    monkeypatch.setattr(
        step, "measure", lambda run, times: step.Timing([next(cpu)], [next(wall)], [0])
    )
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape, dtype: np.zeros((1, 1), np.float32)
    )
    rate = step.dense_matmul("float32", platform)
    expected = {
        "cpu": [2 * 2048**3 / 2.0, 2 * 2048**3 / 8.0],
        "gpu": [20 * 8192**3 / 40.0, 20 * 8192**3 / 2.0],
    }
    assert [rate(2.0 if platform == "cpu" else 20.0), rate(0)] == pytest.approx(
        [x / 1e9 for x in expected[platform]]
    )


def test_speeds_are_those_of_the_cpu_time():
    known = {
        "preset": "base",
        "method": "nas",
        "nta": False,
        "dtype": "float32",
        "length": 25,
        "batch": 4,
    }
    known |= {"platform": "cpu", "device": "cpu", "gflop_per_pair": 300.0}
    timing, rates = (
        step.Timing(cpu=[20.0, 16.0, 24.0], wall=[40.0, 50.0, 60.0], faults=[0] * 3),
        [90.0, 74.0, 100.0, 60],
    )
    speeds = step.speeds(known, timing, rates)
    assert speeds["pairs_per_second"] == pytest.approx(0.1)
    # 4 s a pair at 100; 5 s at 82, 4 at 87, 6 at 80
    assert speeds["gflop_equivalent_per_pair"] == pytest.approx({"min": 400.0, "median": 410.0})
    assert speeds["matmul_share"] == pytest.approx({"min": 300 / 400, "median": 300 / 410})
    assert speeds["times_reference"]["min"] == pytest.approx(311.8 / 0.84 / 400)
    assert speeds["matmul_gflops"] == {"max": 100.0, "median": 82.0}
    for changed in (
        {"length": 26},
        {"dtype": "bfloat16"},
        {"method": "albef"},
        {"nta": True},
        {"platform": "gpu"},
    ):
        assert step.speeds(known | changed, timing, rates)["times_reference"] is None
    on_gpu = known | {"platform": "gpu", "device": "NVIDIA H100 80GB HBM3"}
    assert step.speeds(on_gpu, timing, rates)["peak_share"] == pytest.approx(300e9 / 10 / 989e12)


def test_peaks_are_told_apart_by_the_kind_of_device():
    found = [
        step.peak_flops(kind)
        for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite", "NVIDIA H100 PCIe", "cpu")
    ]
    assert found == [197e12, 459e12, 918e12, None, None]


def test_random_captions_have_the_lengths_of_coco():
    batch = step.random_batch(512, 25, 16, 2048)
    mask_BxL, ids_BxL = batch["token_mask_BxL"], batch["token_ids_BxL"]
    counts_B = mask_BxL.sum(-1)
    assert counts_B.mean() == pytest.approx(13, abs=0.5) and counts_B.min() >= 8
    assert (ids_BxL[~mask_BxL] == 0).all() and ((ids_BxL == 102).sum(-1) == 1).all()


def test_few_captions_lose_a_masked_position():
    batch = step.random_batch(4096, 25, 16, 2048)
    picks = step.enough_masked(batch, 0.15)
    above, allowed = (step.cut_probability(batch, 0.15, limit) for limit in (picks - 1, picks))
    assert allowed <= step.CUT_AT_MOST < above
    words_B = batch["token_mask_BxL"].sum(-1) - 2
    drawn = np.random.default_rng(0).binomial(words_B, 0.15)
    assert (drawn > picks).mean() == pytest.approx(allowed, abs=0.006)


def write_batch(path: Path, size: int = 4, **changed) -> Path:
    """A batch of the tiny preset whose longest text has 9 tokens."""
    mask_BxL = np.arange(25) < np.array([9, 5, 7, 3])[:size, None]
    arrays = {
        "image": np.random.default_rng(0).normal(size=(size, 3, 96, 96)).astype(np.float32),
        "input_ids": np.where(mask_BxL, 1500, 0),
        "attention_mask": mask_BxL.astype(np.int64),
    } | changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(("more", "length"), [([], 9), (["--plain"], 25), (["--length", "30"], 30)])
def test_texts_of_a_file_are_cut_to_the_longest(tmp_path: Path, more: list[str], length: int):
    path = write_batch(tmp_path / "batch.npz")
    batch = step.build(step.parse(["--preset", "tinybody", "--batch-file", str(path), *more])).batch
    assert batch["token_ids_BxL"].shape == batch["token_mask_BxL"].shape == (4, length)
    assert batch["token_mask_BxL"].sum() == 9 + 5 + 7 + 3
    with np.load(path) as file:
        np.testing.assert_array_equal(batch["image_BxHxWx3"][..., 2], file["image"][:, 2])


@pytest.mark.parametrize(
    "changed",
    [
        {"image": np.zeros((4, 3, 64, 64), np.float32)},
        {"image": np.zeros((4, 3, 96, 96), np.uint8)},
        {"input_ids": np.full((4, 25), 5000)},
        {"attention_mask": np.ones((4, 24))},
        {"attention_mask": None},
    ],
)
def test_a_file_that_does_not_fit_the_preset_is_refused(tmp_path: Path, changed: dict):
    path = write_batch(tmp_path / "batch.npz", **changed)
    with pytest.raises(DataError) as error:
        step.read_batch(path, model_config("tiny").image_size, 2048, None, True)
    assert "\n" not in str(error.value)


def test_wrong_options_are_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_batch(tmp_path / "batch.npz")
    for options in (
        ["--batch-file", str(tmp_path / "none.npz")],
        ["--batch-file", str(path), "--batch", "8"],
        ["--batch-file", str(path), "--length", "8"],
        ["--method", "albef", "--nta"],
        ["--batch", "7"],
        ["--threads", "0"],
    ):
        assert step.main(["--preset", "tinybody", *options]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1, err


def test_too_many_threads_are_refused():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not bind processes to CPUs")
    with pytest.raises(ConfigError, match="--threads=4096"):
        step.limit_threads(4096)
