"""Games of tokens: Shapley interactions, exact and sampled, and the alignment that they teach
(LOUPE, Li et al., NeurIPS 2022, arXiv 2208.02515).

Letters here: P players, N of them firsts (patches or regions), then L seconds (words or phrases);
A coalitions, M sampled pairs. A game is a function `value` from coalitions (..., P) bool to (...).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.typing import Array

Value = Callable[[Array], Array]
_OUT = -1e9  # a logit of what does not play; finite, so that rows without a player stay so


# ------------------------------------------------------------------------------------- the index


def _all_coalitions(value: Value, players: int) -> tuple[np.ndarray, np.ndarray]:
    """All 2^P coalitions (2^P, P), number k with the bits of k as members, and their values."""
    member = (np.arange(2**players)[:, None] >> np.arange(players) & 1).astype(bool)
    return member, np.asarray(value(jnp.asarray(member)), np.float64)


def exact_values(value: Value, players: int) -> np.ndarray:
    """Shapley values (P,), float64: phi_i = sum over S without i of |S|! (P - |S| - 1)! / P! times
    v(S + i) - v(S). On the host, from all 2^P coalitions: for a dozen players at most.
    """
    member, values = _all_coalitions(value, players)
    found = np.zeros(players)
    for one in range(players):
        for number in np.flatnonzero(~member[:, one]):
            size = member[number].sum()
            weight = factorial(size) * factorial(players - size - 1) / factorial(players)
            found[one] += weight * (values[number | 1 << one] - values[number])
    return found


def exact_interactions(value: Value, players: int) -> np.ndarray:
    """The Shapley interaction index (P, P), float64, 0 on the diagonal: the pair taken as one
    player is worth so much more than its two members, each in the game without the other.

    I_ij = sum over S without i and j of |S|! (P - |S| - 2)! / (P - 1)! times
    v(S + i + j) - v(S + i) - v(S + j) + v(S). From all 2^P coalitions, as `exact_values`.
    """
    member, values = _all_coalitions(value, players)
    found = np.zeros((players, players))
    for one in range(players):
        for other in range(one):
            for number in np.flatnonzero(~member[:, one] & ~member[:, other]):
                size, first, second = member[number].sum(), 1 << one, 1 << other
                weight = factorial(size) * factorial(players - size - 2) / factorial(players - 1)
                both = values[number | first | second] + values[number]
                alone = values[number | first] + values[number | second]
                found[one, other] += weight * (both - alone)
    return found + found.T


def draw_coalitions(key: Array, rows: int, samples: int, players: int) -> Array:
    """Coalitions (B, A, P), bool: of each, the chance t of a player to be in it is drawn first.

    With t uniform, whatever is left without i and j has the weights of the index: the integral of
    t^s (1 - t)^(P - 2 - s) is s! (P - 2 - s)! / (P - 1)!. So one draw serves all pairs. t is drawn
    from each of A equal parts of 0..1, which changes no mean. Further players change no earlier
    one's draw.
    """
    chance_key, player_key = jax.random.split(key)
    part_BxA = jnp.arange(samples) + jax.random.uniform(chance_key, (rows, samples))
    drawn_BxAxP = jax.random.uniform(player_key, (players, samples, rows)).T
    return drawn_BxAxP < (part_BxA / samples)[..., None]


def sampled_interactions(
    value: Value, coalition_AxP: Array, first_M: Array, second_M: Array
) -> Array:
    """The mean over coalitions of v(S + i + j) - v(S + i) - v(S + j) + v(S), (M,).

    first, second: the players i and j of each pair; S is the coalition without them. Unbiased with
    those of `draw_coalitions`.
    """
    player_P = jnp.arange(coalition_AxP.shape[-1])
    first_MxP, second_MxP = (one_M[:, None] == player_P for one_M in (first_M, second_M))

    def gain(coalition_P: Array) -> Array:
        rest_MxP = coalition_P & ~first_MxP & ~second_MxP
        both = value(rest_MxP | first_MxP | second_MxP) + value(rest_MxP)
        return both - value(rest_MxP | first_MxP) - value(rest_MxP | second_MxP)

    return jax.lax.map(gain, coalition_AxP).mean(0)


# -------------------------------------------------------------------------------------- the game


def masked_mean(x_BxM: Array, valid_BxM: Array) -> Array:
    """The mean over the last axis of what is valid; 0 where nothing is."""
    return jnp.where(valid_BxM, x_BxM, 0.0).sum(-1) / jnp.maximum(valid_BxM.sum(-1), 1)


def coalition_similarity(cosines_NxL: Array, member_MxP: Array) -> Array:
    """v(S), (M,): how alike picture and caption are with the tokens of S alone.

    The mean over firsts in S of their best second in S, and the mean over seconds in S of their
    best first in S; half of each. 0 where S lacks one side. Tokens outside count as padding.
    """
    firsts = cosines_NxL.shape[0]
    first_MxN, second_MxL = member_MxP[..., :firsts], member_MxP[..., firsts:]
    both_MxNxL = first_MxN[..., :, None] & second_MxL[..., None, :]
    kept_MxNxL = jnp.where(both_MxNxL, cosines_NxL, -jnp.inf)

    best = masked_mean(kept_MxNxL.max(-1), first_MxN) + masked_mean(kept_MxNxL.max(-2), second_MxL)
    return jnp.where(first_MxN.any(-1) & second_MxL.any(-1), best / 2, 0.0)


def pair_interactions(
    cosines_BxNxL: Array, plays_BxNxL: Array, coalition_BxAxP: Array, pair_BxM: Array
) -> Array:
    """`sampled_interactions` of pairs i * L + j in the game `coalition_similarity`, (B, M).

    What plays in no pair is in no coalition, so padding is worth nothing.
    """
    player_BxP = jnp.concatenate([plays_BxNxL.any(2), plays_BxNxL.any(1)], 1)
    firsts, seconds = cosines_BxNxL.shape[1:]

    def one(cosines_NxL: Array, coalition_AxP: Array, pair_M: Array) -> Array:
        game = partial(coalition_similarity, cosines_NxL)
        pair = pair_M // seconds, firsts + pair_M % seconds
        return sampled_interactions(game, coalition_AxP, *pair)

    return jax.vmap(one)(cosines_BxNxL, coalition_BxAxP & player_BxP[:, None], pair_BxM)


class Chosen(NamedTuple):
    """Some pairs of each row."""

    pair_BxM: Array  # i * L + j
    valid_BxM: Array  # False where the row has fewer pairs that play

    def at(self, x_BxNxL: Array) -> Array:
        """The entries (B, M) of the pairs."""
        return jnp.take_along_axis(x_BxNxL.reshape(len(x_BxNxL), -1), self.pair_BxM, axis=1)


def pairs_to_sample(
    uncertainty_BxNxL: Array, plays_BxNxL: Array, random_BxNxL: Array, pairs: int, explored: int
) -> Chosen:
    """Which M = `pairs` pairs of each row are sampled; a fixed count, as shapes must be.

    `explored` of them are those of the largest random number, so that what the network is sure of
    is looked at too; the others are those of the largest uncertainty.
    """

    def among(x_BxNxL: Array) -> Array:
        return jnp.where(plays_BxNxL, x_BxNxL, -jnp.inf).reshape(len(x_BxNxL), -1)

    random_BxM, random_pair_BxM = jax.lax.top_k(among(random_BxNxL), explored)
    drop = jax.vmap(lambda x_Q, pair_M: x_Q.at[pair_M].set(-jnp.inf))
    rest_BxQ = drop(among(uncertainty_BxNxL), random_pair_BxM)
    rest_BxM, rest_pair_BxM = jax.lax.top_k(rest_BxQ, pairs - explored)
    found_BxM = jnp.concatenate([random_BxM, rest_BxM], 1)
    return Chosen(jnp.concatenate([random_pair_BxM, rest_pair_BxM], 1), found_BxM > -jnp.inf)


def replaced(x_BxNxL: Array, chosen: Chosen, new_BxM: Array) -> Array:
    """x with new entries at the chosen pairs that are valid."""
    size = x_BxNxL[0].size
    pair_BxM = jnp.where(chosen.valid_BxM, chosen.pair_BxM, size)  # out of range: dropped
    put = jax.vmap(lambda x_Q, pair_M, new_M: x_Q.at[pair_M].set(new_M, mode="drop"))
    return put(x_BxNxL.reshape(-1, size), pair_BxM, new_BxM).reshape(x_BxNxL.shape)


def standardised(x_BxM: Array, valid_BxM: Array) -> Array:
    """Each row less its mean, over its deviation, both of the valid entries; (B, M) float32.

    A row whose entries are all equal becomes 0.
    """
    away_BxM = x_BxM.astype(jnp.float32) - masked_mean(x_BxM, valid_BxM)[:, None]
    deviation_B = jnp.sqrt(jnp.maximum(masked_mean(away_BxM**2, valid_BxM), 1e-12))
    return away_BxM / deviation_B[:, None]


# -------------------------------------------------------------------------------------- the losses


def alignment_labels(interactions_BxNxL: Array, plays_BxNxL: Array, temp: float) -> Array:
    """Soft labels (2, B, N, L) without gradient: softmax(interactions / temp) over the seconds of
    each first, and over the firsts of each second. 0 where a pair does not play.
    """
    logits_BxNxL = jnp.where(plays_BxNxL, interactions_BxNxL / temp, _OUT)
    both = [jnp.where(plays_BxNxL, jax.nn.softmax(logits_BxNxL, axis), 0.0) for axis in (2, 1)]
    return jax.lax.stop_gradient(jnp.stack(both))


def alignment_loss(
    cosines_BxNxL: Array, labels_2xBxNxL: Array, plays_BxNxL: Array, temp: Array
) -> Array:
    """Cross-entropy of the labels and softmax(cosines / temp), (B,), the mean of both directions.

    Of each direction the mean over the tokens that play; 0 for a row where none does.
    """
    logits_BxNxL = jnp.where(plays_BxNxL, cosines_BxNxL.astype(jnp.float32) / temp, _OUT)
    total_B = jnp.zeros(len(cosines_BxNxL))
    for label_BxNxL, axis in zip(labels_2xBxNxL, (2, 1), strict=True):
        entropy_BxR = -(label_BxNxL * jax.nn.log_softmax(logits_BxNxL, axis)).sum(axis)
        rows_B = plays_BxNxL.any(axis).sum(-1)
        total_B += entropy_BxR.sum(-1) / jnp.maximum(rows_B, 1)
    return total_B / 2


def interaction_loss(
    predicted_BxM: Array, log_variance_BxM: Array, sampled_BxM: Array, valid_BxM: Array
) -> Array:
    """(I - I^)^2 / (2 s^2) + log s^2 / 2, (B,), float32: the mean over the valid pairs of a row.

    Minus the logarithm of a normal density, up to a constant: s is the uncertainty of I^.
    """
    error_BxM = jnp.square(sampled_BxM - predicted_BxM) * jnp.exp(-log_variance_BxM)
    return masked_mean(error_BxM + log_variance_BxM, valid_BxM) / 2
