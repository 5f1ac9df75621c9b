"""NegCLIP and CE-CLIP as whole methods, and their terms in any other."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole

from nas_jax.losses.text_negatives import itc_with_negatives, next_margin, own_similarities
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.ceclip import CeClipConfig
from nas_jax.methods.config import ItcConfig, NegativeTextConfig, SameConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.nas import NasConfig
from nas_jax.methods.negclip import NegClipConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.negatives.records import TextNegatives
from nas_jax.utils.errors import ConfigError

CONFIGS = {"negclip": NegClipConfig(), "ceclip": CeClipConfig()}
STILL = tiny.model(dropout=0.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_is_trained(name):
    grads = whole.gradients(tiny.built(CONFIGS[name]))[3]
    whole.check_every_group_is_trained(grads)


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
    config = replace(
        CONFIGS[name], negatives=NegativeTextConfig(sisters="world:small", swap_sisters=True)
    )
    whole.check_run(config, tmp_path, ("itc",))


def step(config, batch, state=None, recorded=None):
    """Features by hand of the method's own network, and what its loss gives."""
    method = tiny.built(config, model=STILL)
    params, fresh = method.init(jax.random.key(0))
    state = fresh if state is None else state
    draw = Draws(jax.random.key(1), recorded or {})
    found = method.loss(params, state, batch, draw, jnp.int32(0), None)

    def read(ids, mask):
        return method.encode_text(params, ids, mask)[1]

    image = method.encode_image(params, {}, batch["image_BxHxWx3"])[1]
    return image, read, method.temperature(params), found


def metrics_of(method):
    """The metrics of a step, compiled."""
    params, state = jax.jit(method.init)(jax.random.key(0))
    args = params, state, tiny.batch(), Draws(jax.random.key(1)), jnp.int32(0), method.stage(0)
    return jax.jit(method.loss, static_argnums=5)(*args)[1][1]


def captions(batch, *columns):
    """Given negative captions: the true ones with the word at 1 replaced; column 0 keeps it."""
    ids = batch["token_ids_BxL"]
    made = jnp.stack([ids.at[:, 1].set(word) if word else ids for word in columns], 1)
    mask = jnp.broadcast_to(batch["token_mask_BxL"][:, None], made.shape)
    return batch | {"negative_ids_BxCxL": made, "negative_mask_BxCxL": mask}


def test_given_captions_are_keys_and_those_equal_to_any_true_caption_are_not():
    batch = tiny.batch()
    ids = batch["token_ids_BxL"].at[:, 1:].set(jnp.where(batch["token_mask_BxL"], 12, 0)[:, 1:])
    ids = ids.at[:, 1].set(jnp.array([8, 9, 10, 11, 13, 14]))
    mask = jnp.broadcast_to(batch["token_mask_BxL"][1], ids.shape)  # captions differ at 1 only
    ids = jnp.where(mask, ids.at[:, 2:].set(12), 0)
    batch = captions(batch | {"token_ids_BxL": ids, "token_mask_BxL": mask}, 0, 9, 15)
    config = NegClipConfig(negatives=NegativeTextConfig(("given",), given=3))
    image, read, temp, (loss, (_, metrics)) = step(config, batch)
    text = read(ids, mask)
    made = jnp.stack([read(batch["negative_ids_BxCxL"][:, c], mask) for c in range(3)], 1)
    usable = np.ones((6, 6, 3), bool)
    usable[:, :, 0] = False  # equal to its own true caption
    usable[1, :, 1] = False  # the others' negative is picture 1's own caption
    usable[:, 1, 1] = False  # and of pair 1 it is none at all
    expected = itc_with_negatives(image, text, made, temp, usable)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    wrong = itc_with_negatives(image, text, made, temp, usable | (np.arange(3) == 1))
    assert abs(wrong - expected) > 1e-4
    np.testing.assert_allclose(
        [metrics[f"negatives/given_{c}"] for c in range(3)], [0, 5 / 6, 1], rtol=1e-6
    )
    with pytest.raises(ConfigError, match="given=3"):
        step(config, captions(batch, 15))
    with pytest.raises(ConfigError, match="negative_ids_BxCxL"):
        step(config, tiny.batch())


def test_the_margin_of_ceclip_is_that_of_the_step_before():
    config = CeClipConfig(negatives=NegativeTextConfig(("given",), given=2))
    batch = captions(tiny.batch(), 15, 16)
    image, read, temp, (first, (state, metrics)) = step(config, batch)
    assert metrics["rank/margin"] == 0
    text = read(batch["token_ids_BxL"], batch["token_mask_BxL"])
    made = jnp.stack([read(batch["negative_ids_BxCxL"][:, c], batch["token_mask_BxL"])
                      for c in range(2)], 1)  # fmt: skip
    gaps = own_similarities(image, text, made, temp)
    valid = np.asarray(batch["token_ids_BxL"])[:, 1:2] != [15, 16]
    expected = next_margin(*gaps, valid, jnp.zeros(2), 10.0)
    np.testing.assert_allclose(state["rank_margin_C"], expected, rtol=1e-4, atol=1e-6)
    raised = {"rank_margin_C": jnp.full(2, 4.0)}
    _, _, _, (second, (_, metrics)) = step(config, batch, raised)
    assert metrics["rank/margin"] == 4 and second > first + 0.3  # 0.2 of nearly 4
    fixed = replace(config, adaptive_margin=False, negatives=replace(config.negatives,
                                                                    rank_margin=4.0))  # fmt: skip
    _, _, _, (third, (state, _)) = step(fixed, batch, {})
    np.testing.assert_allclose(third, second, rtol=1e-6)
    assert state == {}


