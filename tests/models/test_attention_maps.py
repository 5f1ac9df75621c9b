"""Attention maps: the open form of a fusion layer, and the gradient of its probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.models.attention_maps import attention_map, grad_cam
from nas_jax.models.bert import FusionEncoder

ROWS, LENGTH, TOKENS, HEADS, DIM = 2, 3, 5, 2, 16


@pytest.fixture(scope="module")
def given():
    encoder = FusionEncoder(tiny.model(fusion_layers=3, init_std=0.3))
    rng = np.random.default_rng(0)
    text, image = (
        jnp.asarray(rng.normal(size=(ROWS, length, DIM)), jnp.float32)
        for length in (LENGTH, TOKENS)
    )
    mask = jnp.asarray([[True] * 3, [True, True, False]])
    params = encoder.init(jax.random.key(0), text, mask, (ImageTokens((image,)),))
    return encoder, params, (text, mask, image)


def score(fused_RxLxD):
    return jnp.sin(fused_RxLxD[:, 0]).sum(-1) * jnp.asarray([1.0, 3.0])


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_probabilities_and_their_gradient(given, layer):
    encoder, params, (text, mask, image) = given

    @jax.jit
    def fuse(offset):
        return encoder.apply(params, text, mask, image, layer, offset, method="with_map")

    shape = ROWS, HEADS, LENGTH, TOKENS
    probabilities, gradient = attention_map(score, fuse, shape)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    assert np.ptp(probabilities) > 0.1  # of a network that attends
    normal = encoder.apply(params, text, mask, (ImageTokens((image,)),))
    np.testing.assert_allclose(fuse(jnp.zeros(shape))[0], normal, atol=1e-5)

    direction = jax.random.normal(jax.random.key(1), shape)
    step = 1e-2
    high, low = (score(fuse(sign * step * direction)[0]).astype(jnp.float32) for sign in (1, -1))
    slope_R = (high - low) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum((1, 2, 3)), slope_R, rtol=2e-2)
    assert np.abs(slope_R).min() > 1e-2

    found = grad_cam(probabilities, gradient)
    by_hand = np.mean(np.maximum(gradient, 0) * np.asarray(probabilities), axis=1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert found.shape == (ROWS, LENGTH, TOKENS) and (found >= 0).all() and found.max() > 0
