from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.kernels.gelu import gelu
from nas_jax.models.layers import Dense, feed_forward


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_exact(dtype):
    x = jnp.linspace(-9, 9, 1001).astype(dtype)
    value, slope = jax.vmap(jax.value_and_grad(gelu))(x)
    exact = np.asarray([v * math.erfc(-v / 2**0.5) / 2 for v in np.asarray(x, np.float64)])
    flax_slope = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(
        x.astype(jnp.float32)
    )
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(np.asarray(value, np.float64), exact, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        np.asarray(slope, np.float64), flax_slope, rtol=tolerance, atol=tolerance
    )


def test_dense_is_that_of_flax():
    """The same fresh parameters, values and gradients."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    init, results = nn.initializers.normal(0.1), []
    for layer in (nn.Dense(5, kernel_init=init), Dense(5, jnp.float32, init)):
        params = layer.init(jax.random.key(1), x)

        def value(params, x, layer=layer):
            return jnp.sum(jnp.sin(layer.apply(params, x)))

        results.append((params, jax.value_and_grad(value, (0, 1))(params, x)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_gradients_of_two_uses_add_up_in_float32():
    """Where the matmuls are in bfloat16: of [CLS] and of patches, for one."""
    uses = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
    init = nn.initializers.normal(0.5)

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, xs):
            mlp_in = Dense(32, jnp.bfloat16, init, name="mlp_in")
            mlp_out = Dense(8, jnp.bfloat16, init, name="mlp_out")
            made = [feed_forward(x, mlp_in, mlp_out) for x in xs]
            return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in made)

    params = Twice().init(jax.random.key(1), uses)
    both, first, second = (jax.grad(Twice().apply)(params, xs) for xs in (uses, uses[:1], uses[1:]))
    jax.tree.map(
        lambda total, *parts: np.testing.assert_array_equal(total, sum(parts)), both, first, second
    )
