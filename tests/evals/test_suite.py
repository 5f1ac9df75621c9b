"""The suite on tiny methods that know everything, nothing, or only the text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax.data.eval_sets import EvalSet, Foil, Quad
from nas_jax.evals import metrics
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.pairs import foil_metrics, quad_metrics
from nas_jax.evals.retrieval import evenly, make_task, retrieval_metrics
from nas_jax.evals.scorers import BLANK, Scorer, ScoringFunctions, match_beside
from nas_jax.evals.suite import make_evaluator, write_results
from nas_jax.utils.errors import ConfigError, DataError, DivergedError

SIZE, LENGTH, COUNT = 2, 4, 23


class Words:
    """Word i of a text is its number: "7 b" -> [7, 51]; padding is 0."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            numbers = [
                int(word) if word.isdigit() else 50 + ord(word) - ord("a") for word in text.split()
            ][:length]
            ids[row, : len(numbers)], mask[row, : len(numbers)] = numbers, True
        return ids, mask


class Oracle:
    """Image = a picture of its number; text = the number and a variant letter.

    Features are one-hot in the number.
    """

    def encode_image(self, params, method_state, image_BxHxWx3):
        number_B = image_BxHxWx3[:, 0, 0, 0].astype(jnp.int32)
        return number_B[:, None, None].astype(jnp.float32), jnp.eye(256)[number_B]

    def encode_text(self, params, token_ids_BxL, token_mask_BxL):
        return token_ids_BxL[:, :, None].astype(jnp.float32), jnp.eye(256)[token_ids_BxL[:, 0]]

    def match(self, params, image_tokens_BxTxD, text_tokens_BxLxD, token_mask_BxL):
        same_B = (image_tokens_BxTxD[:, 0, 0] == text_tokens_BxLxD[:, 0, 0]).astype(jnp.float32)
        return jnp.stack([1 - same_B, same_B], axis=1) * params["scale"]


class Constant(Oracle):
    def encode_image(self, params, method_state, image_BxHxWx3):
        return super().encode_image(params, method_state, image_BxHxWx3)[0], jnp.full(
            (len(image_BxHxWx3), 7), 7**-0.5
        )

    def encode_text(self, params, token_ids_BxL, token_mask_BxL):
        return super().encode_text(params, token_ids_BxL, token_mask_BxL)[0], jnp.full(
            (len(token_ids_BxL), 7), 7**-0.5
        )

    def match(self, params, image_tokens_BxTxD, text_tokens_BxLxD, token_mask_BxL):
        return jnp.full((len(image_tokens_BxTxD), 2), 0.3) * params["scale"]


class TextOnly(Oracle):
    """Its matching head prefers texts with small numbers and looks at no image."""

    def match(self, params, image_tokens_BxTxD, text_tokens_BxLxD, token_mask_BxL):
        return jnp.stack([text_tokens_BxLxD[:, 0, 0], -text_tokens_BxLxD[:, 0, 0]], axis=1)


@dataclass
class Recorder:
    """Unjitted scoring functions that note the batch shape of each call."""

    method: Oracle
    shapes: list[tuple] = field(default_factory=list)

    def functions(self):
        def noted(name, function):
            def call(params, *arrays):
                self.shapes.append((name, *(np.shape(array) for array in arrays)))
                return function(params, *arrays)

            return call

        return ScoringFunctions(
            noted("encode_image", self.method.encode_image),
            noted("encode_text", self.method.encode_text),
            noted("match", match_beside(self.method)),
        )


PARAMS = {"scale": jnp.float32(3.0)}


def make_set(name="val", count=COUNT) -> EvalSet:
    numbers = range(1, count + 1)  # the picture at index i shows i + 1
    other = [n % count + 1 for n in numbers]
    return EvalSet(
        name=name,
        images=[np.full((SIZE, SIZE, 3), n, np.uint8) for n in numbers],
        captions=tuple((f"{n} a", f"{n} b") for n in numbers),
        foils=tuple(
            Foil(n - 1, f"{n} a", f"{m} a", "odd" if n % 2 else "even")
            for n, m in zip(numbers, other, strict=True)
        ),
        quads=tuple(
            Quad(n - 1, m - 1, f"{n} a", f"{m} a", "") for n, m in zip(numbers, other, strict=True)
        ),
    )


def evaluate(method, config=None, eval_set=None):
    config = config or EvalConfig(batch_size=8, rerank_k=6)
    run = make_evaluator(config, [eval_set or make_set()], Words(), method, LENGTH, SIZE)
    return {m.key: m for m in run(PARAMS, {}, 5)}


def test_oracle_has_100_everywhere_and_chance_is_stated():
    found = evaluate(Oracle())
    assert {m.value for m in found.values()} == {100.0}
    assert found["val/foils/itm/all"].count == COUNT and found["val/foils/itm/odd"].count == 12
    assert found["val/foils/itc/macro"].chance == 50 and found[
        "val/quads/itm/group"
    ].chance == pytest.approx(100 / 6)
    to_text, to_image = (
        found[f"val/retrieval/itm/{d}_r@1"] for d in ("image_to_text", "text_to_image")
    )
    assert (to_text.count, to_image.count) == (COUNT, 2 * COUNT)
    assert to_text.chance == pytest.approx(100 / COUNT) and to_image.chance == pytest.approx(
        100 / COUNT
    )
    # scorers x (recalls, foils: all, macro, two categories, quads)
    assert len(found) == 2 * (6 + 4 + 3)
    assert all(m.blind <= m.chance for m in found.values())


