"""RVLM: which words are to be restored, its keys, and as a whole method."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole

from nas_jax.losses.restored_words import words_to_restore
from nas_jax.losses.text_negatives import itc_with_negatives
from nas_jax.methods.config import ItcConfig, NegativeTextConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.rvlm import RvlmConfig
from nas_jax.methods.terms import Seen
from nas_jax.methods.text_negatives import make_negatives
from nas_jax.utils.errors import ConfigError

STILL = tiny.model(dropout=0.0)


@pytest.fixture
def config(tmp_path):
    """RVLM with a table in which all content words are sister terms of each other."""
    negatives = NegativeTextConfig(("sister",), sisters=tiny.sisters(tmp_path))
    return RvlmConfig(itc=ItcConfig(queue_size=24), negatives=negatives)


def test_the_rewritten_word_is_asked_for_first_and_the_others_are_real():
    batch = tiny.batch(100)
    ids, mask = map(np.asarray, (batch["token_ids_BxL"], batch["token_mask_BxL"]))
    place = np.where(np.arange(100) < 90, 2, 0)  # the last ten are not rewritten
    new = ids.copy()
    new[np.arange(90), place[:90]] = np.where(ids[:90, 2] == 9, 10, 9)
    made = words_to_restore(jax.random.key(0), ids, mask, jnp.asarray(new), tiny.VOCABULARY, 3)
    np.testing.assert_array_equal(made.token_ids_BxL, new)
    positions, weights = np.asarray(made.positions_BxM), np.asarray(made.weights_BxM)
    assert (positions[:90, 0] == 2).all() and (weights[:90, 0] == 1).all()
    assert not weights[90:].any()
    for b in range(90):
        asked = positions[b][weights[b] > 0]
        assert len(set(asked)) == len(asked) == min(3, mask[b].sum() - 1)
        assert mask[b, asked].all() and (ids[b, asked] != tiny.VOCABULARY.cls).all()
        np.testing.assert_array_equal(np.asarray(made.targets_BxM)[b], ids[b, positions[b]])


def test_the_own_rewritten_caption_is_a_key_and_no_other_and_every_part_is_trained(config):
    method, batch = tiny.built(config, model=STILL), tiny.batch()
    params, state = method.init(jax.random.key(0))
    draw = Draws(jax.random.key(9))
    metrics, grads = whole.gradients(method)[2:]
    whole.check_every_group_is_trained(grads)
    mask = batch["token_mask_BxL"]
    seen = Seen(params, state["teacher"], state, batch, draw, jnp.float32(0), None)
    made = make_negatives(method, seen)
    image = method.encode_image(params, state, batch["image_BxHxWx3"])[1]
    text, negative = (
        method.encode_text(params, ids, mask)[1]
        for ids in (batch["token_ids_BxL"], made.ids_BxCxL[:, 0])
    )
    own = np.eye(6, dtype=bool)[..., None] & np.asarray(made.valid_BxC)[None]
    expected = itc_with_negatives(image, text, negative[:, None], params["temp"], own)
    np.testing.assert_allclose(metrics["loss/ritc"], expected, rtol=1e-5)
    everybody = np.ones((6, 6, 1), bool) & np.asarray(made.valid_BxC)[None]
    other = itc_with_negatives(image, text, negative[:, None], params["temp"], everybody)
    assert abs(other - expected) > 1e-3
    assert metrics["negatives/sister"] == made.valid_BxC.mean() > 0.5


def test_settings_that_would_teach_something_else_are_refused(config):
    given = replace(config.negatives, generators=("given", "sister"))
    with pytest.raises(ConfigError, match="'given' first"):
        replace(config, negatives=given).validate()
    with pytest.raises(ConfigError, match="two terms that make the rows 'negative_sister'"):
        whole.gradients(tiny.built(replace(config, terms=(("negative_itm", 1.0),)), model=STILL))


@pytest.mark.slow
def test_it_works_in_pieces_and_in_bfloat16(config):
    whole.check_pieces(config)


@pytest.mark.slow
def test_eight_devices_give_the_same_numbers():
    whole.check_devices("rvlm")


@pytest.mark.slow
def test_a_run_falls_resumes_and_is_scored(config, tmp_path):
    words = NegativeTextConfig(("sister",), sisters="world:small")
    config = replace(config, itc=ItcConfig(queue_size=16), negatives=words)
    whole.check_run(config, tmp_path, ("itc", "itm"))
