"""Negatives as rows of the fusion encoder."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nas_jax.methods.encoding import encode_captions
from nas_jax.methods.terms import Seen
from nas_jax.models.rows import Rows
from nas_jax.negatives.records import ImageNegatives, TextNegatives
from nas_jax.typing import Array


def image_negative_rows(seen: Seen, negatives: ImageNegatives, detached: bool) -> dict[str, Rows]:
    """The true captions beside negative pictures, one kind of rows for each."""
    text_BxLxD, mask_BxL = seen.student.text_tokens_BxLxD, seen.batch["token_mask_BxL"]
    return {
        kind: Rows(
            text_BxLxD,
            mask_BxL,
            tokens_BxTxD=negatives.tokens_BxCxTxD[:, number],
            replacement=negatives.replacements[number],
            valid_B=negatives.valid_BxC[:, number],
            label=0,
            detached=detached,
        )
        for number, kind in enumerate(negatives.kinds)
    }


def text_negative_rows(
    method: Any, seen: Seen, negatives: TextNegatives, detached: bool
) -> dict[str, Rows]:
    """Negative captions beside the true pictures, one kind of rows for each.

    The captions are read in a call of their own: where they give no gradient (`detached`), rows
    beside them would make one be computed.
    """
    size = len(negatives.ids_BxCxL)
    seeds = [seen.draw.seeds(f"student/{kind}", size) for kind in negatives.kinds]
    captions = negatives.ids_BxCxL, negatives.mask_BxCxL, jnp.stack(seeds, 1)
    tokens_BxCxLxD, _ = encode_captions(method, seen.params, *captions)
    return caption_rows(negatives, tokens_BxCxLxD, detached)


def caption_rows(
    negatives: TextNegatives, tokens_BxCxLxD: Array, detached: bool
) -> dict[str, Rows]:
    """Negative captions that are read already beside the true pictures, one kind for each."""
    return {
        kind: Rows(
            tokens_BxCxLxD[:, number],
            negatives.mask_BxCxL[:, number],
            token_ids_BxL=negatives.ids_BxCxL[:, number],
            valid_B=negatives.valid_BxC[:, number],
            label=0,
            detached=detached,
        )
        for number, kind in enumerate(negatives.kinds)
    }
