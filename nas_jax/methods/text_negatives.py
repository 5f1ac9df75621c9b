"""Negative captions of a step, whoever makes them, and the terms that read them.

They are made and read once for all terms (`Seen.negatives`). Any method has these terms by config:

    --config.method.terms="(('negative_itc', 1.0), ('negative_itm', 0.5))"
    --config.method.negatives.generators="('swap', 'sister')"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from nas_jax.losses.itm import itm_loss
from nas_jax.losses.text_negatives import (
    intra_text_contrast,
    itc_with_negatives,
    own_similarities,
    rank_hinge,
)
from nas_jax.methods.given import caption_field, given_texts
from nas_jax.methods.negative_rows import caption_rows, read_captions
from nas_jax.methods.refill import exchanged_texts, refilled_texts
from nas_jax.methods.same import apart, same_pairs
from nas_jax.methods.terms import Itm, Seen, Term, Terms, matched
from nas_jax.methods.word_tables import sister_terms
from nas_jax.models.rows import Rows
from nas_jax.negatives.records import TextNegatives, joined, without_equals
from nas_jax.negatives.words import swapped, with_sister
from nas_jax.typing import Array, Metrics

# ---------------------------------------------------------------------------------- generators


def _sisters(method: Any) -> Array:
    return jnp.asarray(sister_terms(method.config.negatives.sisters, method.setting.vocabulary))


def _swap(method: Any, seen: Seen) -> TextNegatives:
    sisters_VxS = _sisters(method) if method.config.negatives.swap_sisters else None
    texts = seen.batch["token_ids_BxL"], seen.batch["token_mask_BxL"]
    inputs = *texts, method.setting.vocabulary, sisters_VxS
    return seen.draw("swap", lambda key: swapped(key, *inputs))


def _sister(method: Any, seen: Seen) -> TextNegatives:
    texts = seen.batch["token_ids_BxL"], seen.batch["token_mask_BxL"]
    inputs = *texts, method.setting.vocabulary, _sisters(method)
    return seen.draw("sister", lambda key: with_sister(key, *inputs))


def _refill(method: Any, seen: Seen) -> TextNegatives:
    return replace(refilled_texts(method, method.config.nta, seen), kinds=("refill",))


def _exchange(method: Any, seen: Seen) -> TextNegatives:
    return replace(exchanged_texts(method, method.config.nta, seen), kinds=("exchange",))


GENERATORS: dict[str, Callable[[Any, Seen], TextNegatives]] = {
    "swap": _swap,
    "sister": _sister,
    "refill": _refill,
    "exchange": _exchange,
    "given": given_texts,
}
"""Name in `method.negatives.generators` -> maker of negative captions."""


def make_negatives(method: Any, seen: Seen) -> TextNegatives:
    """The negative captions of all generators; those that equal the true caption are not valid."""
    made = joined([GENERATORS[name](method, seen) for name in method.config.negatives.generators])
    return without_equals(made, seen.batch["token_ids_BxL"], seen.batch["token_mask_BxL"])


def wanted_fields(method: Any, terms: Terms) -> tuple[Any, ...]:
    """The field of a batch with given captions, where a term reads them."""
    config = method.config.negatives
    if "given" not in config.generators or not _reading(terms):
        return ()
    return (caption_field(config),)


def _reading(terms: Terms) -> bool:
    return any(term.reads_negatives for _, term in terms.values())


def with_negatives(method: Any, terms: Terms, seen: Seen) -> Seen:
    """With the negative captions, made and read, where a term asks for them."""
    if not _reading(terms):
        return seen
    read = read_captions(method, seen, make_negatives(method, seen), "student/negative")
    return seen._replace(negatives=read)


# ---------------------------------------------------------------------------------- terms


def valid_shares(seen: Seen) -> Metrics:
    """negatives/KIND: the share of pairs that have one."""
    made = seen.negatives.texts
    return {
        f"negatives/{kind}": made.valid_BxC[:, number].mean()
        for number, kind in enumerate(made.kinds)
    }


class NegativeTerm(Term):
    """A term that reads negative captions."""

    reads_negatives = True

    def usable(self, seen: Seen) -> Array:
        """True (B, B, C) where negative caption c of pair j may be a negative of pair i."""
        return apart(self.method, seen.batch, seen.negatives.texts)

    def features(self, seen: Seen) -> tuple[Array, Array, Array, Array]:
        """Pictures (B, E), captions (B, E), negative captions (B, C, E), and the temperature."""
        student, temp = seen.student, self.method.temperature(seen.params)
        return student.image_BxE, student.text_BxE, seen.negatives.text_BxCxE, temp


class NegativeItc(NegativeTerm):
    """ITC of the batch with negative captions as further keys (NegCLIP; ITC-hn of CE-CLIP)."""

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean of both directions."""
        ignored_BxB = same_pairs(self.method, seen.batch)
        loss = itc_with_negatives(*self.features(seen), self.usable(seen), ignored_BxB)
        return loss, valid_shares(seen)


class NegativeRank(NegativeTerm):
    """Each negative caption ranks below the true one by a margin (CE-CLIP's rank loss)."""

    def margins(self, seen: Seen) -> Array:
        """The margin of each kind (C,): the config's, or what the method's state has adapted."""
        count = seen.negatives.texts.ids_BxCxL.shape[1]
        fixed_C = jnp.full((count,), self.method.config.negatives.rank_margin)
        return seen.state.get("rank_margin_C", fixed_C)

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean over all negative captions."""
        true_B, negative_BxC = own_similarities(*self.features(seen))
        made = seen.negatives.texts
        valid_BxC, margin_C = made.valid_BxC, self.margins(seen)
        above_BxC = (negative_BxC < true_B[:, None]) & valid_BxC
        right = above_BxC.sum() / jnp.maximum(valid_BxC.sum(), 1)
        loss = rank_hinge(true_B, negative_BxC, valid_BxC, margin_C)
        return loss, valid_shares(seen) | {"rank/right": right, "rank/margin": margin_C.mean()}


class NegativeIntraText(NegativeTerm):
    """Captions apart from all negative captions (CE-CLIP's intra-modal contrast)."""

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean over captions."""
        return intra_text_contrast(*self.features(seen), self.usable(seen)), valid_shares(seen)


class NegativeItm(NegativeTerm):
    """Negative captions in the matching loss, as a loss of their own beside ITM."""

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """The negative captions beside their pictures."""
        detached = self.method.config.negatives.stop_gradient
        return caption_rows(seen.negatives, detached, "negative_")

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """Mean cross-entropy over the valid rows."""
        groups, accuracies = matched(self.method, seen, rows, fused)
        return itm_loss(groups), accuracies | valid_shares(seen)


class FineItm(Itm):
    """ITM in whose mean negative captions stand beside the hard negatives of the batch."""

    reads_negatives = True

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """ALBEF's rows, and the negative captions beside their pictures."""
        return super().rows(seen) | NegativeItm(self.method).rows(seen)

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """As ITM's, with the shares of pairs that have negative captions."""
        loss, metrics = super().value(seen, rows, fused)
        return loss, metrics | valid_shares(seen)


NEGATIVE_TERMS: dict[str, type[Term]] = {
    "negative_itc": NegativeItc,
    "negative_rank": NegativeRank,
    "negative_intra_text": NegativeIntraText,
    "negative_itm": NegativeItm,
}
"""Rows of TERMS (methods/added.py) that read negative captions."""
