"""ViLTA: Enhancing Vision-Language Pre-training through Textual Augmentation (Wang et al., ICCV
2023).

The right word of a masked place is one of several that fit, so MLM also learns the distribution of
a language model that reads the caption without the picture (cross-distillation). The language
encoder that is trained makes captions that are slightly wrong from the context, as further
negatives of the matching loss.

Only the abstract was at hand. What is uncertain, and the reading taken: the soft labels weigh alpha
as those of ALBEF's teacher, whom they replace in MLM; the language model is the text layers with a
head of their own (`generator_head`), of the momentum teacher or, `language_model="frozen"`, as the
run started with them; the words of negative captions are chosen and drawn as in NTA.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nas_jax.losses.mlm import MaskedText
from nas_jax.methods.added import added_terms
from nas_jax.methods.encoding import encode_captions
from nas_jax.methods.method import MethodState, Saved
from nas_jax.methods.refill import Generator, word_table
from nas_jax.methods.refilled import Refilled, RefilledConfig
from nas_jax.methods.terms import Itc, Mlm, Seen, Terms
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import NasNetwork
from nas_jax.parallel.mesh import gather_positions
from nas_jax.typing import Array, Params, PyTree
from nas_jax.utils.errors import ConfigError

LANGUAGE_MODELS = ("teacher", "frozen")
LANGUAGE_GROUPS = ("text_encoder", "text_proj", "generator_head")


@dataclass(frozen=True)
class ViltaConfig(RefilledConfig):
    """ALBEF's switches, and those of the language model."""

    name: str = "vilta"
    # Whose soft labels MLM learns: the moving average of the run's own text layers ("teacher"), or
    # these as the run started ("frozen"), which asks for a start from a trained language model
    language_model: str = "teacher"

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        if self.language_model not in LANGUAGE_MODELS:
            raise ConfigError(
                f"language_model={self.language_model!r}",
                f"one of {', '.join(LANGUAGE_MODELS)}",
                "teacher is the default",
            )


class ViltaNetwork(NasNetwork):
    """ALBEF's network with the head of a generator."""

    # of the teacher only ITC's features and the language model are asked
    teacher_groups = ("image_encoder", "image_proj", "text_encoder", "text_proj", "generator_head")


@dataclass(frozen=True)
class Vilta(Refilled):
    """State: ALBEF's, without a fusion encoder of the teacher, and `language_model` if frozen."""

    Config = ViltaConfig
    Network = ViltaNetwork

    @classmethod
    def make_network(cls, config: ViltaConfig, model: ModelConfig) -> ViltaNetwork:
        """ALBEF's network with the head of a generator."""
        return ViltaNetwork(model, dictionary=False, generator=True)

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """As ALBEF's, with the language model as it starts."""
        params, state = super().init(rng)
        return params, state | self.language_model(params)

    def language_model(self, params: Params) -> MethodState:
        """The entry of the state that stays as the run started; none for the teacher."""
        if self.config.language_model == "teacher":
            return {}
        kept = {name: params[name] for name in LANGUAGE_GROUPS}
        return {"language_model": jax.tree.map(jnp.copy, kept)}

    def start_from(self, params: Params, state: MethodState, saved: Saved) -> MethodState:
        """As ALBEF's; a frozen language model is that of the weights."""
        return super().start_from(params, state, saved) | self.language_model(params)

    def terms(self, stage: Hashable) -> Terms:
        """L = L_itc + L_itm + L_mlm + L_generator."""
        own = {
            "itc": (1.0, Itc(self)),
            "itm": (1.0, self.matching(stage)),
            "mlm": (1.0, CrossMlm(self)),
            "generator": (self.config.nta.generator_weight, Generator(self)),
        }
        return own | added_terms(self)

    def generator_params(self, seen: Seen) -> Params:
        """The current language encoder makes the negative captions, and no teacher."""
        return seen.params


class CrossMlm(Mlm):
    """MLM with the soft labels of a language model that sees no picture (cross-distillation)."""

    @property
    def teacher_reads(self) -> bool:
        """Unless the language model is frozen, it is the teacher's."""
        return self.method.config.language_model == "teacher"

    def language(self, seen: Seen) -> Params:
        """The language model's parameters."""
        return jax.lax.stop_gradient(seen.state.get("language_model", seen.teacher))

    def label_inputs(self, seen: Seen, masked: MaskedText) -> dict[str, PyTree]:
        """The language model's text tokens of the masked captions, without dropout if frozen."""
        if "language_model" not in seen.state:
            return {"tokens_BxLxD": seen.taught.others["masked"]}
        captions = masked.token_ids_BxL[:, None], seen.batch["token_mask_BxL"][:, None]
        tokens_Bx1xLxD, _ = encode_captions(self.method, self.language(seen), *captions)
        return {"tokens_BxLxD": jax.lax.stop_gradient(tokens_Bx1xLxD[:, 0])}

    def taught_logits(self, seen: Seen, inputs: dict[str, PyTree]) -> Array:
        """The language model's logits (B, M, V) at the masked positions."""
        language, masked = self.language(seen), inputs["masked"]
        picked_BxMxD = gather_positions(inputs["tokens_BxLxD"], masked.positions_BxM)
        return self.method.apply(language).generator_logits(picked_BxMxD, word_table(language))
