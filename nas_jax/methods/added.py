"""Terms that a config may add to any method built on ALBEF.

--config.method.terms="(('focal_itc', 0.5), ('intra_text', 0.1))"
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.data.readers import SecondView
from nas_jax.losses.focal import focal_cross_entropy
from nas_jax.losses.intra import own_cross_entropy
from nas_jax.losses.itc import positives, without
from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.methods.masked_codes import MaskedCodes
from nas_jax.methods.same import ignored_of_all
from nas_jax.methods.terms import Seen, Term, Terms
from nas_jax.methods.text_negatives import NEGATIVE_TERMS
from nas_jax.typing import Array, Metrics, Params
from nas_jax.utils.errors import ConfigError

FOCUS = 2.0  # gamma of the focal loss; the paper's value is not known


class FocalItc(Term):
    """ITC with a focal loss (SoftMask++, Park and Han, CVPR 2023): easy pairs weigh less.

    Keys, soft targets, what is ignored and the temperature are ITC's; with gamma 0 it is ITC.
    """

    def gamma(self) -> float:
        """The exponent of the weight (1 - p) of a key."""
        return FOCUS

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean of both directions."""
        queue, temp = seen.state["queue"], seen.params["temp"]
        student, taught = seen.student, seen.taught
        by_id = self.method.config.itc.positives_by_id
        truth = positives(seen.batch["image_id_B"], queue.image_id_Q, by_id)
        ignored_BxP = ignored_of_all(self.method, seen.batch, queue.image_id_Q, truth)
        own_BxB, queued_BxQ = truth
        if queued_BxQ is None:
            queued_BxQ = jnp.zeros((len(own_BxB), len(queue.image_id_Q)))
        truth_BxP = jnp.concatenate([own_BxB, queued_BxQ], axis=1)

        def direction(rows_BxE: Array, taught_BxE: Array, keys_PxE: Array) -> Array:
            logits_BxP = without(rows_BxE @ keys_PxE.T / temp, ignored_BxP)
            taught_BxP = taught_BxE @ keys_PxE.T / jax.lax.stop_gradient(temp)
            soft_BxP = jax.nn.softmax(without(taught_BxP, ignored_BxP))
            target_BxP = seen.alpha * soft_BxP + (1 - seen.alpha) * truth_BxP
            return focal_cross_entropy(logits_BxP, target_BxP, self.gamma()).mean()

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


class IntraModal(Term):
    """Pictures against pictures and captions against captions (IMC of TCL).

    The keys are the teacher's, of the batch and of the queue. The teacher reads a second view of
    each picture; the two views of a caption differ by dropout and by the teacher's weights.
    """

    wants = (SecondView(),)

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """The mean of the two."""
        queue, temp, student, taught = (
            seen.state["queue"], seen.params["temp"], seen.student, seen.taught,
        )  # fmt: skip
        image_B = own_cross_entropy(student.image_BxE, taught.image_BxE, queue.image_QxE, temp)
        text_B = own_cross_entropy(student.text_BxE, taught.text_BxE, queue.text_QxE, temp)
        image, text = image_B.mean(), text_B.mean()
        return (image + text) / 2, {"intra/image": image, "intra/text": text}


TERMS: dict[str, type[Term]] = {
    "focal_itc": FocalItc,
    "intra_text": IntraText,
    "intra_modal": IntraModal,
    "masked_codes": MaskedCodes,
    **NEGATIVE_TERMS,
}
"""Name -> term."""


def check_terms(config: Any) -> None:
    """Raises ConfigError on a name in config.terms that TERMS does not have, or that is there
    twice, and on a term that the method cannot have.
    """
    names = [name for name, _ in config.terms]
    for name in names:
        if name not in TERMS:
            raise ConfigError(f"terms with {name!r}", f"names of {', '.join(TERMS)}", "mend it")
        if names.count(name) > 1:
            raise ConfigError(f"terms with {name!r} twice", "each term once", "add the weights")
        TERMS[name].check(config)


def added_terms(method: Any) -> Terms:
    """The terms that the method's config adds, with their weights."""
    return {name: (weight, TERMS[name](method)) for name, weight in method.config.terms}


def added_params(method: Any, key: Array) -> Params:
    """Fresh parameters of the added terms, under the names of the terms."""
    params: Params = {}
    for name, (_, term) in added_terms(method).items():
        found = term.init(jax.random.fold_in(key, zlib.crc32(name.encode())))
        params |= {name: found} if found else {}
    return params


def added_wants(terms: tuple[tuple[str, float], ...]) -> tuple[Any, ...]:
    """The fields of a batch that the added terms read, each once."""
    wanted = [field for name, _ in terms for field in TERMS[name].wants]
    return tuple(dict.fromkeys(wanted))
