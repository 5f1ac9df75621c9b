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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp

from nas_jax.data.phrases import NounPhrases
from nas_jax.losses.phrases import attended_cosines
from nas_jax.losses.sigmoid import cosines, sigmoid_contrast, sigmoid_loss
from nas_jax.methods.draws import Draws
from nas_jax.methods.dual import BlockConfig, DualEncoder
from nas_jax.methods.method import MethodState
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class C2lipConfig(BlockConfig):
    """The parts of the loss and the sigmoid's two numbers."""

    name: str = "c2lip"
    phrases: int = 4  # noun phrases of a caption, at most
    phrase_weight: float = 1.0  # of the contrast with whole pictures
    attention_weight: float = 0.01  # of the contrast with what the phrase attends to
    temp_init: float = 0.1
    temp_max: float = 1.0
    bias_init: float = -10.0  # added to the logits; learned
    block: int = 64  # of (B, block, patches) numbers at a time

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range."""
        super().validate()
        if self.phrases < 1 or min(self.phrase_weight, self.attention_weight) < 0:
            raise ConfigError(
                f"phrases={self.phrases}, phrase_weight={self.phrase_weight}, "
                f"attention_weight={self.attention_weight}",
                "at least one phrase and weights of 0 or more",
                "4, 1 and 0.01 are the defaults",
            )


@dataclass(frozen=True)
class C2lip(DualEncoder):
    """One more parameter, `logit_bias`."""

    Config = C2lipConfig

    @property
    def wants(self) -> tuple[Any, ...]:
        """The noun phrases of each caption."""
        return (NounPhrases(self.config.phrases),)

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32)."""
        params, state = super().init(rng)
        return params | {"logit_bias": jnp.full((1,), self.config.bias_init, jnp.float32)}, state

    def rows(self, batch: Batch, draw: Draws) -> dict[str, Any]:
        """The batch, and each caption with its phrases (B, 1 + C, L) with seeds of the dropout."""
        texts = {
            f"{name}_BxPxL": jnp.concatenate(
                [batch[f"token_{name}_BxL"][:, None], batch[f"phrase_{name}_BxCxL"]], 1
            )
            for name in ("ids", "mask")
        }
        size, count, _ = texts["ids_BxPxL"].shape
        seeds = [draw.seeds(f"text/{number}", size) for number in range(count)]
        return batch | texts | {"seeds_BxP": jnp.stack(seeds, 1)}

    def read(self, params: Params, rows: dict[str, Any]) -> PyTree:
        """Unit features of pictures and captions (B, E) and of phrases (B, C, E), which of these
        are real (B, C), and projected patches (B, N, E).
        """
        net = self.apply(params)
        tokens_BxTxD, image_BxE = net.encode_image(rows["image_BxHxWx3"])
        texts = (rows[name] for name in ("ids_BxPxL", "mask_BxPxL", "seeds_BxP"))
        _, text_RxE = net.encode_text(*(pin_rows(x.reshape(-1, *x.shape[2:])) for x in texts))
        text_BxPxE = pin_rows(text_RxE.reshape(len(image_BxE), -1, text_RxE.shape[-1]))
        patches_BxNxE = net.image_proj(tokens_BxTxD[:, 1:])
        phrases = text_BxPxE[:, 1:], rows["phrase_real_BxC"]
        return image_BxE, text_BxPxE[:, 0], *phrases, patches_BxNxE

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """L = L_caption + L_phrases + 0.01 L_attention: noun phrases (NPC) beside whole pictures,
        and beside what they attend to (XAC).
        """
        image_BxE, caption_BxE, phrase_BxCxE, real_BxC, patches_BxNxE = read
        config, bias = self.config, params["logit_bias"][0]

        def contrast(cosines_of: Callable[[Array], Array]) -> Array:
            def logits(text_JxCxE: Array) -> Array:
                return cosines_of(text_JxCxE) / temp + bias

            return sigmoid_contrast(logits, phrase_BxCxE, real_BxC, config.block)

        caption = sigmoid_loss(image_BxE, caption_BxE, temp, bias, config.block)
        phrases = contrast(partial(cosines, image_BxE))
        attention = contrast(partial(attended_cosines, patches_BxNxE))
        loss = caption + config.phrase_weight * phrases + config.attention_weight * attention
        return loss, {
            "loss/caption": caption,
            "loss/phrases": phrases,
            "loss/attention": attention,
            "itc/bias": bias,
            "phrases/real": real_BxC.sum(-1).mean(),
        }
