"""CLIP, ALIGN, SigLIP and FILIP: they train, resume, shard and are evaluated without a fusion
encoder.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole

from nas_jax.config import RunConfig, from_config_dict, to_dict
from nas_jax.convert import to_hf
from nas_jax.data.config import DataConfig
from nas_jax.evals.__main__ import run as evaluate
from nas_jax.evals.config import EvalConfig
from nas_jax.inspect.negatives import main as diagnose
from nas_jax.losses.infonce import infonce
from nas_jax.losses.late import Tokens, every_token, late_loss
from nas_jax.losses.sigmoid import sigmoid_loss
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.ceclip import CeClipConfig
from nas_jax.methods.clip import AlignConfig, ClipConfig, SiglipConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.filip import FilipConfig
from nas_jax.methods.gnm import GnmConfig
from nas_jax.methods.loupe import LoupeConfig
from nas_jax.methods.negclip import NegClipConfig
from nas_jax.train.optimizer import decayed
from nas_jax.utils.errors import ConfigError, UserError

METHODS = {
    "clip": ClipConfig(),
    "clip's towers": ClipConfig(towers="clip", text_dim=8),
    "align": AlignConfig(),
    "siglip": SiglipConfig(),
    "siglip's towers": SiglipConfig(towers="siglip"),
    "filip": FilipConfig(block=3),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("align", "siglip", "filip")]


def built(name, **model):
    """SigLIP's image encoder has no projection, so features are as wide as tokens."""
    return tiny.built(METHODS[name], model=tiny.model(embed_dim=16, dropout=0.0, **model))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_that_of_the_features_and_every_parameter_learns(name):
    """The method's value is the formula of what evaluations read, with the papers' numbers."""
    method = built(name)
    params, state = jax.jit(method.init)(jax.random.key(0))
    assert state == {}
    value, _, _, grads = whole.gradients(method, params=params)
    still = {
        jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(grads) if not x.any()
    }
    assert not still
    batch = whole.batch(method)
    _, image = jax.jit(method.encode_image)(params, {}, batch["image_BxHxWx3"])
    texts = batch["token_ids_BxL"], batch["token_mask_BxL"]
    _, text = jax.jit(method.encode_text)(params, *texts)
    expected = {
        "clip": lambda: infonce(image, text, 0.07),
        "align": lambda: infonce(image, text, 1.0, smoothing=0.1),
        "siglip": lambda: sigmoid_loss(image, text, 0.1, -10.0),
        "filip": lambda: late_loss(
            every_token(image), Tokens(text[..., :-1], text[..., -1] > 0), 0.07, 0.25
        ),
    }[METHODS[name].name]
    np.testing.assert_allclose(value, jax.jit(expected)(), rtol=1e-5)


@pytest.mark.parametrize("name", ["clip's towers", "siglip's towers", "filip"])
def test_it_works_in_pieces_and_in_bfloat16(name):
    whole.check_pieces(METHODS[name], embed_dim=16)


@pytest.mark.parametrize(
    "config", [ClipConfig(), NegClipConfig(), CeClipConfig(), GnmConfig(), LoupeConfig()]
)
def test_the_temperature_has_its_bound_and_no_decay(config):
    method = tiny.built(config)
    params = jax.eval_shape(method.init, jax.random.key(0))[0]
    mask = decayed(params)
    assert not mask["logit_scale"] and "temp" not in mask
    assert mask["image_encoder"]["patch_embed"]["kernel"]
    for given, bound in ((9.0, 0.01), (-1.0, np.e), (2.0, np.exp(-2))):  # no bound from above
        found = method.constrain({"logit_scale": jnp.full((1,), given)})
        np.testing.assert_allclose(method.temperature(found), bound, rtol=1e-5)
    with pytest.raises(ConfigError, match="temp_min"):
        tiny.built(replace(config, temp_min=0.2))


def test_the_bias_of_siglip_has_no_decay():
    method = built("siglip")
    assert not decayed(jax.eval_shape(method.init, jax.random.key(0))[0])["logit_bias"]


@pytest.mark.parametrize("bad", [{"temp_min": 0.0}, {"temp_min": 0.6}, {"temp_max": 0.0001}])
def test_albefs_temperature_has_bounds_that_hold(bad):
    with pytest.raises(ConfigError, match="temp_min"):
        tiny.built(AlbefConfig(itc=ItcConfig(queue_size=24, **bad)))
    for highest, bound in ((0.5, 0.5), (0.0, 0.9)):  # 0: none
        method = tiny.built(AlbefConfig(itc=ItcConfig(queue_size=24, temp_max=highest)))
        np.testing.assert_allclose(method.constrain({"temp": jnp.float32(0.9)})["temp"], bound)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "align", "siglip", "filip"])
def test_eight_devices_in_blocks_give_the_numbers_of_one_with_all_pairs(name):
    whole.check_devices(name, "data8", "mixed in 4 pieces")


@pytest.mark.parametrize("name", ["clip", *SLOW])
def test_it_trains_resumes_and_is_evaluated(name, tmp_path, capsys):
    config = METHODS.get(f"{name}'s towers", METHODS[name])
    if name == "filip":
        config = FilipConfig(block=4)
    score = "late" if name == "filip" else "itc"
    whole.check_run(config, tmp_path, (score,), embed_dim=16)
    run = tmp_path / "whole"
    assert diagnose([str(run)]) != 0
    assert "matching loss" in capsys.readouterr().err
    if name == "clip":  # what follows takes long
        return
    out = evaluate(["--checkpoint", str(run), "--benchmark", "val",
                    "--scorer", score, "--out", str(tmp_path / "out")])  # fmt: skip
    assert score in (out / "results.json").read_text()
    if name == "siglip":  # its own towers
        to_hf.export(run, tmp_path / "hf")
        assert (tmp_path / "hf/model.safetensors").is_file()
        return
    with pytest.raises(UserError, match={"align": "method.towers", "filip": "no Hugging"}[name]):
        to_hf.export(run, tmp_path / "hf")


def test_what_cannot_be_is_refused():
    run = RunConfig(
        data=DataConfig(num_train=60, image_size=16, text_length=17, batch_size=8),
        model=tiny.model(vocab_size=0, max_text_length=32, embed_dim=16),
    )
    for changes, message in (
        ({"method": ClipConfig(block=5)}, "divisor of the batch size"),
        ({"method": ClipConfig(towers="bert")}, "shared, clip, siglip"),
        ({"method": SiglipConfig(smoothing=0.1)}, "has none"),
        ({"method": FilipConfig(share=0.0)}, "0.25"),
        ({"method": ClipConfig(temp_init=0.001)}, "temp_min"),
        ({"method": ClipConfig(temp_max=0.001)}, "temp_max"),
        ({"method": ClipConfig(), "eval": EvalConfig(scorers=("itm",))}, "itc, which"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_config_dict(to_dict(replace(run, **changes)))
    for name, model in (("siglip's towers", {"dim": 8}), ("clip's towers", {"heads": 16})):
        with pytest.raises(ConfigError, match=r"model\.(embed_dim|heads)"):
            built(name, **model)
