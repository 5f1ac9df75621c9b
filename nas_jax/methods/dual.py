"""What methods with two encoders and no fusion encoder share: both towers read the batch, and a
contrastive loss with a learned temperature compares all pairs of it.

There is no matching score: evaluations have feature scores alone. A paper says what it compares
(`read`) and how (`compare_batch`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.methods.config import TempConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method, MethodConfig, MethodState
from nas_jax.models.towers import TwoTowers
from nas_jax.parallel.chunks import in_pieces
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class DualConfig(TempConfig, MethodConfig):
    """The temperature."""


@dataclass(frozen=True)
class BlockConfig(DualConfig):
    """The temperature, and the memory of a loss that compares all pairs in blocks."""

    # keys of a block: the similarities of all pairs are computed so many columns at a time. It must
    # divide a larger batch; 0 = all at once. It changes no number
    block: int = 1024

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
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

    Config: ClassVar[type[DualConfig]] = DualConfig
    Network: ClassVar[type[nn.Module]] = TwoTowers

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32). The logarithm has one axis, as 1-D tensors have no decay."""
        params, state = super().init(rng)
        params["logit_scale"] = -jnp.log(jnp.full((1,), self.config.temp_init, jnp.float32))
        return params, state

    def constrain(self, params: Params) -> Params:
        """The temperature inside its bounds (CLIP: logits are scaled by 100 at most)."""
        config, most = self.config, -jnp.log(jnp.float32(self.config.temp_min))
        least = -jnp.log(jnp.float32(config.temp_max)) if config.temp_max else None
        return params | {"logit_scale": jnp.clip(params["logit_scale"], least, most)}

    def temperature(self, params: Params) -> Array:
        """The temperature of the contrast, a scalar."""
        return jnp.exp(-params["logit_scale"][0])

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
        rows = self.rows(batch, draw)
        read = in_pieces(lambda rows: self.read(params, rows), self.setting.pieces, rows)
        temp = self.temperature(params)
        value, metrics = self.compare_batch(params, read, temp, batch)
        return value, (state, {"loss": value, "itc/temp": temp} | metrics)

    def rows(self, batch: Batch, draw: Draws) -> dict[str, Any]:
        """What `read` is given, row by row: here the batch, and `seeds_B` of the dropout."""
        return {**batch, "seeds_B": draw.seeds("caption", len(batch["token_ids_BxL"]))}

    def read(self, params: Params, rows: dict[str, Any]) -> PyTree:
        """What the loss compares, row by row: here unit features (B, E) of picture and caption."""
        net = self.apply(params)
        _, image_BxE = net.encode_image(rows["image_BxHxWx3"])
        texts = rows["token_ids_BxL"], rows["token_mask_BxL"], rows["seeds_B"]
        return image_BxE, net.encode_text(*texts)[1]

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """The loss of all pairs, and metrics beside it. read: what `read` gave of the batch."""
        raise NotImplementedError
