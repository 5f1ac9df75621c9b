"""C2LIP: noun phrases, its three losses in NumPy, and pooling by attention."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import whole
from jax.test_util import check_grads

from nas_jax.data.config import DataConfig
from nas_jax.data.phrases import NounPhrases, noun_phrases
from nas_jax.data.readers import Example
from nas_jax.data.records import Draw, Record
from nas_jax.losses.phrases import attended_cosines, cosines, sigmoid_contrast
from nas_jax.methods.c2lip import C2lipConfig
from nas_jax.utils.errors import ConfigError

CONFIG = C2lipConfig(phrases=3)
REAL = np.array([[True, False], [True, True], [False, False]])


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("a red square is left of a blue circle", ["red square", "blue circle"]),
        ("two small red squares and no blue circle", ["two small red squares", "blue circle"]),
        ("the dog and the dog", ["dog"]),
        ("a dog runs on sand", ["dog runs", "sand"]),
        ("A cat, a dog; the man's half-open hat.", ["cat", "dog", "man's half-open hat"]),
        ("on the of", []),
        ("", []),
    ],
)
def test_noun_phrases_are_the_words_between_joining_ones(caption, phrases):
    assert noun_phrases(caption) == phrases


def test_the_field_gives_the_phrases_of_the_drawn_caption():
    record = Record("k", b"", ("a cat", "red dog, blue hat and one ball"), 0)
    config, field = DataConfig(), NounPhrases(2)
    seen = set()
    for seed in range(12):
        example = Example(record, Draw(0, 0.6, seed, 8), config, np.random.default_rng(0))
        seen.add(tuple(field.read(example)["phrases"]))
        assert field.read(example) == field.read(example)
    assert len(seen) == 3 and all(len(phrases) == 2 for phrases in seen)
    first = Example(record, Draw(0, 0.2, 0, 8), config, np.random.default_rng(0))
    values = [field.read(first), field.read(example)]

    def encode(rows):
        assert rows[0] == ["cat", ""]
        return np.zeros((2, 2, 8), np.int32), np.zeros((2, 2, 8), bool)

    found = field.stack(values, encode)
    np.testing.assert_array_equal(found["phrase_real_BxC"], [[True, False], [True, True]])


def by_hand(logits):
    """The sigmoid loss, pair by pair."""
    total = 0.0
    for b in range(3):
        for j in range(3):
            for c in range(2):
                sign = 1 if b == j else -1
                total += np.log1p(np.exp(-sign * logits[b, j, c])) if REAL[j, c] else 0.0
    return total / REAL.sum()


def test_the_losses_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    image, patches, text = (rng.normal(size=shape) for shape in ((3, 5), (3, 4, 5), (3, 2, 5)))
    given = [jnp.asarray(x, jnp.float32) for x in (image, patches, text)]
    plain = cosines(given[0], given[2])
    np.testing.assert_allclose(plain, np.einsum("be,jce->bjc", image, text), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        sigmoid_contrast(plain, jnp.asarray(REAL)), by_hand(plain), rtol=1e-5
    )

    found = attended_cosines(*given[1:])
    for b in range(3):
        for j in range(3):
            for c in range(2):
                weight = np.exp(patches[b] @ text[j, c])
                seen = (weight / weight.sum()) @ patches[b]
                expected = seen @ text[j, c] / np.linalg.norm(seen)
                np.testing.assert_allclose(found[b, j, c], expected, rtol=1e-4, atol=1e-5)

    def loss(patches, text):
        return sigmoid_contrast(attended_cosines(patches, text), jnp.asarray(REAL))

    check_grads(loss, given[1:], 1, ("rev",), rtol=2e-2)


def test_the_sum_has_the_weights_of_the_config_and_all_parts_are_trained():
    config = C2lipConfig(phrases=3, phrase_weight=0.5, attention_weight=0.25)
    _, _, metrics, grads = whole.gradients(tiny.built(config))
    parts = [metrics[f"loss/{name}"] for name in ("caption", "phrases", "attention")]
    np.testing.assert_allclose(metrics["loss"], np.dot(parts, [1, 0.5, 0.25]), rtol=1e-6)
    whole.check_every_group_is_trained(grads)
    method = tiny.built(CONFIG)
    bounded = method.constrain({"sigmoid": {"log_scale": jnp.float32(9), "bias": jnp.float32(0)}})
    np.testing.assert_allclose(bounded["sigmoid"]["log_scale"], np.log(100), rtol=1e-6)
    with pytest.raises(ConfigError, match="phrases"):
        tiny.built(C2lipConfig(phrases=0))


@pytest.mark.slow
def test_it_works_in_pieces_and_in_bfloat16():
    whole.check_pieces(CONFIG)


@pytest.mark.slow
def test_eight_devices_give_the_same_numbers():
    whole.check_devices("c2lip")


@pytest.mark.slow
def test_it_trains_resumes_and_is_scored(tmp_path):
    whole.check_run(CONFIG, tmp_path, ("itc",))
