"""Games: the index from all coalitions against orders of players and against the definition, what
is sampled against it, and the losses in NumPy.
"""

from __future__ import annotations

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nas_jax.losses.shapley import (
    alignment_labels,
    alignment_loss,
    coalition_similarity,
    draw_coalitions,
    exact_interactions,
    exact_values,
    interaction_loss,
    pair_interactions,
    pairs_to_sample,
    replaced,
    sampled_interactions,
    standardised,
)

COSINES = np.random.default_rng(3).uniform(-0.5, 1, (3, 2)).astype(np.float32)
SIMILARITY = partial(coalition_similarity, jnp.asarray(COSINES))  # five players
PLAYS = np.array([[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]], bool)


def additive(member):
    return member @ jnp.asarray([3.0, -1.0, 0.5, 2.0])


def by_hand(cosines, patches, words):
    """FILIP's similarity of some patches and words of a pair."""
    if not patches or not words:
        return 0.0
    rows = [max(cosines[i, j] for j in words) for i in patches]
    columns = [max(cosines[i, j] for i in patches) for j in words]
    return (np.mean(rows) + np.mean(columns)) / 2


def test_an_additive_game_gives_each_player_what_it_adds_and_no_interaction():
    np.testing.assert_allclose(exact_values(additive, 4), [3, -1, 0.5, 2], atol=1e-6)
    np.testing.assert_allclose(exact_interactions(additive, 4), np.zeros((4, 4)), atol=1e-6)
    coalition = draw_coalitions(jax.random.key(0), 1, 4, 4)[0]
    pairs = jnp.asarray([0, 0, 2]), jnp.asarray([1, 3, 3])
    np.testing.assert_allclose(sampled_interactions(additive, coalition, *pairs), 0, atol=1e-6)


def test_values_are_means_over_all_orders_of_what_a_player_adds():
    expected = np.zeros(5)
    for order in permutations(range(5)):
        member, before = np.zeros(5, bool), 0.0
        for player in order:
            member[player] = True
            there = np.flatnonzero(member)
            after = by_hand(COSINES, there[there < 3].tolist(), (there[there >= 3] - 3).tolist())
            expected[player] += (after - before) / 120
            before = after
    found = exact_values(SIMILARITY, 5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(), by_hand(COSINES, [0, 1, 2], [0, 1]), atol=1e-6)


def test_an_interaction_is_the_worth_of_the_pair_as_one_player_beyond_its_members_alone():
    found = exact_interactions(SIMILARITY, 5)
    for one in range(5):
        for other in set(range(5)) - {one}:
            rest = [player for player in range(5) if player not in (one, other)]

            def game(member, players):
                """The game of the rest and one more, who stands for some players."""
                whole = jnp.zeros((*member.shape[:-1], 5), bool)
                whole = whole.at[..., jnp.asarray(rest)].set(member[..., :-1])  # noqa: B023
                return SIMILARITY(whole.at[..., jnp.asarray(players)].set(member[..., -1:]))

            pair, first, second = (
                exact_values(partial(game, players=players), 4)[-1]
                for players in ([one, other], [one], [other])
            )
            np.testing.assert_allclose(found[one, other], pair - first - second, atol=1e-6)
    assert np.abs(found[:3, 3:]).max() > 0.1


def test_sampled_interactions_converge_to_the_index():
    exact = exact_interactions(SIMILARITY, 5)[:3, 3:]
    pairs = jnp.arange(6) // 2, 3 + jnp.arange(6) % 2
    sample = jax.jit(
        jax.vmap(lambda coalition: sampled_interactions(SIMILARITY, coalition, *pairs))
    )
    drawn = draw_coalitions(jax.random.key(1), 400, 16, 5)
    found = np.asarray(sample(drawn)).reshape(400, 3, 2)
    error = found.std(0) / 20  # of the mean of 400
    assert (np.abs(found.mean(0) - exact) < 4 * error + 1e-6).all()
    assert error.max() < 0.01 < np.abs(exact).min()
    few = sample(draw_coalitions(jax.random.key(2), 400, 1, 5))
    few = np.asarray(few).reshape(400, 3, 2)
    assert (found.std(0) < few.std(0) / 3).all()


def test_coalitions_have_every_size_alike_and_no_draw_depends_on_further_players():
    drawn = np.asarray(draw_coalitions(jax.random.key(0), 2000, 2, 4))
    share = np.bincount(drawn.sum(-1).ravel(), minlength=5) / 4000
    np.testing.assert_allclose(share, 0.2, atol=0.03)
    more = draw_coalitions(jax.random.key(0), 2000, 2, 6)
    np.testing.assert_array_equal(more[..., :4], drawn)


