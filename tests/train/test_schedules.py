"""Learning rates and the rule of decay against ALBEF's code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import tiny

from nas_jax.train.optimizer import OptimizerConfig, decayed, make_schedule

STEPS_PER_EPOCH = 10_000


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-5),
        (100, 1e-5),
        (101, 1.45e-5),
        (200, 1.45e-5),
        (201, 1.9e-5),
        (2000, 9.55e-5),
        (2001, 1e-4),
        (9_999, 1e-4),
        (10_000, 9.975e-5),
        (19_999, 9.975e-5),
        (150_000, 5.5e-5),
        (290_000, 1.025e-5),
        (310_000, 1e-5),
    ],
)
def test_staircase_at_the_steps_of_albef(step, expected):
    config = OptimizerConfig(cosine_epochs=30)
    schedule = jax.jit(make_schedule(config, 31 * STEPS_PER_EPOCH, STEPS_PER_EPOCH))
    assert float(schedule(jnp.int32(step))) == pytest.approx(expected, rel=1e-3)


def test_staircase_of_a_short_epoch_cuts_the_warm_up():
    schedule = make_schedule(OptimizerConfig(), 30 * 150, 150)
    assert float(schedule(jnp.int32(149))) == pytest.approx(1.45e-5, rel=1e-3)
    assert float(schedule(jnp.int32(150))) == pytest.approx(9.975e-5, rel=1e-3)


def test_smooth_schedule_meets_its_corners():
    config = OptimizerConfig(schedule="smooth", warmup_steps=100)
    schedule = make_schedule(config, 1000, 100)
    for step, expected in ((0, 1e-5), (50, 5.5e-5), (100, 1e-4), (550, 5.5e-5), (1000, 1e-5)):
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected, rel=1e-4)


def test_decay_spares_biases_and_norms_but_not_positions_cls_and_temperature():
    params, _ = tiny.method("nas").init(jax.random.key(0))
    flags = decayed(params)
    image = flags["image_encoder"]
    assert image["position_embedding"] and image["cls_token"] and flags["temp"]
    assert image["patch_embed"]["kernel"] and flags["text_encoder"]["word_embedding"]["embedding"]
    assert not image["norm"]["scale"] and not flags["mlm_head"]["bias"]
    # a bias although its shape is (3, H, F)
    assert not image["block_0"]["attention"]["qkv"]["bias"]
