"""Attention's own backward pass against autodiff of the formula written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.models import attention
from nas_jax.models.attention import MASKED, Drop, KeyValue, ToHeads
from nas_jax.models.dropout import dropout
from nas_jax.train.machine import matmul_flops

B, L, H, F, LENGTHS = 2, 3, 2, 4, (1, 5)


def written_out(query, keys, values, bias, mask, drop):
    """softmax(q k / sqrt(F)), dropout, times (values + bias); keys and values of all groups in one
    array.
    """
    logits = jnp.einsum("blhf,bthf->bhlt", query, keys) * F**-0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, MASKED)
    weights = jax.nn.softmax(logits)
    if drop is not None:
        weights = dropout(weights, drop.rate, drop.seeds_BxL[:, None, :, None], drop.salt, (1, 3))
    return jnp.einsum("bhlt,bthf->blhf", weights, values + bias)


FORMS = [((6,), False, 0.0), (LENGTHS, False, 0.0), ((6,), True, 0.5), (LENGTHS, False, 0.5)]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def variant(masked, rate):
    """Mask and dropout; the second row of the mask has no key."""
    mask = jnp.asarray([[True] * 4 + [False] * 2, [False] * 6]) if masked else None
    return mask, Drop(
        rate, "here", jnp.arange(B * L, dtype=jnp.uint32).reshape(B, L)
    ) if rate else None


def assert_same(ours, formula, given):
    """Values and gradients."""
    seen = draw(B, L, H, F, seed=9)
    np.testing.assert_allclose(ours(*given), formula(*given), atol=1e-6)
    numbers = tuple(range(len(given)))
    grads = [
        jax.grad(lambda *x, f=f: jnp.sum(f(*x) * seen), numbers)(*given) for f in (ours, formula)
    ]
    for got, wanted in zip(*grads, strict=True):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize(("lengths", "masked", "rate"), FORMS)
def test_values_and_gradients_are_those_of_the_formula(lengths, masked, rate):
    query, keys, values, bias = (
        draw(B, L, H, F),
        draw(B, 6, H, F, seed=1),
        draw(B, 6, H, F, seed=2),
        draw(H, F),
    )
    (mask, drop), ends = variant(masked, rate), np.cumsum(lengths)[:-1]

    def ours(query, keys, values, bias):
        groups = [
            KeyValue(*both)
            for both in zip(jnp.split(keys, ends, 1), jnp.split(values, ends, 1), strict=True)
        ]
        return weights(jnp.zeros((H * F, 1, H, F)), bias[None]).attend(query, groups, mask, drop)

    assert_same(ours, lambda *given: written_out(*given, mask, drop), (query, keys, values, bias))


def weights(kernel, bias):
    return ToHeads(kernel, [kernel[:, part] for part in range(kernel.shape[1])], bias)


@pytest.mark.parametrize(("lengths", "masked", "rate"), FORMS)
def test_tokens_are_read_without_their_keys_as_with_them(lengths, masked, rate):
    (mask, drop), ends = variant(masked, rate), np.cumsum(lengths)[:-1]

    def ours(query, tokens, kernel, value_bias):
        to_heads, groups = weights(kernel, value_bias[None]), jnp.split(tokens, ends, 1)
        groups[1:] = map(to_heads.key_value, groups[1:])  # both kinds together
        return to_heads.attend(query, groups, mask, drop)

    def formula(query, tokens, kernel, value_bias):
        keys, values = jnp.einsum("btd,dphf->pbthf", tokens, kernel)
        return written_out(query, keys, values, value_bias, mask, drop)

    kernel = draw(H * F, 2, H, F) * (H * F) ** -0.5
    assert_same(ours, formula, (draw(B, L, H, F), draw(B, 6, H * F), kernel, draw(H, F)))


@pytest.mark.parametrize("queries", [1, 6, 7, 60])
def test_keys_are_left_out_where_that_is_fewer_operations(queries):
    tokens, bias = draw(B, 40, H * F), draw(2, H, F)

    def with_keys(query, x, kernel):
        to_heads = weights(kernel, bias)
        return to_heads.attend(query, [to_heads.key_value(x)])

    def without(query, x, kernel):
        return weights(kernel, bias).attend(query, [x])

    given = draw(B, queries, H, F), tokens, draw(H * F, 2, H, F)

    def operations(function):
        grads = jax.grad(lambda *given: function(*given).sum(), (0, 1, 2))
        return matmul_flops(jax.make_jaxpr(grads)(*given).jaxpr)

    fewer = operations(without) < operations(with_keys)
    assert weights(given[2], bias).absorbs(queries, tokens.shape[1]) == fewer == (queries < 7)


@pytest.mark.parametrize(
    "pattern",
    ["blhf,bthf->bhlt", "bthf,blhf->bhlt", "bhlt,bthf->bhlf", "bhlt,blhf->bhtf", "bhlt,btd->bhld"],
)
def test_what_stands_for_matmuls_and_sums_on_tpus_is_the_same(pattern):
    left, right, _ = pattern.replace("->", ",").split(",")
    single = set(left) - set(right)
    sizes = {letter: 1 if letter in single else number for number, letter in enumerate("bhltdf", 2)}
    x, y = (
        draw(*(sizes[letter] for letter in left)),
        draw(*(sizes[letter] for letter in right), seed=1),
    )
    formula = jnp.einsum(pattern, x, y)
    assert formula.size > 1
    np.testing.assert_allclose(attention._matmul_of_single_row(pattern, x, y), formula, atol=1e-6)
    np.testing.assert_allclose(attention._sum_last_by_matmul(y), y.sum(-1), atol=1e-6)
