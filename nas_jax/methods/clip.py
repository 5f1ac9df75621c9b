"""CLIP (Radford et al., ICML 2021) and its nearest relatives, which differ in the loss alone.

CLIP: an encoder of pictures and one of texts that learn to tell which caption of a batch belongs to
which picture transfer to many tasks without their labels. ALIGN (Jia et al., ICML 2021): the same
works on a billion noisy pairs; here its loss has label smoothing. SigLIP (Zhai et al., ICCV 2023):
each pair is a yes-no question of its own, so no sum over the batch is needed, and small batches do.

Source: transformers' CLIPModel and SiglipModel, whose numbers `method.towers=clip` and `siglip`
give. The share of ALIGN's smoothing is not checked against its paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from nas_jax.losses.infonce import infonce
from nas_jax.losses.sigmoid import sigmoid_loss
from nas_jax.methods.dual import BlockConfig, DualEncoder
from nas_jax.methods.method import Method, MethodState, Setting
from nas_jax.models.clip_towers import ClipTowers, PublishedTowers, SiglipTowers
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import TwoTowers
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError

PUBLISHED: dict[str, type[PublishedTowers]] = {"clip": ClipTowers, "siglip": SiglipTowers}
TOWERS: dict[str, type[nn.Module]] = {"shared": TwoTowers, **PUBLISHED}


@dataclass(frozen=True)
class ClipConfig(BlockConfig):
    """CLIP's temperature, and which encoders are trained."""

    name: str = "clip"
    # shared: ViT and BERT, as in the other methods | clip, siglip: the encoders of these papers
    towers: str = "shared"
    # width of the text encoder of clip; 0 = model.dim. Its heads are model.heads, those of the
    # image encoder model.image_heads
    text_dim: int = 0
    smoothing: float = 0.0  # share of the target that is spread over all keys of the batch

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
        if self.towers not in TOWERS:
            known = ", ".join(TOWERS)
            raise ConfigError(f"towers={self.towers!r}", f"one of {known}", "set one of them")
        if self.text_dim < 0 or (self.text_dim and self.towers != "clip"):
            raise ConfigError(
                f"text_dim={self.text_dim}, towers={self.towers!r}",
                "0, unless the towers are CLIP's",
                "set text_dim=0",
            )
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing={self.smoothing}", "a share in [0, 1)", "0 has none")


@dataclass(frozen=True)
class Clip(DualEncoder):
    """Symmetric cross-entropy over the batch."""

    Config = ClipConfig
    # beside the table: the pooling query of SigLIP's image encoder
    sharding = ((r"pool/probe$", ()),)

    @classmethod
    def build(cls, config: Any, model: ModelConfig, setting: Setting) -> Method:
        """The method of a config, with the towers that it asks for.

        Raises ConfigError on sizes that these cannot have.
        """
        return cls(config, _network(config, model, setting.vocabulary.pad), setting)

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """See `losses/infonce.py`."""
        config, (image_BxE, text_BxE) = self.config, read
        inputs = image_BxE, text_BxE, temp
        return infonce(*inputs, block=config.block, smoothing=config.smoothing), {}


def _network(config: ClipConfig, model: ModelConfig, pad: int) -> nn.Module:
    if config.towers == "shared":
        return TwoTowers(model)
    if config.towers == "siglip" and model.embed_dim != model.dim:
        raise ConfigError(
            f"model.embed_dim={model.embed_dim}, model.dim={model.dim} with SigLIP's towers",
            "the same: its image encoder has no projection",
            f"set model.embed_dim={model.dim}",
        )
    if config.text_dim % model.heads:
        raise ConfigError(
            f"method.text_dim={config.text_dim}, model.heads={model.heads}",
            "heads that divide both widths",
            "change one of them; model.image_heads are those of the image encoder",
        )
    return PUBLISHED[config.towers](model, config.text_dim, pad)


@dataclass(frozen=True)
class AlignConfig(ClipConfig):
    """ALIGN's temperature (transformers' AlignConfig) and label smoothing."""

    name: str = "align"
    temp_init: float = 1.0
    smoothing: float = 0.1  # not checked against the paper


@dataclass(frozen=True)
class Align(Clip):
    """CLIP's loss with label smoothing."""

    Config = AlignConfig


@dataclass(frozen=True)
class SiglipConfig(ClipConfig):
    """SigLIP's temperature and bias (big_vision): most pairs of a batch are no pairs, and the
    start says so.
    """

    name: str = "siglip"
    temp_init: float = 0.1
    temp_min: float = 1e-4  # no bound of the paper: it only keeps 1 / temperature finite
    bias_init: float = -10.0

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
        if self.smoothing:
            raise ConfigError(f"smoothing={self.smoothing}", "0: the loss has none", "set 0")


@dataclass(frozen=True)
class Siglip(Clip):
    """The sigmoid loss, with one more parameter, `logit_bias`."""

    Config = SiglipConfig

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32)."""
        params, state = super().init(rng)
        return params | {"logit_bias": jnp.full((1,), self.config.bias_init, jnp.float32)}, state

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """See `losses/sigmoid.py`."""
        bias, (image_BxE, text_BxE) = params["logit_bias"][0], read
        loss = sigmoid_loss(image_BxE, text_BxE, temp, bias, self.config.block)
        return loss, {"itc/bias": bias}
