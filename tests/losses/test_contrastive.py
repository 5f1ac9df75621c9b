"""The contrastive losses of two encoders: the formulae, in blocks and whole, and their memory."""

from __future__ import annotations

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nas_jax.losses.infonce import infonce
from nas_jax.losses.late import Tokens, every_token, keep_best, late_loss, late_similarity
from nas_jax.losses.phrases import attended_cosines
from nas_jax.losses.sigmoid import sigmoid_contrast, sigmoid_loss
from nas_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh

SCALE, BIAS = 3.0, -1.0
TEMP = 1 / SCALE
HIGHEST = jax.default_matmul_precision("highest")


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(logits, smoothing=0.0):
    """Of each row with its own column."""
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(1 - smoothing) * np.diag(log_p).mean() - smoothing * log_p.mean()


def plain_infonce(image, text, smoothing=0.0):
    logits = SCALE * image.astype(np.float64) @ text.T
    return (cross_entropy(logits, smoothing) + cross_entropy(logits.T, smoothing)) / 2


def plain_sigmoid(image, text):
    total = 0.0
    for i, x in enumerate(image.astype(np.float64)):
        for j, y in enumerate(text):
            sign = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-sign * (SCALE * x @ y + BIAS))))
    return total / len(image)


def plain_similarity(row, keys):
    """Of one row's tokens with one key's, all of them real."""
    return np.mean([max(float(token @ key) for key in keys) for token in row])


def real(tokens, number):
    return np.asarray(tokens.unit_BxAxE[number])[np.asarray(tokens.mask_BxA[number])]


def plain_late(image, text, share):
    def direction(rows, keys):
        logits = np.empty((len(rows[0]), len(rows[0])))
        for j in range(len(logits)):
            own, partner = real(keys, j), real(rows, j)
            best = np.argsort(
                [-max(key @ other for other in partner) for key in own], kind="stable"
            )
            seen = own[best[: math.ceil(share * len(own))]]
            for i in range(len(logits)):
                logits[i, j] = SCALE * plain_similarity(real(rows, i), seen)
        return cross_entropy(logits)

    return (direction(image, text) + direction(text, image)) / 2


def tokens(batch=6, patches=4, words=6, seed=0):
    image = every_token(jnp.asarray(unit(batch, patches, 5, seed=seed)))
    lengths = np.random.default_rng(seed).integers(1, words + 1, batch)
    mask = np.arange(words) < lengths[:, None]
    return image, Tokens(jnp.asarray(unit(batch, words, 5, seed=seed + 1)), jnp.asarray(mask))


@pytest.mark.parametrize("block", [0, 2, 100])
def test_they_are_the_formulae_in_any_blocks(block):
    image, text = unit(6, 5), unit(6, 5, seed=1)
    patches, words = tokens()

    @jax.jit
    def losses(image, text, patches, words):
        return (
            infonce(image, text, TEMP, block=block),
            infonce(image, text, TEMP, block=block, smoothing=0.1),
            sigmoid_loss(image, text, TEMP, BIAS, block),
            late_loss(patches, words, TEMP, 1.0, block),
            late_loss(patches, words, TEMP, 0.5, block),
        )

    expected = (
        plain_infonce(image, text),
        plain_infonce(image, text, 0.1),
        plain_sigmoid(image, text),
        plain_late(patches, words, 1.0),
        plain_late(patches, words, 0.5),
    )
    found = losses(image, text, patches, words)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert len({round(float(value), 4) for value in found}) == len(found)


def test_gradients_in_blocks_are_those_of_finite_differences():
    image, text, temp, bias = unit(4, 5), unit(4, 5, seed=1), jnp.float32(TEMP), jnp.float32(BIAS)
    patches, words = tokens(4)

    def check(loss, arguments, eps=1e-2):
        check_grads(jax.jit(loss), arguments, 1, ["rev"], atol=1e-2, rtol=1e-2, eps=eps)

    def late(patches_BxNxE, words_BxLxE, temp):
        pair = Tokens(patches_BxNxE, patches.mask_BxA), Tokens(words_BxLxE, words.mask_BxA)
        return late_loss(*pair, temp, 0.5, 2)

    with HIGHEST:
        check(lambda *x: infonce(*x, block=2, smoothing=0.1), (image, text, temp))
        check(lambda *x: sigmoid_loss(*x, block=2), (image, text, temp, bias))
        # steps so small that no other token becomes the largest
        check(late, (patches[0], words[0], temp), 1e-3)


