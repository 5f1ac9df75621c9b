"""The suite on tiny methods that know everything, nothing, or only the text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np
import pytest
from standin import Standin

from nas_jax.data.eval_sets import EvalSet, Foil, Quad
from nas_jax.evals import metrics
from nas_jax.evals.config import EvalConfig, check_scorers
from nas_jax.evals.encodings import BLANK
from nas_jax.evals.functions import ScoredModel, ScoringFunctions, score_beside
from nas_jax.evals.keys import check_key, metric_keys
from nas_jax.evals.pairs import foil_metrics, quad_metrics
from nas_jax.evals.readings import evenly, make_task
from nas_jax.evals.retrieval import retrieval_metrics
from nas_jax.evals.scorers import Scorer
from nas_jax.evals.suite import Measured, make_evaluator, write_results
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


class Oracle(Standin):
    """Image = a picture of its number; text = the number and a variant letter.

    Features are one-hot in the number.
    """

    def encode_image(self, params, state, image_BxHxWx3, tokens="method"):
        number_B = image_BxHxWx3[:, 0, 0, 0].astype(jnp.int32)
        return number_B[:, None, None].astype(jnp.float32), jnp.eye(256)[number_B]

    def encode_text(self, params, token_ids_BxL, token_mask_BxL):
        return token_ids_BxL[:, :, None].astype(jnp.float32), jnp.eye(256)[token_ids_BxL[:, 0]]

    def logits(self, params, image, text):
        same_GxC = (image[:, None, 0, 0] == text[:, :, 0, 0]).astype(jnp.float32)
        return jnp.stack([1 - same_GxC, same_GxC], axis=2) * params["scale"]


class Constant(Oracle):
    def encode_image(self, params, state, image_BxHxWx3, tokens="method"):
        feature_BxE = jnp.full((len(image_BxHxWx3), 7), 7**-0.5)
        return super().encode_image(params, state, image_BxHxWx3)[0], feature_BxE

    def encode_text(self, params, token_ids_BxL, token_mask_BxL):
        feature_BxE = jnp.full((len(token_ids_BxL), 7), 7**-0.5)
        return super().encode_text(params, token_ids_BxL, token_mask_BxL)[0], feature_BxE

    def logits(self, params, image, text):
        return jnp.full((*text.shape[:2], 2), 0.3) * params["scale"]


class TextOnly(Oracle):
    """Its matching head prefers texts with small numbers and looks at no image."""

    def logits(self, params, image, text):
        return jnp.stack([text[:, :, 0, 0], -text[:, :, 0, 0]], axis=2)


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
            self.method,
            noted("encode_image", self.method.encode_image),
            noted("encode_text", self.method.encode_text),
            noted("score", score_beside(self.method)),
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


def evaluator(method, config=None, eval_sets=None):
    config = config or EvalConfig(batch_size=8, rerank_k=6)
    return make_evaluator(
        config, method, Measured(eval_sets or [make_set()], Words(), LENGTH, SIZE)
    )


def evaluate(method, config=None, eval_set=None):
    run = evaluator(method, config, [eval_set] if eval_set else None)
    return {m.key: m for m in run(PARAMS, {}, 5)}


def scores_of(functions, eval_set=None, batch_size=8):
    if not isinstance(functions, ScoringFunctions):
        functions = ScoringFunctions.of(functions)
    model = ScoredModel(functions, PARAMS, {}, Words(), SIZE)
    config = EvalConfig(batch_size=batch_size, text_length=LENGTH)
    return Scorer(model, config).on(eval_set or make_set())


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
    scores = scores_of(recorder.functions())
    scorer = scores.scorer
    for _ in range(2):
        retrieval_metrics(scores, EvalConfig(scorers=("itc", "itm"), rerank_k=6))
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
    for pictures, (places,), texts, mask in by_name["score"]:
        assert pictures == (8, 1, 1) and texts == (*mask, 1)
        assert mask == (places, mask[1], LENGTH) and mask[0] * mask[1] <= 256
    assert len(by_name["score"]) <= 3  # many texts a picture, or two


def test_each_function_compiles_once_a_shape_over_sets_and_calls():
    traced = []

    class Traced(Oracle):
        def score(self, *args):
            traced.append(("score", args[2].shape))
            return super().score(*args)

        def encode_text(self, *args):
            traced.append(("encode_text",))
            return super().encode_text(*args)

    sets = [make_set("a", 5), make_set("b", 23)]
    run = evaluator(Traced(), eval_sets=sets)
    run(PARAMS, {}, 1)
    run({"scale": jnp.float32(-1.0)}, {}, 2)
    assert traced.count(("encode_text",)) == 1 and len(traced) <= 1 + 3


def test_reranking_all_is_itm_retrieval():
    class Noise(Oracle):
        """Scores that are right now and then."""

        def encode_image(self, params, state, image_BxHxWx3, tokens="method"):
            tokens, feature = super().encode_image(params, state, image_BxHxWx3)
            return tokens, jnp.sin(feature @ jnp.arange(256.0 * 3).reshape(256, 3) ** 2)

        def encode_text(self, params, ids, mask):
            number, letter = ids[:, :1], ids[:, 1:2]
            feature = jnp.sin(1.7 * number + 2.3 * letter * jnp.arange(3.0))
            return ids[:, :, None].astype(jnp.float32), feature

        def logits(self, params, image, text):
            image, text, letter = image[:, None, 0, 0], text[:, :, 0, 0], text[:, :, 1, 0]
            value = 4 * jnp.sin(1.3 * image**2 + 2.1 * text + letter) - jnp.abs(image - text)
            return jnp.stack([jnp.zeros_like(value), value], axis=2)

    eval_set = make_set()
    scores = scores_of(Noise(), eval_set)
    images = np.arange(COUNT)
    texts = scores.text_indices([c for captions in eval_set.captions for c in captions])
    pairs = images.repeat(len(texts)), np.tile(texts, COUNT)
    itm_NxM = scores.scores("itm", *pairs).reshape(COUNT, -1)
    positives_NxM = np.arange(COUNT)[:, None] == np.arange(COUNT).repeat(2)[None]
    config = EvalConfig(scorers=("itm",), rerank_k=1000)
    found = {m.key: m.value for m in retrieval_metrics(scores, config)}
    for direction, matrix, positives in (
        ("image_to_text", itm_NxM, positives_NxM),
        ("text_to_image", itm_NxM.T, positives_NxM.T),
    ):
        want = metrics.recall_at_k(metrics.best_ranks(matrix, positives), 5)
        assert 0 < want < 100
        assert found[f"val/retrieval/itm/{direction}_r@5"] == want
    itc_NxM = scores.scores("itc", *pairs).reshape(COUNT, -1)
    np.testing.assert_array_equal(itc_NxM, scores.matrix("itc", images, texts))
    both_NxM = scores.scores("itm+itc", *pairs).reshape(COUNT, -1)
    np.testing.assert_array_equal(
        both_NxM, scores.scores("itm_logit", *pairs).reshape(COUNT, -1) + itc_NxM
    )


def test_equal_image_ids_and_equal_wordings_are_right_answers():
    eval_set = replace(
        make_set(count=4), captions=(("1 a",), ("2 a",), (), ("1 a",)), image_ids=(7, 7, 8, 9)
    )
    scores = scores_of(Oracle(), eval_set)
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


class Late(Standin):
    """Two features a picture and three a text, compared pair by pair (Yao et al. 2022, "FILIP");
    nothing else.
    """

    feature_scores = ("late", "first")
    pair_scores, summed_scores = (), {"both": ("late", "first")}
    default_scores = ("late", "both")

    def encode_image(self, params, state, image_BxHxWx3, tokens="method"):
        number_B = image_BxHxWx3[:, 0, 0, 0].astype(jnp.float32)
        return jnp.zeros((1, 1, 1)), jnp.stack([_circle(number_B), _circle(2 * number_B)], 1)

    def encode_text(self, params, token_ids_BxL, token_mask_BxL):
        number_B = token_ids_BxL[:, 0].astype(jnp.float32)
        return jnp.zeros((1, 1, 1)), jnp.stack([_circle(k * number_B) for k in (1, 2, 3)], 1)

    def compare(self, name, image_RxAxE, text_CxOxE):
        found = np.einsum("rae,coe->rcao", *(x.astype(float) for x in (image_RxAxE, text_CxOxE)))
        return found.max(axis=3).mean(axis=2) if name == "late" else found[:, :, 0, 0]


def _circle(angle_B):
    return jnp.stack([jnp.cos(angle_B), jnp.sin(angle_B)], axis=1)


def test_a_method_names_its_scores_and_compares_its_own_features():
    scores = scores_of(Late())
    found = evaluate(Late())
    assert {key.split("/")[2] for key in found} == {"late", "both"}
    assert found["val/foils/late/all"].value == 100.0
    assert found["val/retrieval/late/image_to_text_r@1"].value == 100.0
    images, texts = np.arange(COUNT), scores.text_indices([f"{n} a" for n in range(1, COUNT + 1)])
    features = [np.asarray(x) for x in (scores.image_features(images), scores.text_features(texts))]
    assert [x.shape for x in features] == [(COUNT, 2, 2), (COUNT, 3, 2)]
    want = Late().compare("late", *features) + Late().compare("first", *features)
    pairs = images.repeat(COUNT), np.tile(texts, COUNT)
    np.testing.assert_allclose(scores.scores("both", *pairs), want.ravel(), atol=1e-6)
    assert scores.scorer.pairs_matched == 0
    assert all(batch.tokens_BxTxD is None for batch in scores.encodings.batches)
    with pytest.raises(ConfigError, match="names out of late, first, both"):
        scores.scores("itm", images[:1], texts[:1])


def test_scorers_are_checked_against_the_method_or_its_class():
    assert check_scorers((), Oracle()) == check_scorers((), Oracle) == ("itc", "itm")
    assert check_scorers(("itm+itc",), Oracle) == ("itm+itc",)
    for names in (("itm", "late"), ("itc", "itc"), "itm"):
        with pytest.raises(ConfigError, match="--scorer=.*itc, itm, itm_logit, itm.itc"):
            check_scorers(names, Oracle, "--scorer")


def test_keys_are_known_before_an_evaluation():
    bare = replace(make_set("bare"), captions=((),) * COUNT, quads=())
    whole = replace(make_set(), foils=(*make_set().foils, Foil(0, "1 a", "2 a", "a/b")))
    for method, config in (
        (Oracle, EvalConfig(batch_size=8)),
        (Late, EvalConfig(batch_size=8, retrieval=False, scorers=("first",))),
    ):
        found = evaluator(method(), config, [bare, whole])(PARAMS, {}, 5)
        keys = metric_keys(config, method, [bare, whole])
        assert len(keys) == len(set(keys)) and sorted(keys) == sorted(one.key for one in found)
    check_key("val/quads/first/group", keys)
    with pytest.raises(ConfigError, match="best_metric='val/quad/first/group'.*quads/first/group'"):
        check_key("val/quad/first/group", keys)
    with pytest.raises(ConfigError, match="an evaluation, of which the run has none"):
        check_key("val/quads/first/group", metric_keys(config, Late, []))


def test_limits_take_an_even_part():
    assert list(evenly(10, 4)) == [0, 2, 5, 7] and len(evenly(10, 0)) == len(evenly(10, 11)) == 10
    found = evaluate(
        Oracle(), EvalConfig(batch_size=8, rerank_k=6, max_images=5, max_pairs=6, scorers=("itm",))
    )
    assert found["val/retrieval/itm/image_to_text_r@1"].count == 5
    assert found["val/foils/itm/all"].count == found["val/quads/itm/text"].count == 6


def test_blank_image_is_the_normalisation_mean():
    recorder = Recorder(Oracle())
    scores = scores_of(recorder.functions(), batch_size=2)
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
    for value in (("itc", "itc"), "itm"):
        with pytest.raises(ConfigError, match="eval.scorers"):
            EvalConfig(scorers=value).validate()
    with pytest.raises(ConfigError, match=r"eval.scorers=\('itm', 'clip'\)"):
        evaluator(Oracle(), EvalConfig(scorers=("itm", "clip")))
    with pytest.raises(ConfigError, match="eval.foils"):
        EvalConfig(foils=1).validate()
    with pytest.raises(DataError, match="evaluation sets named"):
        evaluator(Oracle(), eval_sets=[make_set(), make_set()])
    with pytest.raises(DataError, match=r"image 3 .* uint8 \(5, 2, 3\)"):
        broken = make_set()
        broken.images[3] = np.zeros((5, 2, 3), np.uint8)
        evaluate(Oracle(), eval_set=broken)
    with pytest.raises(DivergedError, match="not finite"):
        evaluator(Oracle())({"scale": jnp.float32(jnp.nan)}, {}, 1)
    scores = scores_of(Oracle())
    with pytest.raises(ConfigError, match=r"eval.scorers=\('clip',\)"):
        scores.scores("clip", np.array([0]), scores.text_indices(["1 a"]))
    with pytest.raises(DataError, match="a category named 'all'"):
        evaluate(Oracle(), eval_set=replace(make_set(), foils=(Foil(0, "1 a", "2 a", "all"),)))


def test_a_length_that_cuts_the_deciding_word_is_refused(caplog):
    foils = (Foil(0, "1 a 5 5 7", "1 a 5 5 8", "x"),)
    with pytest.raises(ConfigError, match="text_length=4 cuts '1 a 5 5 7'"):
        evaluator(Oracle(), eval_sets=[replace(make_set(), foils=foils)])
    same = (Foil(0, "1 a", "1  a", "x"),)
    evaluator(Oracle(), eval_sets=[replace(make_set(), foils=same)])
    assert "1 of 1 pairs have the same tokens" in caplog.text
    assert "differ in case, punctuation or spaces alone. Remedy: leave them out" in caplog.text


def test_results_file(tmp_path):
    found = list(evaluate(Oracle()).values())
    path = tmp_path / "new" / "results.json"
    write_results(path, found, {"step": 5})
    read = json.loads(path.read_text())
    assert read["info"] == {"step": 5} and read["metrics"][0]["key"] == found[0].key
    assert set(read["metrics"][0]) == {"key", "value", "chance", "blind", "count"}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
