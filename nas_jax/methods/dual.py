"""What methods with two encoders and no fusion encoder share: both towers read the batch, and a
contrastive loss with a learned temperature compares all pairs of it.

There is no matching score: evaluations have feature scores alone. A paper says what it compares
(`read`) and how (`compare_batch`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import jax.numpy as jnp

from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method, MethodConfig, MethodState
from nas_jax.models.towers import TwoTowers
from nas_jax.parallel.chunks import in_pieces
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class DualConfig(MethodConfig):
    """The temperature, and the memory of the loss."""

    temp_init: float = 0.07
    temp_min: float = 0.01  # the temperature is held above it before every step
    # keys of a block: the similarities of all pairs are computed so many columns at a time. It must
    # divide a larger batch; 0 = all at once. It changes no number
    block: int = 1024

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if not 0 < self.temp_min <= self.temp_init:
            raise ConfigError(
                f"temp_init={self.temp_init}, temp_min={self.temp_min}",
                "0 < temp_min <= temp_init",
                "0.07 and 0.01 are CLIP's",
            )
        if self.block < 0:
            raise ConfigError(f"block={self.block}", "0 or more", "0 computes all at once")

    def check_batch(self, batch_size: int) -> None:
        """Raises ConfigError unless blocks divide the batch."""
        if 0 < self.block < batch_size and batch_size % self.block:
            raise ConfigError(
                f"method.block={self.block}, data.batch_size={batch_size}",
                "a divisor of the batch size",
                "change one of the two; method.block=0 computes all at once",
            )


@dataclass(frozen=True)
class DualEncoder(Method):
    """No state; one parameter beside the towers, `logit_scale` = log(1 / temperature)."""

    Config = DualConfig
    Network = TwoTowers

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32). The logarithm has one axis, as 1-D tensors have no decay."""
        params, state = super().init(rng)
        params["logit_scale"] = -jnp.log(jnp.full((1,), self.config.temp_init, jnp.float32))
        return params, state

    def constrain(self, params: Params) -> Params:
        """The temperature above its bound (CLIP, section 2.5: logits are scaled by 100 at most)."""
        most = -jnp.log(jnp.float32(self.config.temp_min))
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], most)}

    def loss(
        self,
        params: Params,
        state: MethodState,
        batch: Batch,
        draw: Draws,
        step: Array,
        stage: Hashable,
    ) -> tuple[Array, tuple[MethodState, Metrics]]:
        """The contrastive loss of the whole batch, on whatever mesh and in whatever pieces."""
        rows = {name: batch[name] for name in ("image_BxHxWx3", "token_ids_BxL", "token_mask_BxL")}
        rows["seeds_B"] = draw.seeds("caption", len(rows["token_ids_BxL"]))
        read = in_pieces(lambda rows: self.read(params, rows), self.setting.pieces, rows)
        scale = jnp.exp(params["logit_scale"][0])
        value = self.compare_batch(params, read, scale)
        return value, (state, {"loss": value, "loss/itc": value, "itc/temp": 1 / scale})

    def read(self, params: Params, rows: Batch) -> PyTree:
        """What the loss compares, row by row: here unit features (B, E) of picture and caption.

        rows: of a batch, and `seeds_B` of the dropout.
        """
        net = self.apply(params)
        _, image_BxE = net.encode_image(rows["image_BxHxWx3"])
        texts = rows["token_ids_BxL"], rows["token_mask_BxL"], rows["seeds_B"]
        return image_BxE, net.encode_text(*texts)[1]

    def compare_batch(self, params: Params, read: PyTree, scale: Array) -> Array:
        """The loss of all pairs. read: what `read` gave; scale: 1 / temperature."""
        raise NotImplementedError
