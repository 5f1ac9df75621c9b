"""C2LIP: concept-centric contrast (CVPR 2026, arXiv 2603.25722): two towers.

Hard negatives are not needed for compositional understanding. Long captions can be told apart
without composing anything, so short noun phrases of them are contrasted too; and pooling a picture
into one feature destroys which attribute belongs to which thing, so each phrase also pools the
patches that it attends to, without a parameter.

The losses and their weights (1, 1, 0.01) are those of the authors' code (C2LIP_Loss), on SigLIP's
sigmoid. Differences: this project's towers from scratch in place of a trained SigLIP, and noun
phrases by a list of words (data/phrases.py) in place of a language model.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from nas_jax.data.phrases import NounPhrases
from nas_jax.losses.phrases import attended_cosines, cosines, sigmoid_contrast
from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method, MethodConfig, MethodState
from nas_jax.models.towers import TwoTowers
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array, Batch, Metrics, Params
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class C2lipConfig(MethodConfig):
    """The parts of the loss and the sigmoid's two numbers."""

    name: str = "c2lip"
    phrases: int = 4  # noun phrases of a caption, at most
    phrase_weight: float = 1.0  # of the contrast with whole pictures
    attention_weight: float = 0.01  # of the contrast with what the phrase attends to
    scale_init: float = 10.0  # of cosines; learned as its logarithm
    scale_max: float = 100.0
    bias_init: float = -10.0  # added to the logits; learned

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range."""
        if self.phrases < 1 or min(self.phrase_weight, self.attention_weight) < 0:
            raise ConfigError(
                f"phrases={self.phrases}, phrase_weight={self.phrase_weight}, "
                f"attention_weight={self.attention_weight}",
                "at least one phrase and weights of 0 or more",
                "4, 1 and 0.01 are the defaults",
            )
        if not 1 <= self.scale_init <= self.scale_max:
            raise ConfigError(
                f"scale_init={self.scale_init}, scale_max={self.scale_max}",
                "1 <= scale_init <= scale_max",
                "10 and 100 are the authors'",
            )


@dataclass(frozen=True)
class C2lip(Method):
    """No state. Parameters beside the towers': `sigmoid` with log_scale and bias."""

    Config = C2lipConfig
    Network = TwoTowers

    @property
    def wants(self) -> tuple[Any, ...]:
        """The noun phrases of each caption."""
        return (NounPhrases(self.config.phrases),)

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32)."""
        params, state = super().init(rng)
        log_scale = jnp.float32(math.log(self.config.scale_init))
        bias = jnp.float32(self.config.bias_init)
        return {**params, "sigmoid": {"log_scale": log_scale, "bias": bias}}, state

    def constrain(self, params: Params) -> Params:
        """The scale between 1 and its maximum."""
        sigmoid = dict(params["sigmoid"])
        most = math.log(self.config.scale_max)
        sigmoid["log_scale"] = jnp.clip(sigmoid["log_scale"], 0.0, most)
        return {**params, "sigmoid": sigmoid}

    def loss(
        self,
        params: Params,
        state: MethodState,
        batch: Batch,
        draw: Draws,
        step: Array,
        stage: Hashable,
    ) -> tuple[Array, tuple[MethodState, Metrics]]:
        """L = L_caption + L_phrases + 0.01 L_attention: noun phrases (NPC) beside whole pictures,
        and beside what they attend to (XAC).
        """
        config, sigmoid, real_BxC = self.config, params["sigmoid"], batch["phrase_real_BxC"]
        patches_BxNxE, image_BxE, text_BxPxE = self.read(params, batch, draw)
        scale, bias = jnp.exp(sigmoid["log_scale"]), sigmoid["bias"]
        caption_Bx1xE, phrase_BxCxE = text_BxPxE[:, :1], text_BxPxE[:, 1:]

        def contrast(cosines_BxBxC: Array, real_BxC: Array) -> Array:
            return sigmoid_contrast(scale * cosines_BxBxC + bias, real_BxC)

        all_Bx1 = jnp.ones((len(image_BxE), 1), bool)
        caption = contrast(cosines(image_BxE, caption_Bx1xE), all_Bx1)
        phrases = contrast(cosines(image_BxE, phrase_BxCxE), real_BxC)
        attention = contrast(attended_cosines(patches_BxNxE, phrase_BxCxE), real_BxC)
        loss = caption + config.phrase_weight * phrases + config.attention_weight * attention
        metrics = {
            "loss": loss,
            "loss/caption": caption,
            "loss/phrases": phrases,
            "loss/attention": attention,
            "sigmoid/scale": scale,
            "sigmoid/bias": bias,
            "phrases/real": real_BxC.sum(-1).mean(),
        }
        return loss, (state, metrics)

    def read(self, params: Params, batch: Batch, draw: Draws) -> tuple[Array, Array, Array]:
        """Projected patches (B, N, E), unit features of pictures (B, E), and of the caption and its
        phrases (B, 1 + C, E).
        """
        ids, mask = (
            jnp.concatenate([batch[f"token_{name}_BxL"][:, None], batch[f"phrase_{name}_BxCxL"]], 1)
            for name in ("ids", "mask")
        )
        (size, texts, _) = ids.shape
        seeds = jnp.stack([draw.seeds(f"text/{number}", size) for number in range(texts)], 1)
        rows = batch["image_BxHxWx3"], ids, mask, seeds

        def piece(rows: tuple) -> tuple[Array, Array, Array]:
            image_BxHxWx3, *read = rows
            net = self.apply(params)
            tokens_BxTxD, image_BxE = net.encode_image(image_BxHxWx3)
            flat = (pin_rows(x.reshape(-1, *x.shape[2:])) for x in read)
            text_RxE = net.encode_text(*flat)[1]
            text_BxPxE = pin_rows(text_RxE.reshape(-1, texts, text_RxE.shape[-1]))
            return net.image_proj(tokens_BxTxD[:, 1:]), image_BxE, text_BxPxE

        return in_pieces(piece, self.setting.pieces, rows)
