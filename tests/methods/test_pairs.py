"""Generative Negative Mining and S-VCO: margins in NumPy, which pairs count, both as methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole
from jax.test_util import check_grads

from nas_jax.data.config import DataConfig
from nas_jax.data.readers import SecondView, SourceId, batch_spec
from nas_jax.losses.infonce import infonce
from nas_jax.losses.minimal_pairs import symmetric_margin
from nas_jax.methods import method_config
from nas_jax.methods.config import ItcConfig, ItmConfig, SameConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.gnm import GnmConfig
from nas_jax.methods.minimal_pairs import valid_pairs
from nas_jax.methods.svco import PairConfig, SvcoConfig
from nas_jax.utils.errors import ConfigError

STILL = tiny.model(dropout=0.0)
CONFIGS = {"gnm": GnmConfig(), "svco": SvcoConfig(itc=ItcConfig(queue_size=24))}


@pytest.mark.parametrize("form", ["hinge", "logistic"])
def test_the_margin_follows_its_formula_on_the_four_scores_of_a_pair(form):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 2, 2)).astype(np.float32)  # pair, picture, text
    valid = np.array([True, True, True, True, False, False])
    penalty = {"hinge": lambda x: max(0, x), "logistic": lambda x: np.log1p(np.exp(x))}[form]
    expected, holds = [], []
    for (tt, tf), (ft, ff) in scores[:2]:  # of picture and contrast with text and its contrast
        for better, worse in ((tt, ft), (tt, tf), (ff, tf), (ff, ft)):
            expected.append(penalty(0.5 - (better - worse)))
            holds.append(better > worse)
    own = scores[:, [0, 1], [0, 1]].reshape(-1)
    cross = scores[:, [1, 0], [0, 1]].reshape(-1)  # each text with the other picture
    loss, share = symmetric_margin(jnp.asarray(own), jnp.asarray(cross), valid, 0.5, form)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(share, np.mean(holds))
    check_grads(
        lambda *x: symmetric_margin(*x, valid, 0.5, form)[0], (own, cross), 1, ["rev"],
        atol=1e-2, rtol=1e-2,
    )  # fmt: skip
    grads = jax.grad(lambda *x: symmetric_margin(*x, valid, 0.5, form)[0], (0, 1))(own, cross)
    assert not any(np.asarray(grad)[4:].any() for grad in grads)
    far = symmetric_margin(jnp.full(6, 3.0), jnp.zeros(6), valid, 0.5, form)[0]
    wrong = symmetric_margin(jnp.zeros(6), jnp.full(6, 3.0), valid, 0.5, form)[0]
    assert (far == 0) == (form == "hinge") and wrong > 3
    assert symmetric_margin(jnp.zeros(6), jnp.zeros(6), valid & False, 0.5, form)[0] == 0


def pairs_batch():
    """Pairs 0-1 and 2-3 share a source; of 2-3 the captions are the same, 4-5 are strangers."""
    batch = tiny.batch()
    for name in ("token_ids_BxL", "token_mask_BxL"):
        batch[name] = batch[name].at[3].set(batch[name][2])
    return batch | {"source_id_B": jnp.array([7, 7, 8, 8, 9, 5], jnp.int32)}


def test_only_siblings_with_another_picture_and_another_caption_are_pairs():
    batch = pairs_batch()
    np.testing.assert_array_equal(valid_pairs(batch), [1, 1, 0, 0, 0, 0])
    same = batch | {"image_id_B": jnp.array([1, 1, 2, 3, 4, 5])}
    assert not valid_pairs(same).any()


def test_svco_scores_each_text_with_both_pictures_and_every_part_is_trained():
    config = SvcoConfig(itc=ItcConfig(queue_size=24), pairs=PairConfig("logistic"))
    method, batch = tiny.built(config, model=STILL), pairs_batch()
    params, state = method.init(jax.random.key(0))
    metrics, grads = whole.gradients(method, given=batch)[2:]
    whole.check_every_group_is_trained(grads)
    mask = batch["token_mask_BxL"]
    image_tokens, image = method.encode_image(params, state, batch["image_BxHxWx3"])
    tokens, text = method.encode_text(params, batch["token_ids_BxL"], mask)
    other = np.array([1, 0, 3, 2, 5, 4])
    for kind, margin in (("itc", 0.2), ("itm", 2.0)):
        own, cross = (
            (image[at] * text).sum(-1)
            if kind == "itc"
            else method.score(params, image_tokens[at], tokens[:, None], mask[:, None])["itm"][:, 0]
            for at in (np.arange(6), other)
        )
        expected, share = symmetric_margin(own, cross, valid_pairs(batch), margin, "logistic")
        np.testing.assert_allclose(metrics[f"loss/pair_{kind}"], expected, rtol=1e-4)
        np.testing.assert_allclose(metrics[f"pairs/{kind}"], share)
    np.testing.assert_allclose(metrics["pairs/valid_share"], 1 / 3)


def test_gnm_is_clips_loss_and_leaves_out_what_the_config_says():
    batch, losses = pairs_batch(), {}
    for same in ((), ("words",)):
        method = tiny.built(GnmConfig(itc=SameConfig(same=same)), model=STILL)
        params, state = method.init(jax.random.key(0))
        args = params, state, batch, Draws(jax.random.key(1)), jnp.int32(0), None
        losses[same], (_, metrics) = method.loss(*args)
        image = method.encode_image(params, state, batch["image_BxHxWx3"])[1]
        text = method.encode_text(params, batch["token_ids_BxL"], batch["token_mask_BxL"])[1]
        ignored = np.zeros((6, 6), bool)
        ignored[2, 3] = ignored[3, 2] = bool(same)
        expected = infonce(image, text, method.temperature(params), ignored)
        np.testing.assert_allclose(losses[same], expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["siblings/count"], 4 / 6)
    assert losses["words",] < losses[()] - 1e-3
    logits = np.asarray(image @ text.T) / 0.07
    plain = -(np.diag(jax.nn.log_softmax(logits)) + np.diag(jax.nn.log_softmax(logits.T))) / 2
    np.testing.assert_allclose(losses[()], plain.mean(), rtol=1e-5)


def test_every_part_of_gnm_is_trained():
    whole.check_every_group_is_trained(whole.gradients(tiny.built(CONFIGS["gnm"]))[3])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_it_works_in_pieces_and_in_bfloat16(name):
    whole.check_pieces(CONFIGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_eight_devices_give_the_same_numbers(name):
    whole.check_devices(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_falls_resumes_and_is_scored(name, tmp_path):
    whole.check_run(CONFIGS[name], tmp_path, {"gnm": ("itc",), "svco": ("itc", "itm")}[name])


def test_settings_that_cannot_be_met_are_refused():
    with pytest.raises(ConfigError, match="come in pairs"):
        SvcoConfig(itc=ItcConfig(queue_size=15)).check_batch(5)
    with pytest.raises(ConfigError, match="come in pairs"):
        SvcoConfig(itc=ItcConfig(queue_size=12), itm=ItmConfig(mining_shards=4)).check_batch(12)
    for bad in (PairConfig("soft"), PairConfig(itc_margin=-1.0), PairConfig(itm_weight=-1.0)):
        with pytest.raises(ConfigError):
            bad.validate()
    with pytest.raises(ConfigError, match=r"unknown config field method\.negatives"):
        method_config({"name": "gnm", "negatives": {"generators": ("swap",)}})
    with pytest.raises(ConfigError, match="data.siblings=0"):
        batch_spec(DataConfig(), 8, tiny.built(CONFIGS["gnm"]).wants)
    assert "source_id_B" in batch_spec(DataConfig(siblings=2), 8, tiny.built(CONFIGS["gnm"]).wants)


def test_svco_wants_what_its_added_terms_read():
    config = SvcoConfig(itc=CONFIGS["svco"].itc, terms=(("intra_modal", 0.1),))
    assert tiny.built(config).wants == (SourceId(), SecondView())
