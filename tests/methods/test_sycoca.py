"""SyCoCa: which patches are masked, that nothing of them is seen, and their loss in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole
from jax.test_util import check_grads

from nas_jax.losses.masked_pixels import most_relevant, pixel_rows
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.sycoca import ImageModelling, SycocaConfig
from nas_jax.methods.terms import Seen
from nas_jax.models.vit import hide_patches, patchify
from nas_jax.utils.errors import ConfigError

CONFIG = SycocaConfig(itc=ItcConfig(queue_size=24))


def test_the_loss_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    predicted, pixels = rng.normal(size=(2, 3, 12)), 5 + 3 * rng.normal(size=(2, 3, 12))
    pixels[1, 2] = 4.0  # a patch of one colour: its target is 0
    target = np.zeros_like(pixels)
    for b in range(2):
        for m in range(3):
            spread = pixels[b, m].std()
            target[b, m] = (pixels[b, m] - pixels[b, m].mean()) / (spread or 1.0)
    expected = ((predicted - target) ** 2).mean((1, 2))
    given = jnp.asarray(predicted, jnp.float32), jnp.asarray(pixels, jnp.float32)
    np.testing.assert_allclose(pixel_rows(*given), expected, rtol=1e-4)
    check_grads(lambda x: pixel_rows(x, given[1]).sum(), given[:1], 1, ("rev",), rtol=2e-2)


def test_the_most_relevant_patches_are_hidden_and_no_others():
    relevance = np.random.default_rng(0).random((2, 16)).astype(np.float32)
    positions, where = most_relevant(jnp.asarray(relevance), 0.25)
    for row in range(2):
        best = set(np.argsort(-relevance[row])[:4])
        assert set(np.asarray(positions)[row]) == best == set(np.flatnonzero(where[row]))
    image = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)
    before, after = patchify(image, 4), patchify(hide_patches(image, where, 4), 4)
    np.testing.assert_array_equal(after, np.where(np.asarray(where)[..., None], 0.0, before))


@pytest.fixture(scope="module")
def read():
    method = tiny.built(CONFIG, model=tiny.model(dropout=0.0, init_std=0.3))
    params, state = method.init(jax.random.key(0))
    given = params, params, state, whole.batch(method), Draws(jax.random.key(1))
    seen = method.see(Seen(*given, jnp.float32(0.4), None))
    return seen, method.terms(None)["images"][1]


def test_hidden_pixels_are_not_seen_and_the_caption_is(read):
    seen, term = read
    positions, where = most_relevant(term.relevance(seen), 0.5)
    image = np.array(seen.batch["image_BxHxWx3"])
    predicted = term.predict(seen, positions, where)

    def with_image(changed):
        batch = seen.batch | {"image_BxHxWx3": jnp.asarray(changed)}
        return term.predict(seen._replace(batch=batch), positions, where)

    hidden = np.asarray(where).reshape(-1, 4, 4).repeat(4, 1).repeat(4, 2)
    np.testing.assert_array_equal(with_image(np.where(hidden[..., None], 9, image)), predicted)
    assert np.abs(with_image(np.where(hidden[..., None], image, 9)) - predicted).max() > 1e-3
    other = seen.student._replace(text_tokens_BxLxD=seen.student.text_tokens_BxLxD[::-1])
    found = term.predict(seen._replace(student=other), positions, where)
    assert np.abs(found - predicted).max() > 1e-3


def test_relevance_is_the_attention_of_the_words_of_the_teacher(read):
    seen, term = read
    net, batch = term.method.apply(seen.teacher), seen.batch
    offset = jnp.zeros((6, 2, 8, 17))
    given = seen.taught.text_tokens_BxLxD, batch["token_mask_BxL"], seen.taught.image_tokens_BxTxD
    _, attention = net.fusion_encoder.with_map(*given, 0, offset)
    found = np.asarray(term.relevance(seen))
    for row in range(6):
        ids, mask = (
            np.asarray(batch["token_ids_BxL"][row]),
            np.asarray(batch["token_mask_BxL"][row]),
        )
        words = tiny.CONTENT[ids] & mask
        expected = np.asarray(attention[row])[:, words].mean((0, 1))[1:]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4)


def test_every_part_is_trained_and_masking_can_be_random():
    _, _, metrics, grads = whole.gradients(tiny.built(CONFIG))
    whole.check_every_group_is_trained(grads)
    names = ("itc", "itm", "mlm", "images")
    expected = sum(metrics[f"loss/{name}"] for name in names)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    random = SycocaConfig(itc=CONFIG.itc, images=ImageModelling(masking="random"))
    found = whole.gradients(tiny.built(random))[2]["loss/images"]
    assert np.isfinite(found) and found != metrics["loss/images"]
    with pytest.raises(ConfigError, match="masking"):
        tiny.built(SycocaConfig(images=ImageModelling(masking="none")))


@pytest.mark.slow
def test_it_works_in_pieces_and_in_bfloat16():
    whole.check_pieces(CONFIG)


@pytest.mark.slow
def test_eight_devices_give_the_same_numbers():
    whole.check_devices("sycoca")


@pytest.mark.slow
def test_it_trains_resumes_and_is_scored(tmp_path):
    whole.check_run(CONFIG, tmp_path, ("itc", "itm"))