def test_captions_that_differ_by_synonyms_are_no_negatives(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text('{"w15": ["w16"]}')
    batch = tiny.batch()
    batch["token_ids_BxL"] = batch["token_ids_BxL"].at[:, 1].set(15)
    batch = captions(batch, 16)
    negatives = NegativeTextConfig(("given",))
    losses = {
        same: step(NegClipConfig(
            itc=SameConfig(same=same, synonyms=str(path) if same else ""), negatives=negatives,
        ), batch)[3][0] for same in ((), ("synonyms",))
    }  # fmt: skip
    assert losses["synonyms",] < losses[()] - 0.02  # each caption's own near copy is left out


def test_any_method_takes_the_terms_by_config():
    names = ("negative_itc", "negative_rank", "negative_intra_text", "negative_itm")
    found = {}
    for terms in ((), tuple((name, 0.5) for name in names)):
        config = AlbefConfig(itc=ItcConfig(queue_size=24), terms=terms)
        found[bool(terms)] = metrics_of(tiny.built(config))
    without, added = found[False], found[True]
    new = [added[f"loss/{name}"] for name in names]
    assert all(value > 0 for value in new)
    np.testing.assert_allclose(added["loss"], without["loss"] + 0.5 * sum(new), rtol=1e-5)
    assert 0 <= added["itm_accuracy/negative_swap"] <= 1
    for name in without.keys() - {"loss"}:
        np.testing.assert_allclose(added[name], without[name], rtol=1e-5, atol=1e-6)


def test_a_generator_that_the_method_does_not_train_is_refused():
    refill = NegativeTextConfig(("refill",))
    for config in (NegClipConfig(negatives=refill), CeClipConfig(negatives=refill)):
        with pytest.raises(ConfigError, match="trains a generator"):
            tiny.built(config)
    with pytest.raises(ConfigError, match="trains a generator"):
        tiny.built(NasConfig(negatives=refill), "vd")
    made = tiny.built(
        NasConfig(itc=ItcConfig(queue_size=24), dictionary=DictionaryConfig(codes=12),
                  negatives=NegativeTextConfig(("refill", "exchange")),
                  terms=(("negative_itc", 1.0),)), "nas",
    )  # fmt: skip
    metrics = metrics_of(made)
    assert metrics["negatives/refill"] > 0.5 and np.isfinite(metrics["loss/negative_itc"])


@pytest.mark.parametrize(
    "bad",
    [{"generators": ()}, {"generators": ("swap", "swap")}, {"generators": ("swop",)},
     {"generators": ("sister",)}, {"swap_sisters": True}, {"given": 0}, {"rank_margin": -1.0}],
)  # fmt: skip
def test_unusable_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        NegativeTextConfig(**bad).validate()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NegClipConfig(negatives=NegativeTextConfig(rank_margin=4.0)), "negative_rank"),
        (NegClipConfig(negatives=NegativeTextConfig(stop_gradient=True)), "negative_itm"),
        (CeClipConfig(negatives=NegativeTextConfig(stop_gradient=True)), "negative_itm"),
        (AlbefConfig(negatives=NegativeTextConfig(("swap", "given"))), "no term reads"),
        (AlbefConfig(negatives=NegativeTextConfig(rank_margin=4.0),
                     terms=(("negative_itc", 1.0),)), "negative_rank"),
    ],
)  # fmt: skip
def test_settings_that_no_term_reads_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        tiny.built(config)


def test_settings_that_a_term_reads_are_taken():
    every = NegativeTextConfig(rank_margin=4.0, stop_gradient=True)
    tiny.built(CeClipConfig(negatives=NegativeTextConfig(rank_margin=4.0)))
    terms = (("negative_rank", 1.0), ("negative_itm", 1.0))
    tiny.built(AlbefConfig(itc=ItcConfig(queue_size=24), negatives=every, terms=terms))


def test_a_recorded_draw_takes_the_place_of_a_generator():
    batch = tiny.batch()
    ids = batch["token_ids_BxL"].at[:, 1].set(19)
    made = TextNegatives(
        ids[:, None], batch["token_mask_BxL"][:, None], jnp.ones((6, 1), bool), ("swap",)
    )
    losses = [float(step(NegClipConfig(), batch, recorded=drawn)[3][0])
              for drawn in ({}, {"swap": made})]  # fmt: skip
    assert losses[0] != losses[1]
