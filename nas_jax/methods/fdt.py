"""FDT: Finite Discrete Tokens (Chen et al., CVPR 2023, arXiv 2303.14865): two towers.

Patches and words are of different granularity, so their mean features are hard to align. Both
modalities are written in one finite set of learned tokens instead: a picture or caption is the
sparse mix of the tokens that some part of it speaks of, and the mixes are contrasted.

The formulae are those of the authors' code: queries from two small layers for each modality, their
products with the tokens, the maximum over patches or words, sparsemax, the weighted sum of the
tokens. Differences: the text encoder is BERT's, read at all its words; padding can never be the
maximum (there it counts with 0, so a caption's feature would depend on how far it is padded).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.losses.infonce import infonce
from nas_jax.losses.sparsemax import sparsemax
from nas_jax.methods.dual import BlockConfig, DualEncoder
from nas_jax.methods.method import MethodState
from nas_jax.models.bert import TextEncoder, kernel_init
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import normalise_image, unit
from nas_jax.models.vit import VisionTransformer
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class FdtConfig(BlockConfig):
    """The shared tokens and the two temperatures; defaults are the authors' code's."""

    name: str = "fdt"
    tokens: int = 16384  # K, shared by both modalities
    # What the products are divided by before sparsemax: attention_temp * attention_decay^epoch, but
    # never less than attention_temp_min. The higher, the more tokens are mixed.
    attention_temp: float = 1000.0
    attention_decay: float = 1.0  # 1: it stays; the other setting in the authors' code is 0.3
    attention_temp_min: float = 0.01
    temp_min: float = math.exp(-6)
    temp_max: float = math.exp(-3)

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range."""
        super().validate()
        if self.tokens < 2:
            raise ConfigError(f"tokens={self.tokens}", "at least 2", "16384 is the authors'")
        if not 0 < self.attention_temp_min <= self.attention_temp or not (
            0 < self.attention_decay <= 1
        ):
            raise ConfigError(
                f"attention_temp={self.attention_temp}, its minimum {self.attention_temp_min}, "
                f"attention_decay={self.attention_decay}",
                "0 < minimum <= attention_temp and a decay in (0, 1]",
                "1000, 0.01 and 1 are the authors'",
            )


class QueryMap(nn.Module):
    """Patches or words to queries: LayerNorm, linear, GELU, LayerNorm, linear."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BxLxD: Array) -> Array:
        """(B, L, D) -> (B, L, E)."""
        config, dtype, init = self.config, jnp.dtype(self.config.dtype), kernel_init(self.config)
        x = nn.LayerNorm(dtype=dtype, name="norm_in")(tokens_BxLxD)
        x = nn.gelu(nn.Dense(config.dim, dtype=dtype, kernel_init=init, name="linear_in")(x))
        x = nn.LayerNorm(dtype=dtype, name="norm_out")(x)
        return nn.Dense(config.embed_dim, dtype=dtype, kernel_init=init, name="linear_out")(x)


class FdtNetwork(nn.Module):
    """Two towers whose features are mixes of the same K tokens."""

    config: ModelConfig
    tokens: int = 16384

    def setup(self):
        self.image_encoder = VisionTransformer(self.config)
        self.text_encoder = TextEncoder(self.config)
        self.image_query, self.text_query = QueryMap(self.config), QueryMap(self.config)
        shape = self.tokens, self.config.embed_dim
        self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)

    def mix(self, query_BxLxE: Array, real_BxL: Array, attention_temp: Array | float) -> Array:
        """The weight (B, K) of each token: sparsemax of the largest product with a real query.

        The products are divided by sqrt(E) and by the attention's temperature.
        """
        scale = attention_temp * math.sqrt(query_BxLxE.shape[-1])
        query_BxLxE = query_BxLxE.astype(jnp.float32)
        products_BxLxK = jnp.einsum("ble,ke->blk", query_BxLxE, self.codebook)
        largest_BxK = jnp.where(real_BxL[..., None], products_BxLxK, -jnp.inf).max(axis=1)
        return sparsemax(pin_rows(largest_BxK / scale))

    def encode_image(
        self, image_BxHxWx3: Array, attention_temp: Array | float
    ) -> tuple[Array, Array, Array]:
        """Image tokens (B, T, D), unit features (B, E), the weights of the tokens (B, K)."""
        tokens_BxTxD = self.image_encoder(normalise_image(image_BxHxWx3))
        query_BxNxE = self.image_query(tokens_BxTxD[:, 1:])
        weight_BxK = self.mix(query_BxNxE, jnp.ones(query_BxNxE.shape[:2], bool), attention_temp)
        return tokens_BxTxD, unit(weight_BxK @ self.codebook), weight_BxK

    def encode_text(
        self,
        token_ids_BxL: Array,
        token_mask_BxL: Array,
        attention_temp: Array | float,
        seeds_B: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Text tokens (B, L, D), unit features (B, E), the weights of the tokens (B, K)."""
        tokens_BxLxD = self.text_encoder(token_ids_BxL, token_mask_BxL, seeds_B)
        weight_BxK = self.mix(self.text_query(tokens_BxLxD), token_mask_BxL, attention_temp)
        return tokens_BxLxD, unit(weight_BxK @ self.codebook), weight_BxK

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array):
        """Uses every parameter once, so that `init` makes them all."""
        self.encode_image(image_BxHxWx3, 1.0)
        self.encode_text(token_ids_BxL, token_mask_BxL, 1.0)


