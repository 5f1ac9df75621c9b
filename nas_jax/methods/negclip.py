"""NegCLIP: When and Why Vision-Language Models Behave like Bags-of-Words (Yuksekgonul et al., ICLR
2023).

Models that are trained to tell a caption from random others need no word order, so each caption
gets a near copy with words in each other's place, which stands among the keys of all pictures. The
loss is CLIP's symmetric cross-entropy with those further columns; negative captions are never
queries (the authors' code, `losses/text_negatives.py`). A second picture, a near neighbour of each,
is in the authors' batches too: that is a matter of the data and not of this file.

There is no fusion encoder, teacher or queue: two towers and a temperature.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp

from nas_jax.methods.config import NegativeTextConfig, SameConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.dual import DualConfig, DualEncoder
from nas_jax.methods.encoding import encode_pairs
from nas_jax.methods.method import MethodState
from nas_jax.methods.terms import Seen, Terms, add_up
from nas_jax.methods.text_negatives import NegativeItc, wanted_fields, with_negatives
from nas_jax.typing import Array, Batch, Metrics, Params


@dataclass(frozen=True)
class NegClipConfig(DualConfig):
    """The temperature, pairs that are no negatives, and the negative captions."""

    name: str = "negclip"
    itc: SameConfig = field(default_factory=SameConfig)
    negatives: NegativeTextConfig = field(default_factory=NegativeTextConfig)

    negative_terms: ClassVar[tuple[str, ...]] = ("negative_itc",)

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        self.negatives.check_model(self.has_generator)
        self.negatives.check_terms(self.negative_terms)


@dataclass(frozen=True)
class NegClip(DualEncoder):
    """No state."""

    Config = NegClipConfig

    @property
    def wants(self) -> tuple[Any, ...]:
        """The negative captions of the data, where they are asked for."""
        return wanted_fields(self, self.terms())

    def terms(self) -> Terms:
        """The terms of the loss, with their weights."""
        return {"negative_itc": (1.0, NegativeItc(self))}

    def loss(
        self,
        params: Params,
        state: MethodState,
        batch: Batch,
        draw: Draws,
        step: Array,
        stage: Hashable,
    ) -> tuple[Array, tuple[MethodState, Metrics]]:
        """The weighted sum of the terms."""
        terms = self.terms()
        seen = Seen(params, {}, state, batch, draw, jnp.float32(0), stage, step=step)
        seen = seen._replace(student=encode_pairs(self, params, batch, {}, draw, "student"))
        seen = with_negatives(self, terms, seen)
        loss, metrics = add_up(terms, seen, {name: {} for name in terms}, {})
        metrics |= {"itc/temp": self.temperature(params)}
        return loss, (self.next_state(state, seen), metrics)

    def next_state(self, state: MethodState, seen: Seen) -> MethodState:
        """The state after the step."""
        return state
