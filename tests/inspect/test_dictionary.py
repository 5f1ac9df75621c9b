"""The atlas of the visual dictionary: its numbers by brute force, its patches by their pixels."""

from __future__ import annotations

import math
from collections import Counter

import jax
import numpy as np
import pytest
import tiny

from nas_jax.inspect import dictionary_measure
from nas_jax.inspect.dictionary_measure import (
    CodesRead,
    nearest_codes,
    nearest_patches,
    perplexity,
    read_codes,
    summed_up,
)
from nas_jax.inspect.dictionary_picture import OUTSIDE, patch_with_surroundings
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.utils.errors import ConfigError

IMAGES = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), np.uint8)


def look_up(method, params, state):
    """The pictures in the tokens of the dictionary, as the method's own function gives them."""

    @jax.jit
    def read(params, state):
        tokens_BxTxD, _ = method.apply(params).encode_image(IMAGES)
        return method.look_up(params, state, tokens_BxTxD)

    return read(params, state["dictionary"])


@pytest.fixture(scope="module")
def given():
    """A method, its arrays, and codes that are features of the pictures, some of them nearly."""
    method = tiny.method("nas")
    params, state = jax.jit(method.init)(jax.random.key(0))
    words, _ = look_up(method, params, state)
    features_MxD = np.asarray(words.features_BxNxD, np.float32).reshape(-1, 16)
    rng = np.random.default_rng(2)
    codes_KxD = features_MxD[rng.permutation(len(features_MxD))[:12]]
    codes_KxD = codes_KxD + rng.normal(0, 0.01, codes_KxD.shape).astype(np.float32)
    dictionary = state["dictionary"].replace(
        codes_KxD=codes_KxD, step=np.int32(500), last_use_K=np.arange(12, dtype=np.int32) * 50
    )
    return method, params, {"dictionary": dictionary}, features_MxD.reshape(6, -1, 16)


def test_codes_are_read_as_the_method_reads_them_whatever_the_batch(given, monkeypatch):
    method, params, state, _ = given
    monkeypatch.setattr(dictionary_measure, "BATCH", 4)  # the second call is padded
    read = read_codes(method, params, state, list(IMAGES))
    words, metrics = look_up(method, params, state)
    np.testing.assert_array_equal(read.code_ids_IxN, words.code_ids_BxN)
    assert perplexity(read.shares_K) == pytest.approx(
        float(metrics["dictionary/perplexity"]), rel=1e-5
    )
    found = summed_up(read, "run", "data")
    assert found.used == round(12 * float(metrics["dictionary/used_share"]))
    assert found.idle_share == pytest.approx(float(metrics["dictionary/idle_share"]))
    assert 0 < found.idle_share < 1 and found.patches == read.code_ids_IxN.size == 6 * 16


def test_nearest_patches_and_codes_are_those_of_a_search_through_all(given):
    method, params, state, features_IxNxD = given
    read, codes_KxD = (
        read_codes(method, params, state, list(IMAGES)),
        given[2]["dictionary"].codes_KxD,
    )

    def away(one, other):
        return math.dist(one.astype(float).tolist(), other.astype(float).tolist())

    best = {  # (picture, patch) -> code
        (image, patch): min(range(12), key=lambda code: away(feature, codes_KxD[code]))
        for image, features in enumerate(features_IxNxD)
        for patch, feature in enumerate(features)
    }
    counts = Counter(best.values())
    for code in counts:
        patches = [place for place, chosen in best.items() if chosen == code]
        patches.sort(key=lambda place: away(features_IxNxD[place], codes_KxD[code]))
        of_each = list({place[0]: place for place in reversed(patches)}.values())[::-1]
        of_each.sort(key=lambda place: away(features_IxNxD[place], codes_KxD[code]))
        assert list(nearest_patches(read, code, 3)) == of_each[:3]
        others = sorted(
            counts - Counter({code: 99}), key=lambda k: away(codes_KxD[k], codes_KxD[code])
        )
        assert list(nearest_codes(read, code, 4)) == others[:4]
    found = summed_up(read, "run", "data")
    assert [one.share for one in found.most_used] == sorted(
        (count / len(best) for count in counts.values()), reverse=True
    )
    assert [one.code for one in summed_up(read, "", "", first=3).most_used] == [
        one.code for one in found.most_used[2:]
    ]
    with pytest.raises(ConfigError, match="--from 13; expected 1 to"):
        summed_up(read, "", "", first=13)


def test_perplexity_is_the_number_of_codes_that_are_used_evenly():
    assert perplexity(np.full(8, 1 / 8)) == pytest.approx(8.0)
    assert perplexity(np.array([0.0, 1.0, 0.0])) == 1.0
    one = CodesRead(np.zeros((2, 4), int), np.ones((2, 4)), np.eye(3), np.zeros(3, bool))
    assert summed_up(one, "", "").used == 1 and not summed_up(one, "", "").most_used[0].neighbours
    assert nearest_patches(one, 0, 5) == ((0, 0), (1, 0)) and nearest_patches(one, 1, 5) == ()


def test_a_patch_stands_in_the_middle_of_its_surroundings():
    image = IMAGES[0]
    inner = patch_with_surroundings(image, 5, 4)  # row 1, column 1 of 4 x 4
    np.testing.assert_array_equal(inner, image[2:10, 2:10])
    corner = patch_with_surroundings(image, 15, 4)
    np.testing.assert_array_equal(corner[2:6, 2:6], image[12:, 12:])
    assert (corner[6:] == OUTSIDE).all() and (corner[:, 6:] == OUTSIDE).all()


@pytest.mark.parametrize("without", ["albef", "nas"])
def test_a_method_without_a_dictionary_is_refused(without):
    method = tiny.method("albef")
    if without == "nas":
        off = {"dictionary": DictionaryConfig(enabled=False), "nva": NvaConfig(enabled=False)}
        method = tiny.method("nas", **off)
    params, state = jax.jit(method.init)(jax.random.key(0))
    with pytest.raises(ConfigError, match=f"method {without} without a visual dictionary"):
        read_codes(method, params, state, list(IMAGES))
