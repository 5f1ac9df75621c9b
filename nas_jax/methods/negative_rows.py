"""Negatives as rows of the fusion encoder."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nas_jax.methods.encoding import encode_captions
from nas_jax.methods.terms import ReadNegatives, Seen
from nas_jax.models.rows import Rows
from nas_jax.negatives.records import ImageNegatives, TextNegatives


def picture_rows(seen: Seen, negatives: ImageNegatives, detached: bool) -> dict[str, Rows]:
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


def read_captions(method: Any, seen: Seen, negatives: TextNegatives, who: str) -> ReadNegatives:
    """Negative captions, read by the student's text encoder in a call of their own: where they give
    no gradient, rows beside them would make one be computed. who: names the dropout.
    """
    size = len(negatives.ids_BxCxL)
    seeds = [seen.draw.seeds(f"{who}/{kind}", size) for kind in negatives.kinds]
    captions = negatives.ids_BxCxL, negatives.mask_BxCxL, jnp.stack(seeds, 1)
    return ReadNegatives(negatives, *encode_captions(method, seen.params, *captions))


def caption_rows(read: ReadNegatives, detached: bool, prefix: str = "") -> dict[str, Rows]:
    """Negative captions beside the true pictures, one kind of rows for each."""
    negatives = read.texts
    return {
        prefix + kind: Rows(
            read.tokens_BxCxLxD[:, number],
            negatives.mask_BxCxL[:, number],
            token_ids_BxL=negatives.ids_BxCxL[:, number],
            valid_B=negatives.valid_BxC[:, number],
            label=0,
            detached=detached,
        )
        for number, kind in enumerate(negatives.kinds)
    }
