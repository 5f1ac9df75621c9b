from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nas_jax.kernels.dropout import dropout, layer_seeds, noise, token_seeds
from nas_jax.kernels.image_tokens import ImageTokens


def test_noise_is_uniform_and_without_pattern():
    seeds = token_seeds(jnp.arange(1000, 1040, dtype=jnp.uint32), 10)
    bits = np.asarray(noise(seeds[..., None, None], "a", (40, 10, 16, 32), (2, 3)))
    share = bits / 2**32
    assert abs(share.mean() - 0.5) < 0.003 and abs(share.std() - 12**-0.5) < 0.003
    each = np.unpackbits(bits.view(np.uint8)).mean()
    assert abs(each - 0.5) < 0.002
    flat = share - 0.5
    for axis in range(4):  # correlation of neighbours
        one, other = np.delete(flat, 0, axis), np.delete(flat, -1, axis)
        assert abs((one * other).mean()) * 12 < 0.01
    assert len(np.unique(bits)) > 0.9999 * bits.size
    others = (
        noise(seeds[..., None, None], "b", bits.shape, (2, 3)),
        noise(layer_seeds(seeds, 1)[..., None, None], "a", bits.shape, (2, 3)),
    )
    for other in map(np.asarray, others):
        assert (other != bits).mean() > 0.999
        assert abs(np.corrcoef(other.ravel(), bits.ravel())[0, 1]) < 0.01


def test_a_token_keeps_its_mask_wherever_it_stands():
    x = jnp.ones((6, 5, 40))
    seeds = token_seeds(jnp.asarray([3, 1, 4, 1, 5, 9], jnp.uint32), 5)[..., None]
    whole = dropout(x, 0.25, seeds, "here", (2,))
    np.testing.assert_array_equal(dropout(x[2:4], 0.25, seeds[2:4], "here", (2,)), whole[2:4])
    np.testing.assert_array_equal(
        dropout(x[:, 1:2], 0.25, seeds[:, 1:2], "here", (2,)), whole[:, 1:2]
    )
    longer = token_seeds(jnp.asarray([3, 1, 4, 1, 5, 9], jnp.uint32), 9)
    np.testing.assert_array_equal(longer[:, :5], seeds[..., 0])  # padded further
    np.testing.assert_array_equal(whole[1], whole[3])  # equal seeds
    assert (whole[0] != whole[2]).any()
    assert float((whole == 0).mean()) == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(np.unique(whole), [0, 4 / 3])
    np.testing.assert_array_equal(dropout(x, 0.25, None, "here", (2,)), x)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_is_the_same(remat):
    """Values and gradients of a training pass with dropout, with and without rematerialisation."""
    batch, results = tiny.batch(), {}
    for policy in ("none", remat):
        method = tiny.method("albef", model=tiny.model(remat=policy))
        params, _ = method.init(jax.random.key(0))

        def value(params, method=method):
            net, seeds_B = method.apply(params), jnp.arange(6, dtype=jnp.uint32)
            image_BxTxD, _ = net.encode_image(batch["image_BxHxWx3"])
            mask_BxL = batch["token_mask_BxL"]
            text_BxLxD, _ = net.encode_text(batch["token_ids_BxL"], mask_BxL, seeds_B)
            image = (ImageTokens((image_BxTxD,)),)
            return net.itm_logits(net.fuse(text_BxLxD, mask_BxL, image, seeds_B)).sum()

        results[policy] = jax.jit(jax.value_and_grad(value))(params)
        plain = jax.make_jaxpr(jax.grad(value))(params)
        assert ("remat" in str(plain) or "checkpoint" in str(plain)) == (policy != "none")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        results["none"],
        results[remat],
    )
