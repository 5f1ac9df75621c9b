"""Token-wise late interaction and its contrastive loss (FILIP, Yao et al. 2022).

Letters of this file: A tokens of a row, P tokens of a key, of which there are C at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.losses.blocks import streaming_log_sum
from nas_jax.parallel.mesh import gather_positions, pin_rows
from nas_jax.typing import Array


class Tokens(NamedTuple):
    """The tokens of some pictures, or of some texts."""

    unit_BxAxE: Array  # unit vectors, float32
    mask_BxA: Array  # bool; False on padding, which counts nowhere


def every_token(unit_BxAxE: Array) -> Tokens:
    """Tokens without padding."""
    return Tokens(unit_BxAxE, jnp.ones(unit_BxAxE.shape[:2], bool))


def late_similarity(rows: Tokens, keys: Tokens) -> Array:
    """s(row, key) = mean over the row's tokens of the largest dot product with the key's, (B, C).

    It is not symmetric.
    """
    dots_BxAxCxP = jnp.einsum("bae,cpe->bacp", rows.unit_BxAxE, keys.unit_BxAxE)
    largest_BxAxC = jnp.where(keys.mask_BxA, dots_BxAxCxP, -jnp.inf).max(-1)
    counted_BxA = rows.mask_BxA.astype(jnp.float32)
    sum_BxC = jnp.einsum("bac,ba->bc", largest_BxAxC, counted_BxA)
    return sum_BxC / counted_BxA.sum(-1, keepdims=True)


def own_similarity(rows: Tokens, keys: Tokens) -> Array:
    """s(row i, key i), (B,)."""
    return jax.vmap(lambda *pair: late_similarity(*_alone(pair))[0, 0])(rows, keys)


def _alone(pair: tuple[Tokens, Tokens]) -> tuple[Tokens, ...]:
    return tuple(Tokens(unit[None], mask[None]) for unit, mask in pair)


def keep_best(tokens: Tokens, partners: Tokens, share: float) -> Tokens:
    """The tokens that travel to other samples: of each sample its `share` of best ones, rounded up.

    The best have the largest dot product with a token of their own pair, so that the choice does
    not depend on the mesh; DeCLIP's code takes the sum over the tokens of the own pair. The choice
    has no gradient, the chosen tokens have one.
    """
    best_B = jnp.where(tokens.mask_BxA, _best_match(tokens, partners), -jnp.inf)
    places_BxP = jnp.argsort(-best_B, axis=1)[:, : math.ceil(share * tokens.mask_BxA.shape[1])]
    kept_B = jnp.ceil(share * tokens.mask_BxA.sum(1))
    mask_BxP = jnp.arange(places_BxP.shape[1]) < kept_B[:, None]
    return Tokens(pin_rows(gather_positions(tokens.unit_BxAxE, places_BxP)), mask_BxP)


def _best_match(tokens: Tokens, partners: Tokens) -> Array:
    """The largest dot product of each token with those of its own partner, (B, A)."""
    dots_BxAxP = jnp.einsum("bae,bpe->bap", tokens.unit_BxAxE, partners.unit_BxAxE)
    dots_BxAxP = jnp.where(partners.mask_BxA[:, None], dots_BxAxP, -jnp.inf)
    return jax.lax.stop_gradient(dots_BxAxP.max(-1))


def late_loss(
    image: Tokens, text: Tokens, temp: Array, share: float = 1.0, block: int = 0
) -> Array:
    """The mean of both directions' cross-entropy, each with its own similarity.

    share: of the tokens of a sample that others see; a row keeps all of its own. block: samples at
    a time, a divisor of B; 0 = all. Of the token-wise similarities (B, A, block, P) stand in
    memory.
    """

    def direction(rows: Tokens, keys: Tokens) -> Array:
        seen = keep_best(keys, rows, share)
        log_sum_B = streaming_log_sum(
            lambda keys: pin_rows(late_similarity(rows, keys)) / temp, len(rows[0]), seen, block
        )
        return (log_sum_B - own_similarity(rows, seen) / temp).mean()

    return (direction(image, text) + direction(text, image)) / 2
