"""VL-Match: Enhancing Vision-Language Pretraining with Token-Level and Instance-Level Matching (Bi
et al., ICCV 2023).

Matching is asked of single tokens too: the text encoder, as a generator, fills masked words of a
caption, and the fusion encoder, as a discriminator, says beside the picture which words are not the
caption's (VL-RTD). Captions that a language model has changed in little are further negatives of
the matching loss (fine-grained ITM).

No code is public. What is uncertain, and the reading taken: VL-RTD stands in place of MLM in the
fusion encoder, and MLM trains the generator from text alone; the loss of the detector is the usual
one of ELECTRA with the weight `rtd_weight`; negative captions are refilled by the same generator,
where the paper has a language model of its own (NegGen).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.losses.mlm import word_places
from nas_jax.losses.replaced_tokens import detection_loss, replaced_text, sample_words
from nas_jax.methods.added import added_terms
from nas_jax.methods.draws import Draws
from nas_jax.methods.encoding import encode_captions
from nas_jax.methods.refill import Generator, word_table
from nas_jax.methods.refilled import Refilled, RefilledConfig
from nas_jax.methods.terms import Itc, Mlm, Seen, Term, Terms
from nas_jax.models.bert import kernel_init
from nas_jax.models.rows import Rows
from nas_jax.models.towers import AlbefNetwork
from nas_jax.negatives.nta import GeneratorConfig
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import gather_positions
from nas_jax.typing import Array, Batch, Metrics
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class VlMatchConfig(RefilledConfig):
    """ALBEF's switches, and those of generator and detector."""

    name: str = "vlmatch"
    # the generator's loss trains the text encoder
    nta: GeneratorConfig = field(default_factory=lambda: GeneratorConfig(generator_gradient=True))
    rtd_weight: float = 1.0  # of the detector's loss

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        if self.rtd_weight < 0:
            raise ConfigError(f"rtd_weight={self.rtd_weight}", "0 or more", "1.0 is the default")


class VlMatchNetwork(AlbefNetwork):
    """ALBEF's network; BERT's head is the generator's, and a head finds replaced tokens."""

    # of the teacher only ITC's features and the generator are asked
    teacher_groups = ("image_encoder", "image_proj", "text_encoder", "text_proj", "mlm_head")

    def setup(self):
        super().setup()
        self.rtd_head = nn.Dense(1, kernel_init=kernel_init(self.config))

    def generator_logits(self, tokens_BxMxD: Array, word_table_VxD: Array) -> Array:
        """Logits (B, M, V) of the generator, which reads text tokens and no picture."""
        return self.mlm_head(tokens_BxMxD, word_table_VxD)

    def rtd_logits(self, fused_BxLxD: Array) -> Array:
        """Logits (B, L), float32, of "this token was replaced"."""
        return self.rtd_head(fused_BxLxD.astype(jnp.float32))[..., 0]

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        image_BxTxD, text_BxLxD = super().__call__(image_BxHxWx3, token_ids_BxL, token_mask_BxL)
        self.rtd_logits(text_BxLxD)
        return image_BxTxD, text_BxLxD


@dataclass(frozen=True)
class VlMatch(Refilled):
    """State: ALBEF's, without a fusion encoder of the teacher."""

    Config = VlMatchConfig
    Network = VlMatchNetwork

    def terms(self, stage: Hashable) -> Terms:
        """L = L_itc + L_fgitm + L_rtd + L_generator."""
        config = self.config
        own = {
            "itc": (1.0, Itc(self)),
            "itm": (1.0, self.matching(stage)),
            "rtd": (config.rtd_weight, Rtd(self)),
            "generator": (config.nta.generator_weight, Generator(self)),
        }
        return own | added_terms(self)


class Rtd(Term):
    """VL-RTD: which words of a caption, read beside its picture, are the generator's?"""

    teacher_reads = False

    def texts(self, batch: Batch, draw: Draws) -> dict[str, Array]:
        """The masked captions, which the generator reads."""
        return Mlm(self.method).texts(batch, draw)

    def replaced(self, seen: Seen) -> Array:
        """The captions (B, L) with the generator's words in place of the masked ones."""
        method, ids_BxL = self.method, seen.batch["token_ids_BxL"]
        masked = Mlm(method).masked(seen.batch, seen.draw)
        seeds_B = seen.draw.seeds("rtd/words", len(ids_BxL))

        def piece(rows: tuple) -> Array:
            masked, tokens_BxLxD, seeds_B = rows
            picked_BxMxD = gather_positions(tokens_BxLxD, masked.positions_BxM)
            net = method.apply(seen.params)
            logits_BxMxV = net.generator_logits(picked_BxMxD, word_table(seen.params))
            return sample_words(seeds_B, logits_BxMxV, method.setting.vocabulary)

        rows = masked, seen.student.others["masked"], seeds_B
        words_BxM = in_pieces(piece, method.setting.pieces, rows)
        return replaced_text(ids_BxL, masked, words_BxM)

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """The captions with the generator's words beside their pictures, read at all tokens."""
        ids_BxL, mask_BxL = self.replaced(seen), seen.batch["token_mask_BxL"]
        seeds_Bx1 = seen.draw.seeds("student/rtd", len(ids_BxL))[:, None]
        captions = ids_BxL[:, None], mask_BxL[:, None], seeds_Bx1
        tokens_Bx1xLxD, _ = encode_captions(self.method, seen.params, *captions)
        everywhere_BxL = jnp.broadcast_to(jnp.arange(ids_BxL.shape[1]), ids_BxL.shape)
        row = Rows(
            tokens_Bx1xLxD[:, 0], mask_BxL, token_ids_BxL=ids_BxL, positions_BxM=everywhere_BxL
        )
        return {"rtd": row}

    def value(
        self, seen: Seen, rows: Mapping[str, Rows], fused: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        """Mean over all tokens but the special ones."""
        vocabulary, ids_BxL = self.method.setting.vocabulary, seen.batch["token_ids_BxL"]
        logits_BxL = self.method.apply(seen.params).rtd_logits(fused["rtd"])
        replaced_BxL = jnp.asarray(rows["rtd"].token_ids_BxL) != ids_BxL
        real_BxL = word_places(ids_BxL, seen.batch["token_mask_BxL"], vocabulary)
        loss, shares = detection_loss(logits_BxL, replaced_BxL, real_BxL)
        return loss, {f"rtd/{name}": share for name, share in shares.items()}