def test_pairs_are_worth_the_same_whatever_is_padded():
    cosines = jnp.asarray(COSINES)[None]
    coalition = draw_coalitions(jax.random.key(2), 1, 5, 5)
    pair = jnp.arange(6)[None]
    found = pair_interactions(cosines, jnp.ones((1, 3, 2), bool), coalition, pair)
    by_players = sampled_interactions(SIMILARITY, coalition[0], pair[0] // 2, 3 + pair[0] % 2)
    np.testing.assert_allclose(found[0], by_players, atol=1e-6)
    padded = jnp.full((1, 4, 4), 0.9).at[:, :3, :2].set(cosines)
    plays = jnp.zeros((1, 4, 4), bool).at[:, :3, :2].set(True)
    members = jnp.ones((1, 5, 8), bool)
    members = members.at[..., :3].set(coalition[..., :3]).at[..., 4:6].set(coalition[..., 3:])
    again = pair_interactions(padded, plays, members, pair // 2 * 4 + pair % 2)
    np.testing.assert_allclose(again, found, atol=1e-6)


def test_the_most_uncertain_pairs_are_chosen_and_some_at_random():
    rng = np.random.default_rng(0)
    uncertainty, random = (rng.normal(size=PLAYS.shape).astype(np.float32) for _ in range(2))
    uncertainty[0, 1, 0] = np.inf
    chosen = pairs_to_sample(*map(jnp.asarray, (uncertainty, PLAYS, random)), pairs=3, explored=1)
    for row in range(3):
        playing = np.flatnonzero(PLAYS[row])
        by_chance = playing[np.argsort(-random[row].ravel()[playing])][:1].tolist()
        left = [pair for pair in playing if pair not in by_chance]
        unsure = sorted(left, key=lambda pair: -uncertainty[row].ravel()[pair])[:2]  # noqa: B023
        found = np.asarray(chosen.pair_BxM[row])[np.asarray(chosen.valid_BxM[row])].tolist()
        assert found == by_chance + unsure
    assert 3 in chosen.pair_BxM[0].tolist()
    predicted = jnp.asarray(uncertainty)
    new = jnp.arange(9.0).reshape(3, 3) + 10
    found = np.array(replaced(predicted, chosen, new))
    expected = uncertainty.reshape(3, 6).copy()
    for row, place in np.argwhere(np.asarray(chosen.valid_BxM)):
        expected[row, chosen.pair_BxM[row, place]] = new[row, place]
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
    everything = pairs_to_sample(*map(jnp.asarray, (uncertainty, PLAYS, random)), 6, 0)
    np.testing.assert_array_equal(everything.valid_BxM.sum(1), PLAYS.sum((1, 2)))


def test_standardised_entries_have_mean_0_and_deviation_1_among_the_valid():
    x = np.random.default_rng(0).normal(3, 0.01, (3, 5)).astype(np.float32)
    valid = np.array([[1, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    found = np.asarray(standardised(jnp.asarray(x), jnp.asarray(valid)))
    kept = x[0][valid[0]].astype(np.float64)
    expected = (kept - kept.mean()) / kept.std()
    np.testing.assert_allclose(found[0][valid[0]], expected, atol=1e-2)
    assert np.isfinite(found).all() and found[1, 0] == 0


def labels_by_hand(interactions, temp):
    found = np.zeros((2, *PLAYS.shape))
    for b, i, j in np.argwhere(PLAYS):
        weight = np.exp(interactions[b] / temp) * PLAYS[b]
        found[0, b, i, j] = weight[i, j] / weight[i].sum()
        found[1, b, i, j] = weight[i, j] / weight[:, j].sum()
    return found


def test_labels_and_their_loss_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    interactions, cosines = rng.normal(size=(2, *PLAYS.shape))
    given = [jnp.asarray(x, jnp.float32) for x in (interactions, cosines)]
    plays, temp = jnp.asarray(PLAYS), 0.3
    labels = alignment_labels(given[0], plays, 0.7)
    expected_labels = labels_by_hand(interactions, 0.7)
    np.testing.assert_allclose(labels, expected_labels, rtol=1e-5, atol=1e-7)
    expected = np.zeros(3)
    predicted = labels_by_hand(cosines, temp)
    for axis in (0, 1):
        for b in range(3):
            rows = PLAYS[b].any(1 - axis).sum()
            for i, j in np.argwhere(PLAYS[b]):
                term = expected_labels[axis, b, i, j] * np.log(predicted[axis, b, i, j])
                expected[b] -= term / rows / 2
    found = alignment_loss(given[1], labels, plays, jnp.float32(temp))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found[2] == 0
    spoilt = jnp.where(plays, given[1], 7.0)  # what is padded is not read
    np.testing.assert_array_equal(alignment_loss(spoilt, labels, plays, jnp.float32(temp)), found)
    loss = partial(alignment_loss, labels_2xBxNxL=labels, plays_BxNxL=plays, temp=jnp.float32(temp))
    check_grads(loss, (given[1],), 1, ("rev",), rtol=2e-2)
    slope = jax.grad(
        lambda x: alignment_loss(given[1], alignment_labels(x, plays, 0.7), plays, temp).sum()
    )(given[0])
    assert (slope == 0).all()


def test_the_loss_of_predictions_is_a_normal_log_density():
    rng = np.random.default_rng(0)
    predicted, log_variance, sampled = rng.normal(size=(3, 2, 4))
    valid = np.array([[1, 1, 0, 1], [0, 0, 0, 0]], bool)
    given = [jnp.asarray(x, jnp.float32) for x in (predicted, log_variance, sampled)]
    found = interaction_loss(*given, jnp.asarray(valid))
    deviation = np.exp(log_variance[0] / 2)
    density = np.exp(-(((sampled - predicted)[0] / deviation) ** 2) / 2)
    density /= deviation * np.sqrt(2 * np.pi)
    expected = -np.log(density * np.sqrt(2 * np.pi))[valid[0]].mean()
    np.testing.assert_allclose(found, [expected, 0], rtol=1e-5)

    def loss(predicted, log_variance):
        return interaction_loss(predicted, log_variance, given[2], jnp.asarray(valid))

    check_grads(loss, given[:2], 1, ("rev",), rtol=2e-2)


@pytest.mark.parametrize("patches", [[0, 1, 2], [1], []])
@pytest.mark.parametrize("words", [[0, 1], [1], []])
def test_the_value_of_a_coalition_is_the_similarity_of_its_members(patches, words):
    member = np.zeros(5, bool)
    member[patches + [3 + word for word in words]] = True
    expected = by_hand(COSINES, patches, words)
    np.testing.assert_allclose(SIMILARITY(jnp.asarray(member)), expected, atol=1e-6)