def test_constant_scores_have_0_everywhere():
    found = evaluate(Constant(), EvalConfig(batch_size=8, rerank_k=1))
    assert {m.value for m in found.values()} == {0.0} and {m.blind for m in found.values()} == {0.0}


def test_text_only_scores_show_in_the_blind_column():
    foils = {k: m for k, m in evaluate(TextOnly()).items() if "foils/itm" in k}
    # all but "23 or 1"
    assert foils["val/foils/itm/all"].value == pytest.approx(100 * (COUNT - 1) / COUNT)
    assert all(m.value == m.blind for m in foils.values())
    assert evaluate(TextOnly())["val/quads/itm/text"].blind == 0


def test_everything_is_encoded_once_in_batches_of_one_shape():
    recorder = Recorder(Oracle())
    eval_set = make_set()
    scorer = Scorer(
        recorder.functions(), PARAMS, {}, Words(), LENGTH, batch_size=8, image_size=SIZE
    )
    scores = scorer.on(eval_set)
    for _ in range(2):
        retrieval_metrics(scores, rerank_k=6)
        for name in ("itc", "itm"):
            foil_metrics(scores, name)
            quad_metrics(scores, name)
    assert scorer.images_encoded == COUNT + 1  # and the blank image
    assert scorer.texts_encoded == 2 * COUNT
    by_name = {
        name: {call[1:] for call in recorder.shapes if call[0] == name}
        for name, *_ in recorder.shapes
    }
    assert by_name["encode_image"] == {((), (8, SIZE, SIZE, 3))}  # () is the method state
    assert by_name["encode_text"] == {((8, LENGTH), (8, LENGTH))}
    for pictures, (places,), texts, mask in by_name["match"]:
        assert pictures == (8, 1, 1) and texts == (*mask, 1) and mask[1] == LENGTH
        assert mask[0] % places == 0 and mask[0] <= 256  # as many texts beside each picture
    assert len(by_name["match"]) <= 3  # many texts a picture, or two


def test_each_function_compiles_once_a_shape_over_sets_and_calls():
    traced = []

    class Traced(Oracle):
        def match(self, *args):
            traced.append(("match", args[2].shape))
            return super().match(*args)

        def encode_text(self, *args):
            traced.append(("encode_text",))
            return super().encode_text(*args)

    sets = [make_set("a", 5), make_set("b", 23)]
    run = make_evaluator(
        EvalConfig(batch_size=8, rerank_k=6), sets, Words(), Traced(), LENGTH, SIZE
    )
    run(PARAMS, {}, 1)
    run({"scale": jnp.float32(-1.0)}, {}, 2)
    assert traced.count(("encode_text",)) == 1 and len(traced) <= 1 + 3


def test_reranking_all_is_itm_retrieval():
    class Noise(Oracle):
        """Scores that are right now and then."""

        def encode_image(self, params, method_state, image_BxHxWx3):
            tokens, feature = super().encode_image(params, method_state, image_BxHxWx3)
            return tokens, jnp.sin(feature @ jnp.arange(256.0 * 3).reshape(256, 3) ** 2)

        def encode_text(self, params, ids, mask):
            return ids[:, :, None].astype(jnp.float32), jnp.sin(
                1.7 * ids[:, :1] + 2.3 * ids[:, 1:2] * jnp.arange(3.0)
            )

        def match(self, params, image, text, mask):
            image_B, text_B = image[:, 0, 0], text[:, 0, 0]
            value = 4 * jnp.sin(1.3 * image_B**2 + 2.1 * text_B + text[:, 1, 0]) - jnp.abs(
                image_B - text_B
            )
            return jnp.stack([jnp.zeros_like(value), value], axis=1)

    eval_set = make_set()
    scores = Scorer(Noise(), PARAMS, {}, Words(), LENGTH, 8, SIZE).on(eval_set)
    images = np.arange(COUNT)
    texts = scores.text_indices([c for captions in eval_set.captions for c in captions])
    itm_NxM = scores.scores("itm", images.repeat(len(texts)), np.tile(texts, COUNT)).reshape(
        COUNT, -1
    )
    positives_NxM = np.arange(COUNT)[:, None] == np.arange(COUNT).repeat(2)[None]
    found = {m.key: m.value for m in retrieval_metrics(scores, ("itm",), rerank_k=1000)}
    for direction, matrix, positives in (
        ("image_to_text", itm_NxM, positives_NxM),
        ("text_to_image", itm_NxM.T, positives_NxM.T),
    ):
        want = metrics.recall_at_k(metrics.best_ranks(matrix, positives), 5)
        assert 0 < want < 100
        assert found[f"val/retrieval/itm/{direction}_r@5"] == want
    pairs = scores.scores("itc", images.repeat(len(texts)), np.tile(texts, COUNT)).reshape(
        COUNT, -1
    )
    np.testing.assert_allclose(pairs, scores.itc_matrix(images, texts), rtol=1e-6)