@dataclass(frozen=True)
class Fdt(DualEncoder):
    """One more parameter, `attention_temp`, which follows its schedule and not the gradient."""

    Config = FdtConfig
    Network = FdtNetwork
    sharding = ((r"codebook$", ("fsdp",)),)

    @classmethod
    def make_network(cls, config: FdtConfig, model: ModelConfig) -> FdtNetwork:
        """Two towers with `config.tokens` shared tokens."""
        return FdtNetwork(model, config.tokens)

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32)."""
        params, state = super().init(rng)
        return self.scheduled(params, 0), state

    def scheduled(self, params: Params, step: Array | int) -> Params:
        """The temperature of the attention, which changes between epochs."""
        config, epoch = self.config, jnp.floor(self.setting.epoch(step))
        temp = config.attention_temp * jnp.float32(config.attention_decay) ** epoch
        return {**params, "attention_temp": jnp.maximum(temp, config.attention_temp_min)}

    def read(self, params: Params, rows: dict[str, Any]) -> PyTree:
        """Unit features of picture and caption (B, E) each, and how many tokens are in each mix."""
        net, temp = self.apply(params), jax.lax.stop_gradient(params["attention_temp"])
        _, image_BxE, image_BxK = net.encode_image(rows["image_BxHxWx3"], temp)
        texts = rows["token_ids_BxL"], rows["token_mask_BxL"]
        _, text_BxE, text_BxK = net.encode_text(*texts, temp, rows["seeds_B"])
        mixed = {"image": (image_BxK > 0).sum(-1), "text": (text_BxK > 0).sum(-1)}
        return (image_BxE, text_BxE), mixed

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """InfoNCE of the mixes, both directions."""
        (image_BxE, text_BxE), mixed = read
        metrics = {f"fdt/{name}_tokens": count_B.mean() for name, count_B in mixed.items()}
        metrics["fdt/attention_temp"] = params["attention_temp"]
        return infonce(image_BxE, text_BxE, temp, block=self.config.block), metrics

    def encode_image(
        self, params: Params, state: MethodState, image_BxHxWx3: Array, tokens: str = "method"
    ) -> tuple[Array, Array]:
        """See `Method`."""
        return self.apply(params).encode_image(image_BxHxWx3, params["attention_temp"])[:2]

    def encode_text(
        self, params: Params, token_ids_BxL: Array, token_mask_BxL: Array
    ) -> tuple[Array, Array]:
        """See `Method`."""
        inputs = token_ids_BxL, token_mask_BxL, params["attention_temp"]
        return self.apply(params).encode_text(*inputs)[:2]
