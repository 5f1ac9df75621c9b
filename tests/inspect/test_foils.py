"""Hardest foils: scores and hits are those of the evaluation, and the order is that of margins."""

from __future__ import annotations

import random

import jax
import numpy as np
import own_method
import pytest
import tiny

from nas_jax.data.scene_sets import Counts, scene_eval_sets
from nas_jax.data.tokenizer import learn_wordpiece
from nas_jax.data.worlds import SMALL
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.functions import ScoredModel, ScoringFunctions
from nas_jax.evals.pairs import foil_metrics
from nas_jax.evals.scorers import Scorer
from nas_jax.inspect.foils_measure import (
    CLOSE,
    SURE,
    WRONG,
    FoilScored,
    check_matching,
    chosen_set,
    marked_changes,
    score_foils,
    sorted_out,
)
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.method import Setting
from nas_jax.utils.errors import ConfigError

LENGTH = 24


def test_scores_are_those_of_the_method_and_hits_those_of_the_evaluation():
    sets = scene_eval_sets(0, 16, SMALL, Counts(2, 4, 2))
    chosen = chosen_set(sets, "")
    assert chosen.name == "val" and chosen_set(sets, "heldout").name == "heldout"
    tokenizer = learn_wordpiece([foil.caption for foil in chosen.foils], 200)
    sizes = {"vocab_size": tokenizer.vocab_size, "max_text_length": LENGTH, "init_std": 0.3}
    config = AlbefConfig(itc=ItcConfig(queue_size=24))
    method = Albef.build(config, tiny.model(**sizes), Setting(tokenizer.vocabulary()))
    params, state = jax.jit(method.init)(jax.random.key(0))
    model = ScoredModel(ScoringFunctions.of(method), params, {}, tokenizer, 16)
    scorer = Scorer(model, EvalConfig(batch_size=8, match_rows=16, scorers=("itm",)))
    items = score_foils(scorer, chosen, LENGTH)
    assert [(one.image, one.caption, one.foil, one.category) for one in items] == [
        (foil.image, foil.caption, foil.foil, foil.category) for foil in chosen.foils
    ]

    @jax.jit
    def score(image_BxHxWx3, ids_BxL, mask_BxL):
        image_BxTxD, _ = method.encode_image(params, state, image_BxHxWx3)
        text_BxLxD, _ = method.encode_text(params, ids_BxL, mask_BxL)
        return method.score(params, image_BxTxD, text_BxLxD[:, None], mask_BxL[:, None])["itm"]

    for one in items:  # one pair at a time
        image_BxHxWx3 = chosen.images[one.image][None]
        match = [
            float(score(image_BxHxWx3, *tokenizer.encode([text], LENGTH))[0, 0])
            for text in (one.caption, one.foil)
        ]
        expected = 1 / (1 + np.exp(-np.array(match)))
        np.testing.assert_allclose([one.caption_match, one.foil_match], expected, rtol=1e-4)
        assert one.margin == pytest.approx(match[0] - match[1], abs=1e-4)
    metrics = {row.quantity: row for row in foil_metrics(scorer.on(chosen, (), LENGTH), "itm")}
    assert metrics["all"].value == pytest.approx(100 * np.mean([one.right for one in items]))
    assert 0 < metrics["all"].value < 100
    assert len(score_foils(scorer, chosen, LENGTH, max_pairs=5)) == 5


def item(number: int, margin: float) -> FoilScored:
    return FoilScored(number, "a", "b", "colour", 0.5, 0.5, margin, margin > 0)


def test_groups_are_in_the_order_of_margins():
    margins = [-9.0, -8.5, -3, -2.5, -2, -1, -0.7, -0.6, -0.5, -0.1, 0.0]  # a tie is wrong
    margins += [0.01, 0.02, 0.3, 0.4, 0.5, 1, 2, 3, 8, 9]
    items = [item(number, margin) for number, margin in enumerate(margins)]
    random.Random(0).shuffle(items)
    found = sorted_out(items, "run", "val")
    assert [one.margin for one in found.wrong] == margins[:WRONG]
    assert [one.margin for one in found.close] == margins[11 : 11 + CLOSE]
    assert [one.margin for one in found.sure] == margins[: -1 - SURE : -1]
    assert (found.count, found.right) == (21, 10)
    few = sorted_out([item(0, 1.0), item(1, 1.0)], "run", "val")  # nobody stands in two groups
    assert [one.image for one in few.close] == [0, 1] and not few.sure and not few.wrong


@pytest.mark.parametrize(
    ("text", "other", "changed"),
    [
        ("a red star", "a blue star", [1]),
        ("a red star and a blue cross", "a blue star and a red cross", [1, 5]),
        ("no red star", "red star", [0]),
        ("same words", "same words", []),
        ("one two", "three", [0, 1]),
    ],
)
def test_words_that_differ_are_marked(text, other, changed):
    marked = marked_changes(text, other)
    assert " ".join(word for word, _ in marked) == text
    assert [place for place, (_, differs) in enumerate(marked) if differs] == changed


def test_what_has_no_foils_or_no_matching_score_is_refused():
    sets = scene_eval_sets(0, 16, SMALL, Counts(2, 0, 0))
    with pytest.raises(ConfigError, match="no foils in the run"):
        chosen_set(sets, "")
    sets = scene_eval_sets(0, 16, SMALL, Counts(0, 2, 0))
    with pytest.raises(ConfigError, match="--set test; expected one of val, heldout"):
        chosen_set(sets, "test")
    own = own_method.Own.build(own_method.OwnConfig(), tiny.model(), tiny.setting())
    with pytest.raises(ConfigError, match="method own without the score itm"):
        check_matching(own)
