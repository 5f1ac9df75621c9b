"""SoftMask++: Grad-CAM against finite differences, softened rows, views and masking."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole

from nas_jax.data.readers import SecondView
from nas_jax.losses.itm import MatchRows, itm_loss
from nas_jax.methods.added import FocalItc
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.softmask import SoftMaskConfig
from nas_jax.methods.terms import Seen
from nas_jax.models.attention_maps import soft_mask, softly_masked
from nas_jax.utils.errors import ConfigError

CONFIG = SoftMaskConfig(itc=ItcConfig(queue_size=24))


def read(method, params, state, learning=True):
    batch = whole.batch(method)
    given = params, params, state, batch, Draws(jax.random.key(1)), jnp.float32(0.4), None
    return method.see(Seen(*given, learning=learning))


def test_the_map_of_a_word_is_attention_times_the_finite_difference_of_the_match():
    method = tiny.built(CONFIG, model=tiny.model(fusion_layers=3, init_std=0.4, dropout=0.0))
    params, _ = method.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, 17, 16)), jnp.float32)
    text = jnp.asarray(rng.normal(size=(2, 4, 16)), jnp.float32)
    mask, word, net = jnp.asarray([[True] * 4, [True] * 3 + [False]]), 1, method.apply(params)

    @jax.jit
    def match(offset):
        fused, attention = net.fusion_encoder.with_map(text, mask, image, 1, offset)
        return net.itm_logits(fused)[:, 1], attention

    none = jnp.zeros((2, 2, 4, 17))
    attention = np.asarray(match(none)[1])[:, :, word]
    step, slope = 1e-2, np.zeros((2, 2, 17))
    for head in range(2):
        for token in range(17):
            moved = none.at[:, head, word, token].set(step)
            slope[:, head, token] = (match(moved)[0] - match(-moved)[0]) / (2 * step)
    expected = (attention * np.maximum(slope, 0)).mean(1)[:, 1:]
    found = np.asarray(method.word_maps(params, image, text, mask))[:, word]
    np.testing.assert_allclose(found, expected, atol=0.03 * expected.max())
    assert found.max() > 0 and np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


def test_a_soft_mask_spans_0_to_1_and_takes_nothing_else_away():
    maps = np.random.default_rng(0).random((3, 5)).astype(np.float32)
    maps[2] = 0.7  # speaks for no patch in particular
    found = soft_mask(jnp.asarray(maps))
    ranges = np.array([[np.ptp(row) or 1.0] for row in maps])
    expected = (maps - maps.min(1, keepdims=True)) / ranges
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    tokens = np.random.default_rng(1).normal(size=(3, 6, 4)).astype(np.float32)
    masked = softly_masked(jnp.asarray(tokens), found)
    np.testing.assert_array_equal(masked[:, 0], tokens[:, 0])
    expected = tokens[:, 1:] * (1 - expected)[..., None]
    np.testing.assert_allclose(masked[:, 1:], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(masked[2], tokens[2])


def test_softened_pictures_are_further_rows_with_both_labels():
    method = tiny.built(CONFIG, model=tiny.model(fusion_layers=2, init_std=0.3, dropout=0.0))
    params, state = method.init(jax.random.key(0))
    seen = read(method, params, state)
    seen = seen._replace(image_tokens_BxTxD=seen.student.image_tokens_BxTxD)
    term = method.terms(None)["itm"][1]
    rows = term.rows(seen)
    soft, hard = rows["soft"], rows["soft_hard_text"]
    assert (soft.label, hard.label) == (1, 0)
    np.testing.assert_array_equal(soft.text_tokens_BxLxD, seen.student.text_tokens_BxLxD)
    np.testing.assert_array_equal(hard.text_tokens_BxLxD, rows["hard_text"].text_tokens_BxLxD)
    own = seen.image_tokens_BxTxD
    kept = np.asarray(soft.tokens_BxTxD[:, 1:] / own[:, 1:])[..., 0]
    np.testing.assert_allclose(kept.min(1), 0, atol=1e-6)
    np.testing.assert_allclose(kept.max(1), 1, atol=1e-6)
    # the loss: one mean over ALBEF's rows, and half the weight for each kind of softened rows
    rng = np.random.default_rng(0)
    fused = {kind: jnp.asarray(rng.normal(size=(6, 1, 16)), jnp.float32) for kind in rows}
    found, _ = term.value(seen, rows, fused)
    groups = {
        kind: MatchRows(
            method.match_logits(params, fused[kind][:, 0]), row.label, jnp.ones(6, bool)
        )
        for kind, row in rows.items()
    }
    parts = {kind: itm_loss({kind: group}) for kind, group in groups.items()}
    expected = (parts["positive"] + parts["hard_image"] + parts["hard_text"]) / 3
    expected += (parts["soft"] + parts["soft_hard_text"]) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_student_reads_the_distorted_view_and_a_masked_caption():
    config = SoftMaskConfig(itc=CONFIG.itc, text_masking=0.5)
    method = tiny.built(config, model=tiny.model(fusion_layers=2))
    assert method.wants == (SecondView(1.0),)
    params, state = method.init(jax.random.key(0))
    batch = whole.batch(method)
    given = params, params, state, batch, Draws(jax.random.key(1)), jnp.float32(0.4), None
    student, teacher = method.views(Seen(*given))
    np.testing.assert_array_equal(student["image_BxHxWx3"], batch["image2_BxHxWx3"])
    changed = student["token_ids_BxL"] != batch["token_ids_BxL"]
    assert changed.any() and not changed[:, 0].any() and not changed[~batch["token_mask_BxL"]].any()
    assert teacher is batch
    assert method.views(Seen(*given, learning=False)) == (batch, batch)


def test_without_focus_and_softened_pictures_it_is_albef_and_all_parts_are_trained():
    found = whole.gradients(tiny.built(CONFIG, model=tiny.model(fusion_layers=2)))
    whole.check_every_group_is_trained(found[3])
    plain = SoftMaskConfig(itc=CONFIG.itc, focus=0.0, soft_weight=0.0)
    method = tiny.built(plain, model=tiny.model(fusion_layers=2))
    _, _, metrics, _ = whole.gradients(method)
    assert "itm_accuracy/soft" in found[2] and "itm_accuracy/soft" not in metrics
    params, state = jax.jit(method.init)(jax.random.key(0))
    given = params, method.moved_teacher(state["teacher"], params), state, whole.batch(method)
    draw, alpha = Draws(jax.random.key(9)), method.soft_weight(3)
    itc = jax.jit(lambda: method.see(Seen(*given, draw, alpha, None)).itc.loss)()
    np.testing.assert_allclose(metrics["loss/itc"], itc, rtol=1e-5)
    assert abs(found[2]["loss/itc"] - itc) > 1e-3
    with pytest.raises(ConfigError, match="focus"):
        tiny.built(SoftMaskConfig(itc=CONFIG.itc, focus=-1.0))
    with pytest.raises(ConfigError, match="fusion_layers=1"):
        tiny.built(CONFIG)


class Unfocused(FocalItc):
    """The focal ITC whose keys all weigh the same."""

    def gamma(self):
        return 0.0


def test_pairs_that_itc_leaves_out_are_left_out_of_its_focal_form_too():
    losses = {}
    for same in ((), ("id",)):
        method = tiny.built(AlbefConfig(itc=ItcConfig(queue_size=24, same=same)))
        params, state = method.init(jax.random.key(0))
        state["queue"] = state["queue"].replace(image_id_Q=jnp.arange(24))
        batch = tiny.batch() | {"image_id_B": jnp.array([1, 1, 2, 3, 4, 5])}
        given = params, params, state, batch, Draws(jax.random.key(1)), jnp.float32(0.4), None
        seen = method.see(Seen(*given))
        losses[same] = seen.itc.loss
        focal = Unfocused(method).value(seen, {}, {})[0]
        np.testing.assert_allclose(focal, seen.itc.loss, rtol=1e-5)
    assert abs(losses["id",] - losses[()]) > 1e-3


@pytest.mark.slow
def test_it_works_in_pieces_and_in_bfloat16():
    whole.check_pieces(CONFIG, fusion_layers=2)


@pytest.mark.slow
def test_eight_devices_give_the_same_numbers():
    whole.check_devices("softmask")


@pytest.mark.slow
def test_it_trains_resumes_and_is_scored(tmp_path):
    whole.check_run(CONFIG, tmp_path, ("itc", "itm"), fusion_layers=2)
