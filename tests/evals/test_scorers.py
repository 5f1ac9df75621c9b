"""Fast scoring gives the numbers of slow scoring: in any batches, on any mesh, in any number of
processes.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from test_processes import free_port

from nas_jax.data.eval_sets import EvalSet
from nas_jax.evals import retrieval, scorers
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.encodings import BLANK, BLANK_RGB
from nas_jax.evals.functions import ScoredModel, ScoringFunctions
from nas_jax.evals.scorers import Scorer
from nas_jax.methods import filip
from nas_jax.parallel.mesh import MeshConfig, make_mesh
from nas_jax.utils.errors import ConfigError

IMAGES, LENGTH, CLS = 11, 10, 2
RNG = np.random.default_rng(0)
TEXTS = [" ".join(map(str, RNG.integers(5, 20, RNG.integers(2, 7)))) for _ in range(2 * IMAGES)]
PROGRAM = Path(__file__).with_name("score_as_processes.py")


class Numbers:
    """A text is its token ids, after [CLS]."""

    def encode(self, texts, length):
        ids, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            numbers = [CLS, *map(int, text.split())][:length]
            ids[row, : len(numbers)], mask[row, : len(numbers)] = numbers, True
        return ids, mask


@pytest.fixture(scope="module")
def model():
    """The functions of the smallest NAS, and the scores of all pairs without any of this."""
    method = tiny.method("nas", model=tiny.model(init_std=0.3))
    params, state = jax.jit(method.init)(jax.random.key(0))
    pictures = RNG.integers(0, 256, (IMAGES, 16, 16, 3)).astype(np.uint8)
    eval_set = EvalSet("set", pictures, tuple(zip(TEXTS[::2], TEXTS[1::2], strict=True)), (), ())
    # the blank one first
    shown = np.concatenate([np.full((1, 16, 16, 3), BLANK_RGB, np.uint8), pictures])
    ids, mask = Numbers().encode(TEXTS, LENGTH)
    image_tokens, image_features = jax.jit(method.encode_image)(params, state, shown)
    text_tokens, text_features = jax.jit(method.encode_text)(params, ids, mask)
    i, t = np.repeat(np.arange(IMAGES + 1), len(TEXTS)), np.tile(np.arange(len(TEXTS)), IMAGES + 1)
    # each pair by itself
    plain = jax.jit(method.score)(
        params, image_tokens[i], text_tokens[t][:, None], mask[t][:, None]
    )
    expected = {name: np.asarray(scores).ravel() for name, scores in plain.items()}
    expected["itc"] = (np.asarray(image_features) @ np.asarray(text_features).T).ravel()
    expected["itm+itc"] = expected["itm_logit"] + expected["itc"]
    return ScoringFunctions.of(method), params, state, eval_set, expected


def all_pairs():
    return np.repeat(np.arange(BLANK, IMAGES), len(TEXTS)), np.tile(
        np.arange(len(TEXTS)), IMAGES + 1
    )


def scores_of(model, mesh=None, **options):
    functions, params, state, eval_set, _ = model
    config = EvalConfig(**{"batch_size": 4, "match_rows": 32, "text_length": LENGTH} | options)
    scorer = Scorer(ScoredModel(functions, params, state, Numbers(), 16), config, mesh)
    scores = scorer.on(eval_set, TEXTS if mesh else ())
    scores.text_indices(TEXTS)
    return scores


MESHES = {"alone": None, "2x2": MeshConfig(2, 2)}


@pytest.mark.parametrize("mesh", MESHES)
def test_scores_are_those_of_the_plain_model(model, mesh):
    """On meshes the texts are also padded less."""
    functions, *_, expected = model
    scores = scores_of(model, make_mesh(MESHES[mesh]) if MESHES[mesh] else None)
    assert np.ptp(expected["itm"]) > 0.01  # the scores do differ
    assert set(functions.method.scores) == set(expected)
    for name, wanted in expected.items():
        np.testing.assert_allclose(scores.scores(name, *all_pairs()), wanted, atol=2e-5)
    scorer = scores.scorer
    assert (scorer.images_encoded, scorer.texts_encoded) == (IMAGES + 1, len(TEXTS))
    assert scorer.pairs_matched == (IMAGES + 1) * len(TEXTS)  # once for three scorers
    assert scores.encodings.text_length == (8 if MESHES[mesh] else LENGTH)
    if MESHES[mesh]:
        tokens_BxTxD = scores.encodings.batches[0].tokens_BxTxD
        assert len(tokens_BxTxD.sharding.device_set) == 4
    some = np.array([3, BLANK, 3]), np.array([5, 7, 5])
    np.testing.assert_allclose(
        scores.scores("itm", *some),
        expected["itm"].reshape(IMAGES + 1, -1)[some[0] + 1, some[1]],
        atol=2e-5,
    )


def test_tokens_in_host_memory_and_in_half_the_bits(model):
    logits = model[-1]["itm_logit"]
    host = scores_of(model, device_gib=0.0)
    np.testing.assert_allclose(host.scores("itm_logit", *all_pairs()), logits, atol=2e-5)
    assert all(isinstance(batch.tokens_BxTxD, np.ndarray) for batch in host.encodings.batches)
    half = scores_of(model, store="bfloat16")
    error = np.abs(half.scores("itm_logit", *all_pairs()) - logits)
    assert 1e-4 < error.max() < 0.1 * np.ptp(logits)
    assert half.encodings.batches[0].tokens_BxTxD.dtype == "bfloat16"


def test_recall_is_the_same_on_a_mesh_and_in_small_blocks(model, monkeypatch):
    config = EvalConfig(scorers=("itc", "itm_logit"), rerank_k=4)
    found = retrieval.retrieval_metrics(scores_of(model), config)
    monkeypatch.setattr(retrieval, "BLOCK", 3)
    scores = scores_of(model, make_mesh(MeshConfig(2, 2)))
    assert retrieval.retrieval_metrics(scores, config) == found
    assert len({metric.value for metric in found}) > 2


def test_the_matching_head_reads_the_dictionary_or_the_encoder(model):
    functions, params, state, eval_set, _ = model
    pictures = eval_set.images[:4]
    tokens, feature = functions.encode_image(params, state, pictures)
    encoder = ScoringFunctions.of(functions.method, "encoder")
    other, same = encoder.encode_image(params, state, pictures)
    np.testing.assert_allclose(feature, same, atol=1e-6)
    assert np.abs(np.asarray(tokens - other))[:, 1:].max() > 0.1  # patches
    # [CLS] is the encoder's in both
    np.testing.assert_allclose(tokens[:, 0], other[:, 0], atol=1e-6)
    with pytest.raises(ConfigError, match="eval.image_tokens='codes'"):
        EvalConfig(image_tokens="codes").validate()


def test_an_unannounced_text_is_an_error(model):
    scores = scores_of(model, make_mesh(MeshConfig(2, 2)))
    late = scores.text_indices(["5 6 7 8 9 10 11 12 13"])
    with pytest.raises(ValueError, match="not among those"):
        scores.scores("itm", np.array([0]), late)


def test_two_processes_share_the_work_and_agree_with_one():
    spec = importlib.util.spec_from_file_location("score_as_processes", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    one = program.report()

    command = [sys.executable, str(PROGRAM), f"localhost:{free_port()}", "2"]
    started = [
        subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    two = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert two[0]["ranks"] == two[1]["ranks"] == one["ranks"]
    for found in two:
        np.testing.assert_allclose(found["scores"], one["scores"], atol=1e-6)
        assert found["pairs_matched"] < 0.75 * one["pairs_matched"]
    # Both have the blank picture; the others are dealt.
    assert one["images_encoded"] == 8 and sorted(found["images_encoded"] for found in two) == [4, 5]


# ------------------------------------------------------------------ features of several tokens


@pytest.fixture(scope="module")
def late_model():
    """The smallest FILIP, and its scores of all pairs by NumPy, each text without its padding."""
    method = tiny.built(filip.FilipConfig(), model=tiny.model(init_std=0.3))
    params, state = jax.jit(method.init)(jax.random.key(0))
    pictures = RNG.integers(0, 256, (IMAGES, 16, 16, 3)).astype(np.uint8)
    eval_set = EvalSet("set", pictures, tuple(zip(TEXTS[::2], TEXTS[1::2], strict=True)), (), ())
    shown = np.concatenate([np.full((1, 16, 16, 3), BLANK_RGB, np.uint8), pictures])
    _, image = jax.jit(method.encode_image)(params, state, shown)
    encode_text = jax.jit(method.encode_text)
    expected = {name: [] for name in filip.SCORES}
    for patches in np.asarray(image, np.float64):
        for text in TEXTS:
            ids, mask = Numbers().encode([text], len(text.split()) + 1)
            words = np.asarray(encode_text(params, ids, mask)[1][0, :, :-1], np.float64)
            dots = patches @ words.T
            by_image, by_text = dots.max(1).mean(), dots.max(0).mean()
            for name, score in zip(
                filip.SCORES, ((by_image + by_text) / 2, by_image, by_text), strict=True
            ):
                expected[name].append(score)
    return ScoringFunctions.of(method), params, state, eval_set, expected


@pytest.mark.parametrize("name", filip.SCORES)
def test_late_scores_of_pairs_and_tables_in_any_blocks(late_model, name, monkeypatch):
    """Also blind; the padding of a text and the edge of a block change nothing."""
    expected = np.array(late_model[-1][name])
    np.testing.assert_allclose(
        scores_of(late_model).scores(name, *all_pairs()), expected, atol=1e-5
    )
    for table, rows, columns in ((1024, 16, 64), (5, 2, 3)):
        monkeypatch.setattr(scorers, "TABLE", table)
        monkeypatch.setattr(filip, "ROWS", rows)
        monkeypatch.setattr(filip, "COLUMNS", columns)
        images = np.arange(BLANK, IMAGES)
        found = scores_of(late_model).matrix(name, images, np.arange(len(TEXTS)))
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-5)


def test_retrieval_ranks_by_late_interaction(late_model):
    scores = scores_of(late_model)
    config = EvalConfig(scorers=("late",), rerank_k=4)
    found = {metric.key: metric for metric in retrieval.retrieval_metrics(scores, config)}
    table = np.array(late_model[-1]["late"]).reshape(IMAGES + 1, -1)[1:]
    right = np.argmax(table, axis=1) // 2 == np.arange(IMAGES)
    assert found["set/retrieval/late/image_to_text_r@1"].value == pytest.approx(100 * right.mean())
