"""What the methods of tasks share: a network that reads pictures and texts together and has no
pretraining heads, and the momentum teacher that distils into it (ALBEF code, models/model_ve.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.kernels.last_layer import Readout
from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method, MethodConfig, MethodState, Saved
from nas_jax.models.bert import FusionEncoder, TextEncoder, kernel_init
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import normalise_image
from nas_jax.models.vit import VisionTransformer
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array, Batch, Metrics, Params
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class FineTuneConfig(MethodConfig):
    """What the config of every task has; defaults are ALBEF's."""

    name: str = ""
    momentum: float = 0.995  # of the teacher
    alpha: float = 0.4  # weight of the teacher's soft targets; 0 = no teacher
    alpha_ramp_epochs: float = 0.0  # epochs over which alpha rises from 0

    def validate(self) -> None:
        """Raises ConfigError on values that are no shares."""
        if not 0 <= self.momentum <= 1 or not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"momentum={self.momentum}, alpha={self.alpha}",
                "shares of 1",
                "0.995 and 0.4 are ALBEF's",
            )


class JointNetwork(nn.Module):
    """ALBEF's three encoders under the names they have in pretraining, without its heads."""

    config: ModelConfig

    def setup(self):
        self.image_encoder = VisionTransformer(self.config)
        self.text_encoder = TextEncoder(self.config)
        self.fusion_encoder = FusionEncoder(self.config)

    def encode_image(self, image_BxHxWx3: Array) -> Array:
        """uint8 picture -> image tokens (B, T, D)."""
        return self.image_encoder(normalise_image(image_BxHxWx3))

    def first_token(
        self, text: tuple[Array, Array], image_tokens_BxTxD: Array, seeds: Mapping[str, Array]
    ) -> Array:
        """The fused [CLS] (B, D) of a text beside each picture.

        text: token ids and mask (B, L). seeds: of the dropout, "text" and "fusion", (B,); {} for
        evaluation.
        """
        ids_BxL, mask_BxL = text
        tokens_BxLxD = self.text_encoder(ids_BxL, mask_BxL, seeds.get("text"))
        first = Readout((0,), jnp.zeros((len(ids_BxL), 1, 1), jnp.int32))
        image = (ImageTokens((image_tokens_BxTxD,)),)
        inputs = tokens_BxLxD, mask_BxL, image, seeds.get("fusion"), [first]
        (fused_Bx1x1xD,) = self.fusion_encoder(*inputs)
        return fused_Bx1x1xD[:, 0, 0]


class AnswerHead(nn.Module):
    """Two layers on the fused [CLS], as ALBEF's `cls_head`."""

    config: ModelConfig
    answers: int

    @nn.compact
    def __call__(self, fused_BxD: Array) -> Array:
        """Logits (B, A), float32."""
        init = kernel_init(self.config)
        hidden_BxD = nn.Dense(self.config.dim, kernel_init=init, name="hidden")(
            fused_BxD.astype(jnp.float32)
        )
        return nn.Dense(self.answers, kernel_init=init, name="out")(nn.relu(hidden_BxD))


@dataclass(frozen=True)
class FineTuned(Method):
    """A method of a task. State: `teacher`, a moving average of all parameters, if alpha is not 0.

    A subclass has `loss_of`. Dropout seeds come under the names in `seed_names`.
    """

    feature_scores = ()
    default_scores = ()
    # What the first dimension of the dropout seeds stands for.
    seed_names: ClassVar[tuple[str, ...]] = ("text", "fusion")

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32); the teacher starts as the student."""
        params, _ = super().init(rng)
        return params, self.start_from(params, {}, None)

    def start_from(self, params: Params, state: MethodState, saved: Saved | None) -> MethodState:
        """The teacher equals the parameters, wherever these are from."""
        return {"teacher": jax.tree.map(jnp.copy, params)} if self.config.alpha else {}

    def loss(
        self,
        params: Params,
        state: MethodState,
        batch: Batch,
        draw: Draws,
        step: Array,
        stage: Hashable,
    ) -> tuple[Array, tuple[MethodState, Metrics]]:
        """(1 - alpha) * the loss of the right answers + alpha * that of the teacher's."""
        alpha, teacher = self.soft_weight(step), None
        if self.config.alpha:
            teacher = jax.lax.stop_gradient(self.moved_teacher(state["teacher"], params))
            state = state | {"teacher": teacher}
        loss, metrics = self.loss_of(params, teacher, batch, draw, alpha)
        return loss, (state, {"loss": loss} | metrics)

    def loss_of(
        self, params: Params, teacher: Params | None, batch: Batch, draw: Draws, alpha: Array
    ) -> tuple[Array, Metrics]:
        """The scalar loss, and metrics. teacher: None where alpha is always 0."""
        raise NotImplementedError

    def soft_weight(self, step: Array) -> Array:
        """alpha of the step."""
        ramp_steps = self.config.alpha_ramp_epochs * self.setting.steps_per_epoch
        share = jnp.minimum(1.0, step / ramp_steps) if ramp_steps else 1.0
        return jnp.float32(self.config.alpha) * share

    def moved_teacher(self, teacher: Params, params: Params) -> Params:
        """theta_m <- m theta_m + (1 - m) theta, before the step uses the teacher."""
        momentum = self.config.momentum
        return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, teacher, params)

    def seeds(self, draw: Draws, who: str, rows: int) -> dict[str, Array]:
        """Dropout seeds (B,) of the student or the teacher."""
        return {name: draw.seeds(f"{who}/{name}", rows) for name in self.seed_names}


@dataclass(frozen=True)
class Classified(FineTuned):
    """A task whose answer is one of few classes. The network's call gives their logits, (B, A).

    `inputs` names the arrays of a batch that the network is called with, in order.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image_BxHxWx3", "token_ids_BxL", "token_mask_BxL")

    def logits(self, params: Params, batch: Batch, seeds: Mapping[str, Array]) -> Array:
        """(B, A), in pieces."""
        rows = {"seeds": dict(seeds), "inputs": [batch[name] for name in self.inputs]}

        def piece(rows: dict) -> Array:
            return pin_rows(self.apply(params)(*rows["inputs"], rows["seeds"]))

        return in_pieces(piece, self.setting.pieces, rows)

    def loss_of(
        self, params: Params, teacher: Params | None, batch: Batch, draw: Draws, alpha: Array
    ) -> tuple[Array, Metrics]:
        """(1 - alpha) * CE(label) + alpha * CE(softmax of the teacher), the mean over the batch."""
        label_B, soft = batch["label_B"], None
        size = len(label_B)
        logits_BxA = self.logits(params, batch, self.seeds(draw, "student", size))
        if teacher is not None:
            taught_BxA = self.logits(teacher, batch, self.seeds(draw, "teacher", size))
            soft = (jax.lax.stop_gradient(taught_BxA),)
        loss = soft_cross_entropy((logits_BxA,), soft, (label_B,), alpha).mean()
        return loss, {"accuracy": (logits_BxA.argmax(-1) == label_B).mean(dtype=jnp.float32)}
