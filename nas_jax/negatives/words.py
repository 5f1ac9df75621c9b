"""Negative captions from the words of a caption and a table of related words, without a model.

Words that change places: NegCLIP (Yuksekgonul et al., ICLR 2023). A word replaced by a sister term,
that is by a word of the same kind that means something else: HSR, the generator of RVLM (AAAI
2023). Both change words of one piece only, so the length of a caption never gives it away.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas_jax.losses.mlm import scatter_positions
from nas_jax.negatives.nta import choose_pairs, exchange, one_piece_words
from nas_jax.negatives.records import TextNegatives
from nas_jax.typing import Array, Vocabulary

# Letter S below: the sister terms of a word; -1 where it has fewer.


def swapped(
    key: Array,
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    vocabulary: Vocabulary,
    sisters_VxS: Array | None = None,
) -> TextNegatives:
    """Two content words that differ, drawn uniformly among all such pairs, change places.

    sisters: only words that are sister terms of each other change places; None: all may. A caption
    without such a pair stays as it is and is not valid.
    """
    pair_key, choice_key = jax.random.split(key)
    allowed_BxLxL = None
    if sisters_VxS is not None:
        of_BxLxS = sisters_VxS[token_ids_BxL]
        allowed_BxLxL = (of_BxLxS[:, :, None] == token_ids_BxL[:, None, :, None]).any(-1)
        allowed_BxLxL &= allowed_BxLxL.mT
    texts = token_ids_BxL, token_mask_BxL
    pairs = choose_pairs(pair_key, *texts, vocabulary, 1, allowed_BxLxL)
    new_ids_BxL, changed_B = exchange(choice_key, token_ids_BxL, pairs, pairs.chosen_BxP)
    return TextNegatives(
        new_ids_BxL[:, None], token_mask_BxL[:, None], changed_B[:, None], ("swap",)
    )


def with_sister(
    key: Array,
    token_ids_BxL: Array,
    token_mask_BxL: Array,
    vocabulary: Vocabulary,
    sisters_VxS: Array,
) -> TextNegatives:
    """One word, drawn uniformly among those with sister terms, is replaced by one of these.

    A caption without such a word stays as it is and is not valid.
    """
    place_key, sister_key = jax.random.split(key)
    known_BxLxS = sisters_VxS[token_ids_BxL] >= 0
    able_BxL = one_piece_words(token_ids_BxL, token_mask_BxL, vocabulary) & known_BxLxS.any(-1)
    place_Bx1 = jax.random.categorical(place_key, jnp.where(able_BxL, 0.0, -jnp.inf))[:, None]
    word_B = jnp.take_along_axis(token_ids_BxL, place_Bx1, axis=1)[:, 0]
    sisters_BxS = sisters_VxS[word_B]
    log_weight_BxS = jnp.where(sisters_BxS >= 0, 0.0, -jnp.inf)
    choice_Bx1 = jax.random.categorical(sister_key, log_weight_BxS)[:, None]
    new_Bx1 = jnp.take_along_axis(sisters_BxS, choice_Bx1, axis=1).astype(token_ids_BxL.dtype)
    changed_Bx1 = able_BxL.any(-1, keepdims=True)
    new_ids_BxL = scatter_positions(token_ids_BxL, place_Bx1, new_Bx1, changed_Bx1)
    return TextNegatives(new_ids_BxL[:, None], token_mask_BxL[:, None], changed_Bx1, ("sister",))
