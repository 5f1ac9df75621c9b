"""Terms that a config may add to any method built on ALBEF.

--config.method.terms="(('focal_itc', 0.5), ('intra_text', 0.1))"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.losses.focal import focal_cross_entropy
from nas_jax.losses.itc import positives
from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.methods.terms import Seen, Term, Terms
from nas_jax.methods.text_negatives import NEGATIVE_TERMS
from nas_jax.typing import Array, Metrics
from nas_jax.utils.errors import ConfigError

FOCUS = 2.0  # gamma of the focal loss; the paper's value is not known


class FocalItc(Term):
    """ITC with a focal loss (SoftMask++, Park and Han, CVPR 2023): easy pairs weigh less.

    Keys, soft targets and temperature are those of ITC; with gamma 0 it is ITC.
    """

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean of both directions."""
        queue, temp = seen.state["queue"], seen.params["temp"]
        student, taught = seen.student, seen.taught
        by_id = self.method.config.itc.positives_by_id
        own_BxB, queued_BxQ = positives(seen.batch["image_id_B"], queue.image_id_Q, by_id)
        if queued_BxQ is None:
            queued_BxQ = jnp.zeros((len(own_BxB), len(queue.image_id_Q)))
        truth_BxP = jnp.concatenate([own_BxB, queued_BxQ], axis=1)

        def direction(rows_BxE: Array, taught_BxE: Array, keys_PxE: Array) -> Array:
            logits_BxP = rows_BxE @ keys_PxE.T / temp
            soft_BxP = jax.nn.softmax(taught_BxE @ keys_PxE.T / jax.lax.stop_gradient(temp))
            target_BxP = seen.alpha * soft_BxP + (1 - seen.alpha) * truth_BxP
            return focal_cross_entropy(logits_BxP, target_BxP, FOCUS).mean()

        texts_PxE = jnp.concatenate([taught.text_BxE, queue.text_QxE])
        images_PxE = jnp.concatenate([taught.image_BxE, queue.image_QxE])
        i2t = direction(student.image_BxE, taught.image_BxE, texts_PxE)
        t2i = direction(student.text_BxE, taught.text_BxE, images_PxE)
        return (i2t + t2i) / 2, {}


class IntraText(Term):
    """Captions against the teacher's features of the same captions (TCL, Yang et al., CVPR 2022).

    The two views of a caption differ by dropout and by the teacher's weights. Keys are those of
    the batch.
    """

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """Mean cross-entropy of the own caption."""
        logits_BxB = seen.student.text_BxE @ seen.taught.text_BxE.T / seen.params["temp"]
        own_B = jnp.arange(len(logits_BxB))
        return soft_cross_entropy((logits_BxB,), None, (own_B,), jnp.float32(0)).mean(), {}


TERMS: dict[str, Callable[[Any], Term]] = {
    "focal_itc": FocalItc,
    "intra_text": IntraText,
    **NEGATIVE_TERMS,
}
"""Name -> term."""


def check_terms(terms: tuple[tuple[str, float], ...]) -> None:
    """Raises ConfigError on a name that TERMS does not have."""
    for name, _ in terms:
        if name not in TERMS:
            raise ConfigError(f"terms with {name!r}", f"names of {', '.join(TERMS)}", "mend it")


def added_terms(method: Any) -> Terms:
    """The terms that the method's config adds, with their weights."""
    return {name: (weight, TERMS[name](method)) for name, weight in method.config.terms}
