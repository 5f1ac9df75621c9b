"""Terms that read pairs of the batch that differ in little, for methods that want `SourceId`.

Rows 2k and 2k + 1 are a pair where they share a source (`data.siblings=2`), and not the wording of
their captions.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from nas_jax.losses.false_negatives import same_words
from nas_jax.losses.minimal_pairs import partners, symmetric_margin
from nas_jax.methods.terms import Seen, Term
from nas_jax.models.rows import Rows
from nas_jax.parallel.mesh import take_rows
from nas_jax.typing import Array, Batch, Metrics


def valid_pairs(batch: Batch) -> Array:
    """True (B,) where the partner shares the source, has another picture and another caption."""
    other_B = partners(len(batch["image_id_B"]))
    ids_BxL, mask_BxL = batch["token_ids_BxL"], batch["token_mask_BxL"]
    source_id_B, image_id_B = batch["source_id_B"], batch["image_id_B"]
    same_BxB = same_words(ids_BxL, mask_BxL, ids_BxL, mask_BxL)
    return (
        (source_id_B == source_id_B[other_B])
        & (image_id_B != image_id_B[other_B])
        & ~same_BxB[jnp.arange(len(other_B)), other_B]
    )


class PairTerm(Term):
    """A symmetric margin; the method's config says which in `pairs`."""

    def margin(self, seen: Seen, own_B: Array, cross_B: Array, kind: str) -> tuple[Array, Metrics]:
        """The loss of the scores, and metrics that are called by a kind."""
        config, valid_B = self.method.config.pairs, valid_pairs(seen.batch)
        margin = {"itc": config.itc_margin, "itm": config.itm_margin}[kind]
        loss, share = symmetric_margin(own_B, cross_B, valid_B, margin, config.form)
        return loss, {f"pairs/{kind}": share, "pairs/valid_share": valid_B.mean()}


class PairItc(PairTerm):
    """The margin on cosines of the student's features."""

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean over valid rows."""
        image_BxE, text_BxE = seen.student.image_BxE, seen.student.text_BxE
        other_BxE = take_rows(image_BxE, partners(len(image_BxE)))
        own_B, cross_B = (jnp.sum(x * text_BxE, -1) for x in (image_BxE, other_BxE))
        return self.margin(seen, own_B, cross_B, "itc")


class PairItm(PairTerm):
    """The margin on the matching logit: that of "match" minus that of "no match"."""

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """Each text beside its own picture and beside that of its partner."""
        text = seen.student.text_tokens_BxLxD, seen.batch["token_mask_BxL"]
        other_B = partners(len(seen.batch["image_id_B"]))
        return {"pair_own": Rows(*text), "pair_other": Rows(*text, other_B=other_B)}

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """The mean over valid rows."""

        def score(kind: str) -> Array:
            logits_Bx2 = self.method.match_logits(seen.params, fused[kind][:, 0])
            return logits_Bx2[:, 1] - logits_Bx2[:, 0]

        return self.margin(seen, score("pair_own"), score("pair_other"), "itm")
