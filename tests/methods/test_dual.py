"""CLIP, ALIGN, SigLIP and FILIP: they train, resume, shard and are evaluated without a fusion
encoder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax import runner
from nas_jax.config import RunConfig, from_config_dict, to_dict
from nas_jax.convert import to_hf
from nas_jax.data.config import DataConfig
from nas_jax.evals.__main__ import run as evaluate
from nas_jax.evals.config import EvalConfig
from nas_jax.inspect.negatives import main as diagnose
from nas_jax.losses.info_nce import info_nce
from nas_jax.losses.late import Tokens, every_token, late_loss
from nas_jax.losses.sigmoid import sigmoid_loss
from nas_jax.methods.clip import AlignConfig, ClipConfig, SiglipConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.filip import FilipConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig, decayed
from nas_jax.utils.errors import ConfigError, UserError

ROOT = Path(__file__).parents[2]
METHODS = {
    "clip": ClipConfig(),
    "clip's towers": ClipConfig(towers="clip", text_dim=8),
    "align": AlignConfig(),
    "siglip": SiglipConfig(),
    "siglip's towers": SiglipConfig(towers="siglip"),
    "filip": FilipConfig(block=3),
}
RUN = RunConfig(
    data=DataConfig(
        num_train=60, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=17,
        vocab_size=200, batch_size=8, threads=1,
    ),
    model=tiny.model(vocab_size=0, max_text_length=32, embed_dim=16),
    optimizer=OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=1),
    train=TrainConfig(steps=6, log_every=1, checkpoint_every=3),
    eval=EvalConfig(max_images=6, max_pairs=4),
)  # fmt: skip


def built(name, model=None, **setting):
    model = tiny.model(**{"embed_dim": 16, "dropout": 0.0} | (model or {}))
    return tiny.built(METHODS[name], model=model, run=tiny.setting(**setting))


def step(method, params, batch):
    def loss(params):
        return method.loss(params, {}, batch, Draws(jax.random.key(2)), 0, None)[0]

    return jax.jit(jax.value_and_grad(loss))(params)


def cosine(one, other):
    one, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (one, other))
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_learns_and_pieces_change_nothing(name):
    batch = tiny.batch()
    method = built(name)
    params, state = jax.jit(method.init)(jax.random.key(0))
    assert state == {}
    value, grads = step(method, params, batch)
    still = {
        jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(grads) if not x.any()
    }
    assert not still
    in_pieces = step(built(name, pieces=3), params, batch)
    np.testing.assert_allclose(value, in_pieces[0], rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (grads, in_pieces[1])), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4 * max(float(jnp.abs(one).max()), 1e-2))
    half_value, half = step(built(name, {"dtype": "bfloat16"}), params, batch)
    assert half_value.dtype == jnp.float32
    np.testing.assert_allclose(value, half_value, rtol=0.03)
    assert cosine(grads, half) > 0.9  # of ALIGN's, whose temperature leaves little, 0.94


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_that_of_the_features(name):
    """The method's value is the formula of what the evaluations read, with the papers' numbers."""
    batch, method = tiny.batch(), built(name)
    params, _ = jax.jit(method.init)(jax.random.key(0))
    _, image = jax.jit(method.encode_image)(params, {}, batch["image_BxHxWx3"])
    texts = batch["token_ids_BxL"], batch["token_mask_BxL"]
    _, text = jax.jit(method.encode_text)(params, *texts)
    expected = {
        "clip": lambda: info_nce(image, text, 1 / 0.07),
        "align": lambda: info_nce(image, text, 1.0, smoothing=0.1),
        "siglip": lambda: sigmoid_loss(image, text, 10.0, -10.0),
        "filip": lambda: late_loss(
            every_token(image), Tokens(text[..., :-1], text[..., -1] > 0), 1 / 0.07, 0.25
        ),
    }[METHODS[name].name]
    np.testing.assert_allclose(step(method, params, batch)[0], jax.jit(expected)(), rtol=1e-5)


def test_the_temperature_has_its_bound_and_no_decay():
    method = built("siglip")
    params, _ = jax.jit(method.init)(jax.random.key(0))
    mask = decayed(params)
    assert not mask["logit_scale"] and not mask["logit_bias"]
    assert mask["image_encoder"]["patch_embed"]["kernel"]
    clip = built("clip")
    high = jax.jit(clip.init)(jax.random.key(0))[0] | {"logit_scale": jnp.full((1,), 9.0)}
    np.testing.assert_allclose(jnp.exp(clip.constrain(high)["logit_scale"]), 100, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip", "filip"])
def test_eight_devices_in_blocks_give_the_numbers_of_one_with_all_pairs(name):
    """Five steps, in a process of its own, as the number of devices is fixed when jax starts."""
    program = ROOT / "tests/parallel/step_on_meshes.py"
    command = [sys.executable, str(program), f"--{name}", "data8", "mixed in 4 pieces"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for case in report.values():
        assert case["loss"] < 1e-5 and case["params"][0] < 1e-4, report


def train(workdir, method):
    assert runner.main(to_dict(replace(RUN, method=method)), str(workdir), "train") == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "score"),
    [(METHODS["siglip's towers"], "itc"), (FilipConfig(), "late")],
    ids=["siglip", "filip"],
)
def test_it_trains_resumes_and_is_evaluated(method, score, tmp_path, capsys):
    run = tmp_path / "run"
    whole = train(run, method)
    losses = [entry["loss"] for entry in whole if entry["kind"] == "train"]
    assert losses[-1] < losses[0]
    shutil.rmtree(run / "checkpoints/6")  # as if it had been killed behind step 3
    resumed = train(run, method)
    assert resumed[-1] == whole[-1]  # every bit
    assert [entry["loss"] for entry in resumed if entry["kind"] == "train"] == losses
    for part in ("foils", "quads", "retrieval"):
        found = [key for key in whole[-1] if key.startswith(f"val/{part}/{score}/")]
        assert found and np.isfinite([whole[-1][key] for key in found]).all()
    out = evaluate(["--checkpoint", str(run), "--benchmark", "val",
                    "--scorer", score, "--out", str(tmp_path / "out")])  # fmt: skip
    assert score in (out / "results.json").read_text()
    metrics = json.loads((run / "evals/6.json").read_text())["metrics"]
    blind = [row["blind"] for row in metrics if row["blind"] is not None]
    assert blind and np.isfinite(blind).all()
    if score == "itc":  # of SigLIP's own towers
        to_hf.export(run, tmp_path / "hf")
        assert (tmp_path / "hf/model.safetensors").is_file()
    else:
        with pytest.raises(UserError, match="filip, which has no Hugging Face class"):
            to_hf.export(run, tmp_path / "hf")
    assert diagnose([str(run)]) != 0
    assert "matching loss" in capsys.readouterr().err


def test_what_cannot_be_is_refused():
    for changes, message in (
        ({"method": ClipConfig(block=5)}, "divisor of the batch size"),
        ({"method": ClipConfig(towers="bert")}, "shared, clip, siglip"),
        ({"method": SiglipConfig(smoothing=0.1)}, "has none"),
        ({"method": FilipConfig(share=0.0)}, "0.25"),
        ({"method": ClipConfig(temp_init=0.001)}, "temp_min"),
        ({"method": ClipConfig(), "eval": EvalConfig(scorers=("itm",))}, "itc, which"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_config_dict(to_dict(replace(RUN, **changes)))
    for name, model in (("siglip's towers", {"embed_dim": 8}), ("clip's towers", {"heads": 16})):
        with pytest.raises(ConfigError, match=r"model\.(embed_dim|heads)"):
            built(name, model)
