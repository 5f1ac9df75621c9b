"""Terms of a loss: each is a value that says what it reads and what it makes of that.

The method encodes the batch once, collects the rows that all terms want through the fusion encoder,
sends them through in one call, and adds up the values with their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.losses.itm import MatchRows, accuracy, itm_loss
from nas_jax.losses.mlm import MaskedText, mask_tokens, mlm_mean, mlm_rows
from nas_jax.methods.draws import Draws
from nas_jax.methods.same import same_pairs
from nas_jax.models.rows import Rows, fuse
from nas_jax.negatives.in_batch import allowed_negatives, draw_negative
from nas_jax.negatives.records import TextNegatives
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import take_rows
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError


class Encoded(NamedTuple):
    """Both towers, of the student or of the teacher, on one batch."""

    image_tokens_BxTxD: Array
    image_BxE: Array  # unit features, as the next
    text_tokens_BxLxD: Array
    text_BxE: Array
    others: dict[str, Array]  # text tokens (B, L, D) of the further captions that terms read


class Contrast(NamedTuple):
    """ITC of a batch, from which hard negatives are drawn too."""

    loss: Array
    i2t_BxB: Array  # similarities / temperature of each picture to the captions of the batch
    t2i_BxB: Array


class ReadNegatives(NamedTuple):
    """Negative captions as the student reads them."""

    texts: TextNegatives
    tokens_BxCxLxD: Array
    text_BxCxE: Array  # unit features


_LATER: Any = None  # in place of what `Seen` gets later


class Seen(NamedTuple):
    """What the terms of a step have before them.

    The method fills in what begins as _LATER before its terms read it. None of them reads what the
    method has not: a teacher, ITC, a fusion encoder, negative captions.
    """

    params: Params
    teacher: Params
    state: dict[str, PyTree]  # of the method, before the step
    batch: Batch
    draw: Draws
    alpha: Array  # weight of the teacher's soft targets
    stage: Any  # hashable; each method has its own kind
    student: Encoded = _LATER
    taught: Encoded = _LATER  # by the teacher; no gradient
    itc: Contrast = _LATER
    image_tokens_BxTxD: Array = _LATER  # as the matching loss reads them
    extra: Any = None  # what a method adds for its own terms
    step: Array | int = 0  # of the run
    negatives: ReadNegatives = _LATER  # where a term reads negative captions
    learning: bool = True  # False: an evaluation, which moves nothing


@dataclass(frozen=True)
class Term:
    """One objective. The defaults read nothing beyond what every method encodes."""

    method: Any  # the Method that the term is part of

    # Fields of a batch that it reads beyond those of every batch (data/readers.py).
    wants: ClassVar[tuple[Any, ...]] = ()
    # Whether it reads `Seen.negatives`, which are made once for all terms that do.
    reads_negatives: ClassVar[bool] = False

    @property
    def teacher_reads(self) -> bool:
        """Whether the teacher reads the captions of `texts` too."""
        return True

    @classmethod
    def check(cls, config: Any) -> None:
        """Raises ConfigError where the config of the method lacks what the term reads."""

    def init(self, key: Array) -> Params:
        """Parameters of the term's own (float32), which stand under its name; {}: none."""
        return {}

    def texts(self, batch: Batch, draw: Draws) -> dict[str, Array]:
        """Captions (B, L) besides the true one that the text encoder should read, by name."""
        return {}

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """The rows that the term wants through the fusion encoder, by kind."""
        return {}

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """The value, and metrics. rows: as above; fused: their tokens (B, M, D) by kind."""
        raise NotImplementedError


Terms = dict[str, tuple[float, Term]]
"""Name of the metric -> weight and term."""


