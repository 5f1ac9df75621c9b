"""VL-Match and ViLTA: their formulae in NumPy, what trains what, and both as whole methods."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole
from jax.test_util import check_grads

from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.losses.mlm import MaskedText, mlm_mean, mlm_rows
from nas_jax.losses.replaced_tokens import detection_loss, replaced_text, sample_words
from nas_jax.methods import method_config
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.terms import Seen
from nas_jax.methods.vilta import ViltaConfig
from nas_jax.methods.vlmatch import Rtd, VlMatchConfig
from nas_jax.negatives.nta import GeneratorConfig
from nas_jax.utils.errors import ConfigError

ITC = ItcConfig(queue_size=24)
CONFIGS = {"vlmatch": VlMatchConfig(itc=ITC), "vilta": ViltaConfig(itc=ITC)}
STILL = tiny.model(dropout=0.0)


def test_the_detector_loss_follows_its_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    replaced, real = rng.random((3, 5)) < 0.5, rng.random((3, 5)) < 0.7
    p = 1 / (1 + np.exp(-logits))
    expected = -np.where(replaced, np.log(p), np.log(1 - p))[real].mean()
    loss, shares = detection_loss(logits, replaced, real)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(shares["accuracy"], ((logits > 0) == replaced)[real].mean())
    np.testing.assert_allclose(shares["found_share"], (logits > 0)[real & replaced].mean())
    check_grads(lambda x: detection_loss(x, replaced, real)[0], (logits,), 1, ["rev"])
    grad = jax.grad(lambda x: detection_loss(x, replaced, real)[0])(logits)
    assert not np.asarray(grad)[~real].any()
    assert detection_loss(logits, replaced, real & False)[0] == 0
    sure = detection_loss(jnp.where(replaced, 90.0, -90.0), replaced, real)[0]
    assert sure < 1e-6 < detection_loss(jnp.where(replaced, -90.0, 90.0), replaced, real)[0]


def test_words_are_drawn_from_the_generator_and_restored_ones_are_not_replaced():
    ids = tiny.batch(64)["token_ids_BxL"]
    positions = jnp.tile(jnp.array([[1, 2, 3]]), (64, 1))
    weights = jnp.tile(jnp.array([[1.0, 1.0, 0.0]]), (64, 1))
    masked = MaskedText(ids.at[:, 1:3].set(4), positions, ids[:, 1:4], weights)
    # at 1 the generator is sure of the true word, at 2 of another, at 3 nothing was masked
    other = jnp.where(ids[:, 2] == 12, 13, 12)
    logits = 50.0 * jax.nn.one_hot(jnp.stack([ids[:, 1], other, other], 1), tiny.VOCAB)
    logits = logits.at[..., tiny.VOCABULARY.mask].set(99.0)  # never drawn
    words = sample_words(jnp.arange(64, dtype=jnp.uint32), logits, tiny.VOCABULARY)
    new = replaced_text(ids, masked, words)
    np.testing.assert_array_equal(new != ids, np.arange(8)[None] == np.full((64, 1), 2))
    np.testing.assert_array_equal(new[:, 2], other)
    even = jnp.zeros((64, 3, tiny.VOCAB))
    drawn = np.asarray(sample_words(jnp.arange(64, dtype=jnp.uint32), even, tiny.VOCABULARY))
    assert set(drawn.ravel()) == set(range(tiny.VOCAB)) - {0, 2, 3, 4}
    half = np.asarray(sample_words(jnp.arange(32, 64, dtype=jnp.uint32), even[32:],
                                   tiny.VOCABULARY))  # fmt: skip
    np.testing.assert_array_equal(half, drawn[32:])  # whatever the piece


def test_the_labels_of_a_step_are_right_where_the_generator_restored_a_word(monkeypatch):
    """The true words as the generator's: nothing is replaced; another word: all masked ones are."""
    method, batch = tiny.built(CONFIGS["vlmatch"], model=STILL), tiny.batch()
    params, state = method.init(jax.random.key(0))
    seen = Seen(params, {}, state, batch, Draws(jax.random.key(1)), jnp.float32(0), True)
    fused = {"rtd": jnp.zeros((6, 8, 16))}
    shares = {}
    for kind in ("true", "other"):
        ids = batch["token_ids_BxL"]
        made = ids if kind == "true" else jnp.where(batch["token_mask_BxL"] & (ids > 4), 22, ids)
        monkeypatch.setattr(Rtd, "replaced", lambda self, seen, made=made: made)
        term = Rtd(method)
        rows = term.rows(seen)
        np.testing.assert_array_equal(rows["rtd"].token_ids_BxL, made)
        shares[kind] = term.value(seen, rows, fused)[1]["rtd/replaced_share"]
    assert shares == {"true": 0, "other": 1}


