"""Attention's own backward pass against autodiff of the formula written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.models.attention import MASKED, Drop, KeyValue, attend
from nas_jax.models.dropout import dropout

B, L, H, F, LENGTHS = 2, 3, 2, 4, (1, 5)


def written_out(query, keys, values, bias, mask, drop):
    """softmax(q k / sqrt(F)), dropout, times (values + bias); keys and values of all groups in one array."""
    logits = jnp.einsum("blhf,bthf->bhlt", query, keys) * F**-0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, MASKED)
    weights = jax.nn.softmax(logits)
    if drop is not None:
        weights = dropout(weights, drop.rate, drop.seeds_BxL[:, None, :, None], drop.salt, (1, 3))
    return jnp.einsum("bhlt,bthf->blhf", weights, values + bias)


@pytest.mark.parametrize(
    ("lengths", "masked", "rate"), [((6,), False, 0.0), (LENGTHS, False, 0.0), ((6,), True, 0.5), (LENGTHS, False, 0.5)]
)
def test_values_and_gradients_are_those_of_the_formula(lengths, masked, rate):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    query, keys, values, bias = draw(B, L, H, F), draw(B, 6, H, F), draw(B, 6, H, F), draw(H, F)
    mask = jnp.asarray([[True] * 4 + [False] * 2, [False] * 6]) if masked else None
    drop = Drop(rate, "here", jnp.arange(B * L, dtype=jnp.uint32).reshape(B, L)) if rate else None
    seen, ends = draw(B, L, H, F), np.cumsum(lengths)[:-1]

    def ours(query, keys, values, bias):
        groups = [KeyValue(*both) for both in zip(jnp.split(keys, ends, 1), jnp.split(values, ends, 1), strict=True)]
        return attend(query, groups, bias, mask, drop)

    def formula(query, keys, values, bias):
        return written_out(query, keys, values, bias, mask, drop)

    given = (query, keys, values, bias)
    np.testing.assert_allclose(ours(*given), formula(*given), atol=1e-6)
    grads = [jax.grad(lambda *x, f=f: jnp.sum(f(*x) * seen), (0, 1, 2, 3))(*given) for f in (ours, formula)]
    for got, wanted in zip(*grads, strict=True):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(got, wanted, atol=2e-6)
