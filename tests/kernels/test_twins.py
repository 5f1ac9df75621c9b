"""Each kernel computes what its plain twin does, values and gradients, in its form for each
platform.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nas_jax.kernels
from nas_jax.kernels import KERNELS, plain_only
from nas_jax.kernels.attention import Drop, attend
from nas_jax.kernels.gelu import gelu
from nas_jax.kernels.image_tokens import ImageTokens, PositionTerms, QueryGroup, Replacement
from nas_jax.kernels.last_layer import Readout, TextRows, read_last_layer
from nas_jax.kernels.matmuls import matmul, matmul_twice
from nas_jax.kernels.projections import HeadWeights, absorbs, key_value
from nas_jax.kernels.shared_keys import cross_attention, replaced_keys
from nas_jax.kernels.sums import single_row_matmul, sum_last
from nas_jax.kernels.twins import same_as
from nas_jax.train.machine import matmul_flops
from nas_jax.utils.errors import ConfigError

B, T, D, H, F, L, SIDE = 4, 10, 8, 2, 4, 3, 3
TOLERANCE = 1e-5  # of the largest number of an array
PLATFORMS = ("cpu", "tpu", "cuda")
WHERE = jnp.asarray(np.random.default_rng(5).random((B, SIDE * SIDE)) < 0.4)
MASK = jnp.asarray([[True] * 6 + [False] * 4, [True] * T, [False] * T, [True] + [False] * 9])


def draw(*shape, scale=1.0):
    """Other numbers for each shape."""
    return jnp.asarray(scale * np.random.default_rng(shape).normal(size=shape), jnp.float32)


def drop(rate, *shape):
    seeds = jnp.arange(np.prod(shape), dtype=jnp.uint32).reshape(shape)
    return Drop(rate, "here", seeds) if rate else None


def kernel_and_bias(parts):
    return draw(D, parts, H, F, scale=0.5), draw(parts, H, F)


def beside_images(rate, lengths, kernel, bias, query, tokens, terms):
    """Nine texts beside four images, of all groups there are, in the parts of the tokens."""
    replacement = Replacement(WHERE, *terms[:2])
    index = jnp.asarray([1, 1, 3, 2])
    groups = (
        QueryGroup(2),
        QueryGroup(1, index_B=index, shards=2),
        QueryGroup(1, detached=True),
        QueryGroup(1, True, replacement=replacement),
        QueryGroup(1, index_B=index, replacement=replacement),
    )
    parts = tuple(jnp.split(tokens, np.cumsum(lengths)[:-1], 1))
    image = (
        ImageTokens(parts, groups, PositionTerms(*terms[2:])),
        ImageTokens((tokens[:, 2:] * 2,), (QueryGroup(2), QueryGroup(1, detached=True))),
    )
    return cross_attention(query, image, HeadWeights(kernel, bias), drop(rate, *query.shape[:2]))


def read_two(x_RxLxD, kernel, tokens):
    """A layer that mixes the tokens of a row and adds its image, read at some positions of some
    texts.
    """
    image = (ImageTokens((tokens,), (QueryGroup(2),)), ImageTokens((tokens * 2,)))

    def layer(x_RxLxD, rows, image):
        x = jnp.cumsum(x_RxLxD * rows.mask_RxL[..., None], 1) * (1 + rows.seeds_RxL[..., None] % 3)
        if rows.positions_RxM is not None:
            x = jnp.take_along_axis(x, rows.positions_RxM[..., None], 1)
        seen = [
            one.seen_by(group).mean(1)
            for one in image
            for group in one.groups
            for _ in range(group.rows)
        ]
        x_BxP = x.reshape(B, -1, *x.shape[1:]) + jnp.stack(seen, 1)[:, :, None]
        return jnp.tanh(x_BxP.reshape(x.shape) @ kernel)

    rows = TextRows(
        jnp.asarray(np.random.default_rng(0).random((B * 3, T)) < 0.7),
        jnp.arange(B * 3 * T, dtype=jnp.uint32).reshape(B * 3, T),
    )
    positions = jnp.asarray(np.random.default_rng(1).integers(0, T, (B, 2, L)))
    readouts = Readout((0, 2), positions), Readout((1,), positions[:, :1, :1])
    return read_last_layer(layer, x_RxLxD, rows, image, readouts)


def attend_to(parts, rate, masked, kernel, bias, query, tokens):
    """parts: lengths of the groups; negative where the group is tokens, not keys and values."""
    weights, ends = HeadWeights(kernel, bias), np.cumsum(np.abs(parts))[:-1]
    groups = [
        x if part < 0 else key_value(x, weights)
        for part, x in zip(parts, jnp.split(tokens, ends, 1), strict=True)
    ]
    return attend(query, groups, weights, MASK if masked else None, drop(rate, B, L))


def few_queries(kernel, bias, query, tokens):
    weights = HeadWeights(kernel, bias)
    absorbed = absorbs(query.shape[1], T, weights)
    return attend(query, [tokens if absorbed else key_value(tokens, weights)], weights)


def terms(scale=1.0):
    return (
        draw(B, D), draw(B, SIDE * SIDE), draw(SIDE, D), draw(SIDE, D, scale=0.5), draw(D)
    )  # fmt: skip


ATTENTION = (*kernel_and_bias(2), draw(B, L, H, F), draw(B, T, D))
TEXTS = (*kernel_and_bias(2), draw(B * 9, L, H, F), draw(B, 1 + SIDE * SIDE, D), terms())


@dataclass(frozen=True)
class Case:
    """A kernel in use: a function of arrays, all of which get gradients."""

    function: object
    inputs: tuple


CASES: dict[str, list[Case]] = {
    "absorbs": [Case(few_queries, ATTENTION)],
    "attend": [
        Case(lambda *inputs, form=form: attend_to(*form, *inputs), ATTENTION)
        for form in (
            ((T,), 0.0, False),
            ((T,), 0.5, True),
            ((1, T - 1), 0.5, False),
            ((-T,), 0.5, True),
            ((-1, T - 1), 0.5, False),
            ((-1, 1 - T), 0.0, False),
        )
    ],
    "cross_attention": [
        Case(lambda *inputs, form=form: beside_images(*form, *inputs), TEXTS)
        for form in ((0.0, (T,)), (0.5, (1, T - 1)))
    ],
    "gelu": [Case(gelu, (draw(60, scale=4),))],
    "matmul": [
        Case(matmul, (draw(B, T, 16), draw(16, D))),
        Case(matmul, (draw(B, T, D), draw(D, H, F))),
        Case(lambda x, kernel: matmul(x, kernel, 2), (draw(B, T, H, F), draw(H, F, D))),
    ],
    "matmul_twice": [Case(matmul_twice, (draw(B, T, D), draw(D, H, F)))],
    "read_last_layer": [Case(read_two, (draw(B * 3, T, D), draw(D, D), draw(B, 5, D)))],
    "replaced_keys": [
        Case(
            lambda kernel, bias, x, *terms: replaced_keys(
                key_value(x, HeadWeights(kernel, bias)),
                x,
                Replacement(WHERE, *terms[:2]),
                PositionTerms(*terms[2:]),
                HeadWeights(kernel, bias),
            ),
            (*kernel_and_bias(2), draw(B, T, D), *terms()),
        )
    ],
    "single_row_matmul": [
        Case(
            lambda x, y, pattern=pattern: single_row_matmul(pattern, x, y),
            (draw(*shapes[0]), draw(*shapes[1])),
        )
        for pattern, shapes in {
            "bthf,blhf->bhlt": ((B, 1, H, F), (B, L, H, F)),
            "bhlt,bthf->bhlf": ((B, H, 1, T), (B, T, H, F)),
            "bhlt,blhf->bhtf": ((B, H, L, 1), (B, L, H, F)),
            "bhlt,btd->bhld": ((B, 1, 1, T), (B, T, D)),
        }.items()
    ],
    "sum_last": [Case(sum_last, (draw(B, H, L, T),))],
}


def results(case: Case) -> dict:
    """Values and gradients of a weighted sum of them, traced anew."""

    def weighted(*inputs):
        outputs = jax.tree.leaves(case.function(*inputs))
        return sum(jnp.sum(x * draw(*x.shape, 7)[..., 0].reshape(x.shape)) for x in outputs)

    return {
        "values": case.function(*case.inputs),
        "gradients": jax.grad(weighted, tuple(range(len(case.inputs))))(*case.inputs),
    }


def on(platform: str, monkeypatch) -> None:
    """Functions with a form for a platform take it here too."""

    def chosen(*inputs, default=None, **forms):
        return forms.get(platform, default)(*inputs)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)


def largest_error(found: dict, expected: dict) -> float:
    """Over all arrays, relative to the largest number of each."""
    errors = [
        np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        if np.abs(b).max() > 1e-5  # of the bias of keys: zero, or what rounding leaves of it
    ]
    return max(errors)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_its_plain_twin(name, monkeypatch):
    for case in CASES[name]:

        @jax.jit
        def everything(inputs, case=case):
            case = Case(case.function, inputs)
            with plain_only():
                found = {"plain": results(case)}
            with plain_only(name):
                found["this one plain"] = results(case)
            for platform in PLATFORMS:
                on(platform, monkeypatch)
                found[platform] = results(case)
            return found

        found = everything(case.inputs)
        assert all(np.abs(x).max() > 0.1 for x in jax.tree.leaves(found["plain"]["values"]))
        for form in ("this one plain", *PLATFORMS):
            assert largest_error(found[form], found["plain"]) < TOLERANCE, form
        monkeypatch.undo()


def test_every_kernel_is_in_the_table():
    """What has a twin is found by name, so that none is without a test."""
    modules = [
        importlib.import_module(f"nas_jax.kernels.{module.name}")
        for module in pkgutil.iter_modules(nas_jax.kernels.__path__)
    ]
    twins = {name for module in modules for name, x in vars(module).items() if hasattr(x, "plain")}
    assert twins == KERNELS.keys() == CASES.keys()


@pytest.mark.parametrize("name", ["gelu", "attend"])
def test_a_kernel_of_other_numbers_is_noticed(name):
    """Negative control: a value that is 0.01 % off, and a gradient that is."""
    case = CASES[name][0]
    with plain_only():
        plain = results(case)
    wrong_value = Case(lambda *inputs: case.function(*inputs) * 1.0001, case.inputs)

    @jax.custom_vjp
    def other_gradient(x):
        return x

    other_gradient.defvjp(lambda x: (x, None), lambda _, grad: (grad * 1.0001,))
    wrong_gradient = Case(lambda *x: other_gradient(case.function(*x)), case.inputs)
    assert largest_error(results(case), plain) < TOLERANCE
    assert largest_error(results(wrong_value), plain) > TOLERANCE
    found = results(wrong_gradient)
    assert largest_error(found["values"], plain["values"]) < TOLERANCE
    assert largest_error(found["gradients"], plain["gradients"]) > TOLERANCE


def test_plain_only_is_seen_by_compiled_functions():
    @same_as(lambda x: x - 1)
    def gelu(x):
        return x + 1

    compiled = jax.jit(gelu)
    assert compiled(1.0) == 2
    with plain_only("gelu"):
        assert compiled(1.0) == 0
    with plain_only("matmul"):
        assert compiled(1.0) == 2
    with plain_only():
        assert compiled(1.0) == 0
    assert compiled(1.0) == 2
    with pytest.raises(ConfigError, match="plain_only.*'gelo'.*expected.*gelu"):
        plain_only("gelo")


@pytest.mark.parametrize("queries", [1, 6, 7, 60])
def test_keys_are_absorbed_where_that_is_fewer_operations(queries):
    tokens, bias = draw(B, 40, D), draw(2, H, F)

    def with_keys(query, x, kernel):
        weights = HeadWeights(kernel, bias)
        return attend(query, [key_value(x, weights)], weights)

    def without(query, x, kernel):
        return attend(query, [x], HeadWeights(kernel, bias))

    given = draw(B, queries, H, F), tokens, draw(D, 2, H, F)

    def operations(function):
        grads = jax.grad(lambda *given: function(*given).sum(), (0, 1, 2))
        return matmul_flops(jax.make_jaxpr(grads)(*given).jaxpr)

    fewer = operations(without) < operations(with_keys)
    assert absorbs(queries, 40, HeadWeights(given[2], bias)) == fewer == (queries < 7)
