"""What must hold of every whole method, on the smallest model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from nas_jax import runner
from nas_jax.config import RunConfig, to_dict
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.draws import Draws
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig

PROGRAM = Path(__file__).parent / "parallel/step_on_meshes.py"


def batch(method, size: int = 6, seed: int = 0) -> dict:
    """The smallest batch with all that the method wants."""
    return tiny.batch(size, seed=seed, wants=method.wants)


def gradients(method, size: int = 6, params=None, step: int = 3, recorded=None, given=None):
    """Loss, next state, metrics and gradients of one batch; recorded: draws; given: the batch."""
    fresh, state = jax.jit(method.init)(jax.random.key(0))
    params = fresh if params is None else params
    draw = Draws(jax.random.key(9), recorded or {})
    inputs = state, given or batch(method, size), draw, jnp.int32(step)
    loss = jax.value_and_grad(method.loss, has_aux=True)
    found = jax.jit(loss, static_argnums=5)(params, *inputs, method.stage(step))
    (value, (state, metrics)), grads = found
    return value, state, metrics, grads


def largest(tree) -> float:
    """The largest magnitude of any entry of a tree."""
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def check_every_group_is_trained(grads) -> None:
    """Every group of parameters has a finite gradient, and some that is not 0."""
    for group, leaves in grads.items():
        assert 0 < largest(leaves) < np.inf, group


def check_pieces(config, **model) -> None:
    """A batch in three pieces has the loss and the gradients of the whole batch; bfloat16 has about
    the loss, and leaves state and gradients in float32. model: sizes.
    """

    def found(dtype: str = "float32", pieces: int = 1):
        sizes = tiny.model(dtype=dtype, dropout=0.0, **model)
        return gradients(tiny.built(config, model=sizes, run=tiny.setting(pieces=pieces)))

    whole, pieced, rounded = found(), found(pieces=3), found("bfloat16")
    np.testing.assert_allclose(pieced[0], whole[0], rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (pieced[3], whole[3])), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)
    assert whole[0] != rounded[0]  # otherwise nothing was rounded
    np.testing.assert_allclose(rounded[0], whole[0], rtol=0.05)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((rounded[1], rounded[3]))}
    assert dtypes <= {jnp.dtype("float32"), jnp.dtype("int32")}


def check_devices(name: str, *cases: str) -> None:
    """Steps on eight simulated devices are those of one; in a process of its own."""
    command = [sys.executable, str(PROGRAM), f"--method={name}", *(cases or ("data8",))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for case in json.loads(done.stdout.splitlines()[-1]).values():
        assert case.pop("loss") < 1e-5
        assert all(error < 1e-3 for error, _ in case.values()), case


def check_run(config, folder: Path, scorers: tuple[str, ...], falls: bool = True, **model) -> None:
    """The loss of a run falls within six batches, a run is continued to the same bits, and it is
    scored by all scorers, seen and blind. falls: False where six batches are too few.
    """
    in_pairs = config.name in ("gnm", "svco")
    run = RunConfig(
        data=DataConfig(
            num_train=60, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=17,
            vocab_size=200, batch_size=8, threads=1, siblings=2 * in_pairs,
            scene_variations=in_pairs,
        ),
        model=tiny.model(vocab_size=0, max_text_length=32, **model),
        method=config,
        # the same rate whatever the number of steps
        optimizer=OptimizerConfig(schedule="smooth", lr=1e-3, lr_min=1e-3, warmup_steps=1),
        train=TrainConfig(steps=6, log_every=1, checkpoint_every=3),
        eval=EvalConfig(scorers=scorers, retrieval=False, quads=False, max_pairs=4),
    )  # fmt: skip

    def train(place: Path, **changes) -> list[dict]:
        """What is written of the steps."""
        assert runner.main(to_dict(replace(run, **changes)), str(place), "train") == 0
        lines = (place / "metrics.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]

    whole = train(folder / "whole")
    assert not falls or whole[-1]["loss"] < whole[0]["loss"]
    silent = {"eval": replace(run.eval, foils=False)}
    train(folder / "parts", train=replace(run.train, steps=3), **silent)
    assert train(folder / "parts", **silent)[-3:] == whole[-3:]  # every bit of all that is written
    metrics = json.loads((folder / "whole/evals/6.json").read_text())["metrics"]
    for scorer in scorers:
        found = [one for one in metrics if one["key"].split("/")[2] == scorer]
        assert found and all(np.isfinite(one["value"]) for one in found), scorer
        blind = [one["blind"] for one in found if one.get("blind") is not None]
        assert blind and np.isfinite(blind).all(), scorer
