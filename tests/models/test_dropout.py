from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.models.dropout import Dropout, row_bits, sub_seeds


def test_noise_is_uniform_and_without_pattern():
    bits = np.asarray(row_bits(jnp.arange(400, dtype=jnp.uint32), (16, 32), 7))
    share = bits / 2**32
    assert abs(share.mean() - 0.5) < 0.003 and abs(share.std() - 12**-0.5) < 0.003
    each = np.unpackbits(bits.view(np.uint8)).mean()
    assert abs(each - 0.5) < 0.002
    flat = share - 0.5
    for shifted in (flat[1:], flat[:, 1:], flat[:, :, 1:]):
        base = flat[: shifted.shape[0], : shifted.shape[1], : shifted.shape[2]]
        assert abs((shifted * base).mean()) * 12 < 0.01  # correlation of neighbours
    assert len(np.unique(bits)) > 0.9999 * bits.size
    assert (row_bits(jnp.arange(400, dtype=jnp.uint32), (16, 32), 8) != bits).mean() > 0.999
    assert len(np.unique(sub_seeds(jnp.arange(9, dtype=jnp.uint32), 5))) == 45


def test_a_row_keeps_its_mask_wherever_it_stands():
    x = jnp.ones((6, 5, 40))
    seeds = jnp.asarray([3, 1, 4, 1, 5, 9], jnp.uint32)
    layer = Dropout(0.25)
    whole = layer.apply({}, x, seeds)
    np.testing.assert_array_equal(layer.apply({}, x[2:4], seeds[2:4]), whole[2:4])
    np.testing.assert_array_equal(whole[1], whole[3])  # equal seeds
    assert (whole[0] != whole[2]).any()
    assert float((whole == 0).mean()) == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(np.unique(whole), [0, 4 / 3])
    np.testing.assert_array_equal(layer.apply({}, x, None), x)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_is_the_same(remat):
    """Values and gradients of a training pass with dropout, with and without rematerialisation."""
    batch, results = tiny.batch(), {}
    for policy in ("none", remat):
        method = tiny.method("albef", name="albef", model=tiny.model(remat=policy))
        params, _ = method.init(jax.random.key(0))
        seeds = jnp.arange(6, dtype=jnp.uint32)

        def value(params, model=method.ctx.model, seeds=seeds):
            bound = {"params": params}
            image, _ = model.apply(bound, batch["image_BxHxWx3"], method="encode_image")
            text = (batch["token_ids_BxL"], batch["token_mask_BxL"])
            tokens, _ = model.apply(bound, *text, seeds, method="encode_text")
            return model.apply(bound, tokens, text[1], image, seeds, method="match").sum()

        results[policy] = jax.jit(jax.value_and_grad(value))(params)
        plain = jax.make_jaxpr(jax.grad(value))(params)
        assert ("remat" in str(plain) or "checkpoint" in str(plain)) == (policy != "none")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), results["none"], results[remat])