def test_every_part_of_vlmatch_is_trained_and_the_parts_are_added_up():
    _, _, metrics, grads = whole.gradients(tiny.built(CONFIGS["vlmatch"]))
    whole.check_every_group_is_trained(grads)
    assert metrics["negatives/refill"] > 0 and metrics["itm_accuracy/negative_refill"] >= 0
    parts = [metrics[f"loss/{name}"] for name in ("itc", "itm", "rtd", "generator")]
    np.testing.assert_allclose(metrics["loss"], sum(parts), rtol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("field", ["enabled", "exchange", "exchange_ramp_epochs", "stop_gradient"])
def test_what_only_the_rows_of_nta_read_is_refused(name, field):
    with pytest.raises(ConfigError, match=rf"unknown config field method\.nta\.{field}"):
        method_config({"name": name, "nta": {field: 1}})
    assert method_config({"name": name, "nta": {"exchange_pairs": 3}}).nta.exchange_pairs == 3


@pytest.mark.parametrize(
    ("name", "changes", "head", "read"),
    [
        ("vlmatch", {}, "mlm_head", set()),
        ("vilta", {}, "generator_head", {"masked"}),
        ("vilta", {"language_model": "frozen"}, "generator_head", set()),
    ],
)
def test_the_teacher_has_and_reads_no_more_than_is_used(name, changes, head, read):
    method, batch = tiny.built(replace(CONFIGS[name], **changes), model=STILL), tiny.batch()
    params, state = method.init(jax.random.key(0))
    towers = {f"{tower}_{part}" for tower in ("image", "text") for part in ("encoder", "proj")}
    assert state["teacher"].keys() == towers | {head}
    given = params, state["teacher"], state, batch, Draws(jax.random.key(1)), jnp.float32(0)
    seen = method.see(Seen(*given, True))
    assert seen.taught.others.keys() == read and seen.student.others.keys() == {"masked"}


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
    config = replace(CONFIGS[name], itc=ItcConfig(queue_size=16))
    whole.check_run(config, tmp_path, ("itc", "itm"))


@pytest.mark.parametrize("language_model", ["teacher", "frozen"])
def test_the_soft_labels_of_vilta_are_the_language_models(language_model):
    """By hand from the captions alone; ALBEF's teacher, who sees the picture, has others. And every
    part is trained.
    """
    weights = {"alpha": 0.7, "alpha_ramp_epochs": 0.0, "momentum": 0.5}
    config = ViltaConfig(itc=ITC, language_model=language_model, **weights)
    method, batch = tiny.built(config, model=STILL), tiny.batch()
    params, state = method.init(jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)
    moved["generator_head"]["bias"] += 3 * jnp.sin(jnp.arange(tiny.VOCAB))
    draw, found = Draws(jax.random.key(9)), {}
    metrics, grads = whole.gradients(method, params=moved)[2:]
    whole.check_every_group_is_trained(grads)
    masked = method.terms(True)["mlm"][1].masked(batch, draw)
    teacher = method.moved_teacher(state["teacher"], moved)
    language = {"teacher": teacher, "frozen": params}[language_model]
    wrong = {"teacher": params, "frozen": teacher}[language_model]

    def pick(x_BxLxD):
        return jnp.take_along_axis(x_BxLxD, masked.positions_BxM[..., None], axis=1)

    tokens = method.encode_image(moved, state, batch["image_BxHxWx3"])[0]
    inputs = masked.token_ids_BxL, batch["token_mask_BxL"]
    net = method.apply(moved)
    fused = net.fuse(net.encode_text(*inputs)[0], inputs[1], (ImageTokens((tokens,)),))
    logits = net.mlm_logits(pick(fused))
    for name, group in (("right", language), ("wrong", wrong)):
        lm = method.apply(group)
        table = group["text_encoder"]["word_embedding"]["embedding"]
        soft = lm.generator_logits(pick(lm.encode_text(*inputs)[0]), table)
        found[name] = mlm_mean(mlm_rows(logits, soft, masked, 0.7), masked)
    np.testing.assert_allclose(metrics["loss/mlm"], found["right"], rtol=1e-5)
    assert abs(found["wrong"] - found["right"]) > 1e-2


def test_negative_captions_come_in_when_the_config_says_so():
    for config in (VlMatchConfig(nta=GeneratorConfig(start_epoch=2)),
                   ViltaConfig(nta=GeneratorConfig(start_epoch=2))):  # fmt: skip
        method = tiny.built(config)
        assert not method.stage(19) and method.stage(20) and method.stage_starts() == (0, 20)
        kinds = [type(method.terms(stage)["itm"][1]).__name__ for stage in (False, True)]
        assert kinds == ["Itm", "FineItm"]
    for bad in (VlMatchConfig(rtd_weight=-1.0), ViltaConfig(language_model="bert")):
        with pytest.raises(ConfigError):
            tiny.built(bad)
