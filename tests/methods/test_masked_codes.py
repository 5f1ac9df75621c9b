"""SOHO's masked visual modelling beside NAS's dictionary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole
from jax.test_util import check_grads

from nas_jax.losses.masked_codes import MaskedPatches, code_rows, mask_patches
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.rows import fuse_together
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.utils.errors import ConfigError

SECTIONS = {"itc": ItcConfig(queue_size=24), "terms": (("masked_codes", 0.5),)}
OFF = {"nva": NvaConfig(enabled=False), "nta": NtaConfig(enabled=False)}
CONFIG = NasConfig(dictionary=DictionaryConfig(codes=12), **OFF, **SECTIONS)


@pytest.mark.parametrize("most", [3, 16])
def test_all_patches_of_the_drawn_code_are_masked(most):
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 4, (6, 16)), jnp.int32)
    masked = mask_patches(jax.random.key(1), codes, most)
    np.testing.assert_array_equal(masked.where_BxN, codes == masked.code_B[:, None])
    assert masked.where_BxN.any(1).all()
    asked = np.take_along_axis(np.asarray(masked.where_BxN), np.asarray(masked.positions_BxM), 1)
    np.testing.assert_array_equal(asked, masked.real_BxM)
    found = np.minimum(most, masked.where_BxN.sum(1))
    np.testing.assert_array_equal(masked.real_BxM.sum(1), found)
    assert len({tuple(row) for row in np.asarray(masked.where_BxN)}) > 1


def test_the_loss_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    fused, codes = rng.normal(size=(3, 4, 5)), rng.normal(size=(7, 5))
    real, code, temp = rng.random((3, 4)) < 0.6, np.array([2, 0, 6]), 0.3
    expected = np.zeros(3)
    for b in range(3):
        for m in range(4):
            norms = np.linalg.norm(fused[b, m]) * np.linalg.norm(codes, axis=1)
            logits = codes @ fused[b, m] / norms / temp
            loss = np.log(np.exp(logits).sum()) - logits[code[b]]
            expected[b] += loss if real[b, m] else 0.0
    masked = MaskedPatches(None, None, jnp.asarray(real), jnp.asarray(code))
    given = jnp.asarray(fused, jnp.float32), jnp.asarray(codes, jnp.float32)
    np.testing.assert_allclose(code_rows(*given, masked, temp), expected, rtol=1e-5)

    def loss(fused_BxMxD):
        return code_rows(fused_BxMxD, given[1], masked, temp).sum()

    check_grads(loss, given[:1], 1, ("rev",), rtol=2e-2)
    codes_grad = jax.grad(lambda codes: code_rows(given[0], codes, masked, temp).sum())(given[1])
    assert not np.any(codes_grad)


def test_image_tokens_are_fused_with_the_caption_and_not_with_its_padding():
    method = tiny.built(CONFIG, model=tiny.model(fusion_layers=2, init_std=0.3, dropout=0.0))
    params, _ = method.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    text, image = (jnp.asarray(rng.normal(size=(2, n, 16)), jnp.float32) for n in (4, 17))
    mask = jnp.asarray([[True, True, True, False]] * 2)
    positions = jnp.asarray([[1, 5, 16], [3, 2, 9]])

    def fused(text):
        return fuse_together(method.network, params, (text, mask), image, positions)

    found = fused(text)
    assert found.shape == (2, 3, 16)
    np.testing.assert_allclose(fused(text.at[:, 3].set(9.0)), found, atol=1e-5)
    assert np.abs(fused(text.at[:, 1].set(9.0)) - found).max() > 1e-3
    # the same by reading all tokens of the sequence
    everywhere = jnp.broadcast_to(jnp.arange(17), (2, 17))
    every = fuse_together(method.network, params, (text, mask), image, everywhere)
    picked = np.take_along_axis(np.asarray(every), np.asarray(positions)[..., None], 1)
    np.testing.assert_allclose(found, picked, atol=1e-5)


def test_nas_takes_it_by_config_and_others_are_told_what_they_lack():
    method = tiny.built(CONFIG)
    _, _, metrics, grads = whole.gradients(method)
    own = ("itc", "itm", "mlm")
    expected = sum(metrics[f"loss/{name}"] for name in own) + 0.5 * metrics["loss/masked_codes"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    whole.check_every_group_is_trained(grads)
    assert grads["masked_codes"]["mask_token"].shape == (16,)
    with pytest.raises(ConfigError, match="masked_codes"):
        tiny.built(AlbefConfig(**SECTIONS))
    with pytest.raises(ConfigError, match="twice"):
        tiny.built(NasConfig(terms=(("intra_text", 1.0),) * 2))


@pytest.mark.slow
def test_it_works_in_pieces_and_in_bfloat16():
    whole.check_pieces(CONFIG)