def test_padding_never_changes_a_similarity_nor_the_loss():
    patches, words = tokens()
    longer_BxLxE = jnp.where(words.mask_BxA[..., None], words.unit_BxAxE, 9.0)
    longer_BxLxE = jnp.pad(longer_BxLxE, ((0, 0), (0, 5), (0, 0)), constant_values=7.0)
    padded = Tokens(longer_BxLxE, jnp.pad(words.mask_BxA, ((0, 0), (0, 5))))

    @jax.jit
    def read(patches_BxNxE, words):
        image = every_token(patches_BxNxE)
        similar = late_similarity(image, words), late_similarity(words, image)

        def loss(patches_BxNxE, share):
            return late_loss(every_token(patches_BxNxE), words, TEMP, share)

        return similar, [jax.value_and_grad(loss)(patches_BxNxE, share) for share in (0.25, 1.0)]

    def differences(one, other):
        pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
        return [float(jnp.abs(x - y).max()) for x, y in pairs]

    right = read(patches.unit_BxAxE, words)
    assert max(differences(right, read(patches.unit_BxAxE, padded))) < 1e-6
    # control: padding that is no padding is seen
    wrong = Tokens(padded.unit_BxAxE, jnp.ones_like(padded.mask_BxA))
    assert min(differences(right, read(patches.unit_BxAxE, wrong))) > 0.1


def test_the_chosen_tokens_are_the_best_and_no_padding():
    patches, words = tokens(words=8)
    kept = jax.jit(keep_best, static_argnums=2)(words, patches, 0.5)
    assert kept.unit_BxAxE.shape == (6, 4, 5)
    for number in range(6):
        own = real(words, number)
        match = (own @ real(patches, number).T).max(1)
        best = own[np.argsort(-match, kind="stable")[: math.ceil(len(own) / 2)]]
        np.testing.assert_array_equal(real(kept, number), best)


# ------------------------------------------------------------------------------ devices and memory

BATCH, DIM, BLOCK = 2048, 8, 128
PATCHES, WORDS, FEW, FEW_BLOCK = 16, 12, 64, 4


def programs(mesh):
    """Name -> function of the block, its arguments split by rows, the block, and the numbers of an
    array that has all pairs.
    """
    put = partial(jax.device_put, device=batch_sharding(mesh))
    image, text = put(unit(BATCH, DIM)), put(unit(BATCH, DIM, seed=1))
    patches, words = put(unit(FEW, PATCHES, DIM)), put(unit(FEW, WORDS, DIM, seed=1))
    mask = put(np.arange(WORDS) < np.arange(1, FEW + 1)[:, None] % WORDS + 1)

    def late(patches, words, mask, block):
        return late_loss(every_token(patches), Tokens(words, mask), TEMP, 1.0, block)

    def phrases(patches, phrases, block):
        real = jnp.ones(phrases.shape[:2], bool)
        return sigmoid_contrast(
            lambda text: attended_cosines(patches, text) / TEMP + BIAS, phrases, real, block
        )

    return {
        "infonce": (lambda x, y, b: infonce(x, y, TEMP, block=b), (image, text), BLOCK, BATCH**2),
        "sigmoid": (
            lambda x, y, b: sigmoid_loss(x, y, TEMP, BIAS, b), (image, text), BLOCK, BATCH**2
        ),
        "late": (
            late, (patches, words, mask), FEW_BLOCK, FEW**2 * PATCHES * WORDS
        ),
        "phrases": (phrases, (patches, words[:, :2]), FEW_BLOCK, FEW**2 * PATCHES),
    }  # fmt: skip


def compiled(function, arguments, block, mesh):
    step = jax.jit(jax.value_and_grad(function, (0, 1)), static_argnums=len(arguments))
    with jax.set_mesh(mesh), HIGHEST:
        return step.lower(*arguments, block).compile()


def largest(program) -> int:
    """Numbers of the largest array on one device."""
    shapes = re.findall(r"\b(?:f32|f64|bf16|s32|pred)\[([\d,]+)\]", program.as_text())
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("name", ["infonce", "sigmoid", "late", "phrases"])
def test_no_device_ever_has_all_pairs(name, devices):
    """Read from the compiled program, gradients included; the same numbers as with all pairs."""
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    function, arguments, block, pairs = programs(mesh)[name]
    parts = pairs // devices  # a device's rows with all keys
    small, whole = (compiled(function, arguments, size, mesh) for size in (block, 0))
    assert largest(whole) >= parts  # control: whole, they are there
    assert largest(small) < parts / 4
    assert small.memory_analysis().temp_size_in_bytes < 4 * parts
    (one, grads), (other, others) = small(*arguments), whole(*arguments)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for grad, wanted in zip(grads, others, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))
