"""RVLM: Replacement as a Self-supervision for Fine-grained Vision-language Pre-training (Zhang et
al., AAAI 2023, arXiv 2303.05313).

A caption in which one word has given way to another of its kind says at the level of a word what a
picture shows. HSR makes such captions from WordNet, and each of ALBEF's three tasks gets them: RITC
has them as keys, RITM as pairs that do not match, and RLM restores the words beside the picture.

No code is public and only the abstract was at hand. What is uncertain, and the reading taken: RITC
has the own rewritten caption as one further key, and stands beside ALBEF's ITC, which hard
negatives are drawn by; RLM asks for the true word at the rewritten place and at `rlm_words` - 1
others of the caption, without a mask; MLM stays. A word of the caption is drawn among those that
have sister terms (`negatives/words.py`), whatever its part of speech.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp

from nas_jax.losses.mlm import MaskedText, mlm_mean, mlm_rows
from nas_jax.losses.restored_words import words_to_restore
from nas_jax.methods.added import added_terms
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.config import NegativeTextConfig
from nas_jax.methods.terms import Itc, Mlm, Seen, Terms
from nas_jax.methods.text_negatives import FineItm, NegativeItc, NegativeTerm
from nas_jax.models.rows import Rows
from nas_jax.parallel.chunks import in_pieces
from nas_jax.typing import Array, Metrics
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class RvlmConfig(AlbefConfig):
    """ALBEF's switches, and those of the rewritten captions."""

    name: str = "rvlm"
    negatives: NegativeTextConfig = field(
        default_factory=lambda: NegativeTextConfig(("sister",), sisters="wordnet")
    )
    ritc_weight: float = 1.0
    rlm_weight: float = 1.0
    rlm_words: int = 4  # words of a rewritten caption that RLM asks for, the rewritten one first

    negative_terms: ClassVar[tuple[str, ...]] = ("negative_itc", "negative_itm")

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        if self.negatives.generators[0] == "given":
            raise ConfigError(
                "negatives.generators with 'given' first",
                "a generator that keeps the length of the caption, whose words RLM restores",
                "put 'sister' or 'swap' before it",
            )
        if min(self.ritc_weight, self.rlm_weight) < 0 or self.rlm_words < 1:
            raise ConfigError(
                f"ritc_weight={self.ritc_weight}, rlm_weight={self.rlm_weight}, "
                f"rlm_words={self.rlm_words}",
                "weights of 0 or more and at least one word",
                "1.0, 1.0 and 4 are the defaults",
            )


@dataclass(frozen=True)
class Rvlm(Albef):
    """State: ALBEF's."""

    Config = RvlmConfig

    def terms(self, stage: Hashable) -> Terms:
        """L = L_itc + L_ritc + L_ritm + L_mlm + L_rlm."""
        config = self.config
        own = {
            "itc": (1.0, Itc(self)),
            "ritc": (config.ritc_weight, Ritc(self)),
            "itm": (1.0, FineItm(self)),
            "mlm": (1.0, Mlm(self)),
            "rlm": (config.rlm_weight, Rlm(self)),
        }
        return own | added_terms(self)


class Ritc(NegativeItc):
    """ITC of the batch in which a picture has its own rewritten caption as a further key."""

    def usable(self, seen: Seen) -> Array:
        """True (B, B, C) on the diagonal, where there is a rewritten caption."""
        usable_BxBxC = super().usable(seen)
        return usable_BxBxC & jnp.eye(len(usable_BxBxC), dtype=bool)[..., None]


class Rlm(NegativeTerm):
    """RLM: the true words of a rewritten caption, from what is written and the picture."""

    def restored(self, seen: Seen) -> MaskedText:
        """The first rewritten caption, and which of its words are asked for."""
        texts = seen.batch["token_ids_BxL"], seen.batch["token_mask_BxL"]
        made, vocabulary = seen.negatives.texts, self.method.setting.vocabulary
        inputs = *texts, made.ids_BxCxL[:, 0], vocabulary, self.method.config.rlm_words
        return seen.draw("rlm", lambda key: words_to_restore(key, *inputs))

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """The rewritten captions beside their pictures, read where words are asked for."""
        tokens_BxLxD = seen.negatives.tokens_BxCxLxD[:, 0]
        mask_BxL, restored = seen.batch["token_mask_BxL"], self.restored(seen)
        return {"rlm": Rows(tokens_BxLxD, mask_BxL, positions_BxM=restored.positions_BxM)}

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """Mean cross-entropy over the words that are asked for."""
        restored = self.restored(seen)

        def piece(inputs: tuple[Array, MaskedText]) -> Array:
            fused_BxMxD, restored = inputs
            logits_BxMxV = self.method.apply(seen.params).mlm_logits(fused_BxMxD)
            return mlm_rows(logits_BxMxV, None, restored, jnp.float32(0))

        losses_B = in_pieces(piece, self.method.setting.pieces, (fused["rlm"], restored))
        return mlm_mean(losses_B, restored), {}