def further_texts(
    terms: Terms, batch: Batch, draw: Draws
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The captions that student and teacher read beside the true one, by name."""
    student: dict[str, Array] = {}
    teacher: dict[str, Array] = {}
    for _, term in terms.values():
        found = term.texts(batch, draw)
        student |= found
        teacher |= found if term.teacher_reads else {}
    return student, teacher


def collect_rows(terms: Terms, seen: Seen) -> dict[str, dict[str, Rows]]:
    """The rows of each term. Raises ConfigError where two terms call a kind by the same name."""
    rows = {name: term.rows(seen) for name, (_, term) in terms.items()}
    kinds = [kind for of_term in rows.values() for kind in of_term]
    if len(set(kinds)) < len(kinds):
        twice = next(kind for kind in kinds if kinds.count(kind) > 1)
        raise ConfigError(
            f"two terms that make the rows {twice!r}",
            "each kind of rows once",
            "leave out of method.terms what the method has already",
        )
    return rows


def add_up(
    terms: Terms,
    seen: Seen,
    rows: Mapping[str, Mapping[str, Rows]],
    fused: Mapping[str, Array],
) -> tuple[Array, Metrics]:
    """The weighted sum of all terms, and their metrics: `loss`, `loss/NAME` and what they add."""
    total = jnp.float32(0)
    losses: Metrics = {}
    metrics: Metrics = {}
    for name, (weight, term) in terms.items():
        of_term = {kind: fused[kind] for kind in rows[name]}
        value, found = term.value(seen, rows[name], of_term)
        total = total + weight * value
        losses[f"loss/{name}"] = value
        metrics |= found
        for row in rows[name].values():
            metrics |= row.metrics
    return total, {"loss": total, **losses, **metrics}


# ------------------------------------------------------------ terms of ALBEF's family


class Itc(Term):
    """Image-text contrastive learning (section 3.2); `Albef.contrast` has computed it."""

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean of both directions."""
        return seen.itc.loss, {}


class Itm(Term):
    """Image-text matching (section 3.2): true pairs, and one hard negative each way."""

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """True pairs, texts beside hard pictures, hard texts beside pictures."""
        config, draw = self.method.config.itm, seen.draw
        shards, image_id_B = config.mining_shards, seen.batch["image_id_B"]
        allowed_BxB = allowed_negatives(image_id_B, config.exclude_same_id, shards)
        same_BxB = same_pairs(self.method, seen.batch)
        if same_BxB is not None:
            allowed_BxB &= ~same_BxB
        image_B = draw(
            "negative_image_B", lambda key: draw_negative(key, seen.itc.t2i_BxB, allowed_BxB)
        )
        text_B = draw(
            "negative_text_B", lambda key: draw_negative(key, seen.itc.i2t_BxB, allowed_BxB)
        )
        valid_B, mask_BxL = allowed_BxB.any(-1), seen.batch["token_mask_BxL"]
        text_BxLxD, ids_BxL = seen.student.text_tokens_BxLxD, seen.batch["token_ids_BxL"]
        hard_BxLxD, hard_BxL, hard_ids_BxL = (
            take_rows(x, text_B, shards) for x in (text_BxLxD, mask_BxL, ids_BxL)
        )
        return {
            "positive": Rows(text_BxLxD, mask_BxL, label=1),
            "hard_image": Rows(text_BxLxD, mask_BxL, other_B=image_B, valid_B=valid_B, label=0),
            "hard_text": Rows(
                hard_BxLxD, hard_BxL, token_ids_BxL=hard_ids_BxL, valid_B=valid_B, label=0
            ),
        }

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """Mean cross-entropy over all valid rows, and the accuracy on each kind."""
        groups, accuracies = matched(self.method, seen, rows, fused)
        return itm_loss(groups, self.weights()), accuracies

    def weights(self) -> dict[str, float]:
        """Kinds that do not enter the common mean, but are added with a weight of their own."""
        return {}


def matched(
    method: Any, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
) -> tuple[dict[str, MatchRows], Metrics]:
    """What the matching loss reads of the rows that have a label, and the accuracy on each kind."""
    groups = {
        kind: MatchRows(method.match_logits(seen.params, fused[kind][:, 0]), row.label, row.valid())
        for kind, row in rows.items()
        if row.label is not None
    }
    return groups, {f"itm_accuracy/{kind}": accuracy(group) for kind, group in groups.items()}


class Mlm(Term):
    """Masked language modelling (section 3.2), with the teacher's soft labels (eq. 7)."""

    def masked(self, batch: Batch, draw: Draws) -> MaskedText:
        """The captions with some tokens masked."""
        config, vocabulary = self.method.config.mlm, self.method.setting.vocabulary
        texts = batch["token_ids_BxL"], batch["token_mask_BxL"]

        def sample(key: Array) -> MaskedText:
            return mask_tokens(key, *texts, vocabulary, config.probability, config.max_masked)

        return draw("masked", sample)

    def texts(self, batch: Batch, draw: Draws) -> dict[str, Array]:
        """The masked captions."""
        return {"masked": self.masked(batch, draw).token_ids_BxL}

    def image_tokens(self, seen: Seen) -> Array | None:
        """Image tokens (B, T, D) beside the masked captions; None: those of the other rows."""
        return None

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """The masked captions beside their pictures."""
        row = Rows(
            seen.student.others["masked"],
            seen.batch["token_mask_BxL"],
            tokens_BxTxD=self.image_tokens(seen),
            positions_BxM=self.masked(seen.batch, seen.draw).positions_BxM,
        )
        return {"mlm": row}

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """(1 - alpha) CE(words) + alpha CE(teacher) over the masked positions (eq. 4 and 7)."""
        method, masked = self.method, self.masked(seen.batch, seen.draw)
        inputs = {"masked": masked, "fused_BxMxD": fused["mlm"]} | self.label_inputs(seen, masked)

        def piece(inputs: dict[str, PyTree]) -> Array:
            taught_BxMxV = self.taught_logits(seen, inputs)
            logits_BxMxV = method.apply(seen.params).mlm_logits(inputs["fused_BxMxD"])
            return mlm_rows(logits_BxMxV, taught_BxMxV, inputs["masked"], seen.alpha)

        return mlm_mean(in_pieces(piece, method.setting.pieces, inputs), masked), {}

    def label_inputs(self, seen: Seen, masked: MaskedText) -> dict[str, PyTree]:
        """What the soft labels are made from: arrays with rows first."""
        mask_BxL = seen.batch["token_mask_BxL"]
        return {
            "taught": Rows(
                seen.taught.others["masked"], mask_BxL, positions_BxM=masked.positions_BxM
            ),
            "image_BxTxD": seen.taught.image_tokens_BxTxD,
            "seeds": {"mlm": seen.draw.seeds("fusion/teacher/mlm", len(mask_BxL))},
        }

    def taught_logits(self, seen: Seen, inputs: dict[str, PyTree]) -> Array:
        """The teacher's logits (B, M, V) of a piece; inputs: `label_inputs`, `masked`."""
        method, teacher = self.method, jax.lax.stop_gradient(seen.teacher)
        image_BxTxD, taught = inputs["image_BxTxD"], {"mlm": inputs["taught"]}
        taught_BxMxD = fuse(method.network, teacher, image_BxTxD, taught, inputs["seeds"])["mlm"]
        return method.apply(teacher).mlm_logits(taught_BxMxD)