def test_equal_image_ids_and_equal_wordings_are_right_answers():
    eval_set = replace(
        make_set(count=4), captions=(("1 a",), ("2 a",), (), ("1 a",)), image_ids=(7, 7, 8, 9)
    )
    scores = Scorer(Oracle(), PARAMS, {}, Words(), LENGTH, 8, SIZE).on(eval_set)
    task = make_task(scores, rule="wording")
    # Images 0 and 1 are the same picture; image 3 shares only the words of image 0, so text 2 still
    # asks for image 3.
    assert [list(right) for right in task.right_texts] == [[0, 1, 2], [0, 1, 2], [0, 2]]
    assert [list(right) for right in task.right_images] == [[0, 1], [0, 1], [2]]
    task = make_task(scores, rule="own")
    assert (
        [list(right) for right in task.right_texts]
        == [[0], [1], [2]]
        == [list(r) for r in task.right_images]
    )


def test_limits_take_an_even_part():
    assert list(evenly(10, 4)) == [0, 2, 5, 7] and len(evenly(10, 0)) == len(evenly(10, 11)) == 10
    found = evaluate(
        Oracle(), EvalConfig(batch_size=8, rerank_k=6, max_images=5, max_pairs=6, scorers=("itm",))
    )
    assert found["val/retrieval/itm/image_to_text_r@1"].count == 5
    assert found["val/foils/itm/all"].count == found["val/quads/itm/text"].count == 6


def test_blank_image_is_the_normalisation_mean():
    recorder = Recorder(Oracle())
    scores = Scorer(recorder.functions(), PARAMS, {}, Words(), LENGTH, 2, SIZE).on(make_set())
    # the oracle reads the red value
    scores.scores("itm", np.array([BLANK]), scores.text_indices(["123 a"]))
    assert scores.scores("itc", np.array([BLANK]), scores.text_indices(["123 a"])) == [1.0]


def test_bad_inputs_are_refused():
    for field_, value in {
        "rerank_k": 0,
        "batch_size": 0,
        "max_images": -1,
        "max_pairs": 1.5,
    }.items():
        with pytest.raises(ConfigError, match=f"eval.{field_}"):
            replace(EvalConfig(), **{field_: value}).validate()
    for value in (("itm", "clip"), (), ("itc", "itc"), "itm"):
        with pytest.raises(ConfigError, match="eval.scorers"):
            EvalConfig(scorers=value).validate()
    with pytest.raises(ConfigError, match="eval.foils"):
        EvalConfig(foils=1).validate()
    with pytest.raises(DataError, match="evaluation sets named"):
        make_evaluator(EvalConfig(), [make_set(), make_set()], Words(), Oracle(), LENGTH, SIZE)
    with pytest.raises(DataError, match=r"image 3 .* uint8 \(5, 2, 3\)"):
        broken = make_set()
        broken.images[3] = np.zeros((5, 2, 3), np.uint8)
        evaluate(Oracle(), eval_set=broken)
    with pytest.raises(DivergedError, match="not finite"):
        make_evaluator(EvalConfig(batch_size=8), [make_set()], Words(), Oracle(), LENGTH, SIZE)(
            {"scale": jnp.float32(jnp.nan)}, {}, 1
        )
    scores = Scorer(Oracle(), PARAMS, {}, Words(), LENGTH, 8, SIZE).on(make_set())
    with pytest.raises(ConfigError, match="scorer 'clip'"):
        scores.scores("clip", np.array([0]), scores.text_indices(["1 a"]))
    with pytest.raises(DataError, match="a category named 'all'"):
        evaluate(Oracle(), eval_set=replace(make_set(), foils=(Foil(0, "1 a", "2 a", "all"),)))


def test_a_length_that_cuts_the_deciding_word_is_refused(caplog):
    foils = (Foil(0, "1 a 5 5 7", "1 a 5 5 8", "x"),)
    with pytest.raises(ConfigError, match="text_length=4 cuts '1 a 5 5 7'"):
        make_evaluator(
            EvalConfig(), [replace(make_set(), foils=foils)], Words(), Oracle(), LENGTH, SIZE
        )
    same = (Foil(0, "1 a", "1  a", "x"),)
    make_evaluator(EvalConfig(), [replace(make_set(), foils=same)], Words(), Oracle(), LENGTH, SIZE)
    assert "1 of 1 pairs have the same tokens" in caplog.text


def test_results_file(tmp_path):
    found = list(evaluate(Oracle()).values())
    path = tmp_path / "new" / "results.json"
    write_results(path, found, {"step": 5})
    read = json.loads(path.read_text())
    assert read["info"] == {"step": 5} and read["metrics"][0]["key"] == found[0].key
    assert set(read["metrics"][0]) == {"key", "value", "chance", "blind", "count"}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
