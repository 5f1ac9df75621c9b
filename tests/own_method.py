"""A method and a term that only the tests have: what it takes to add a paper."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.methods.method import Method, MethodConfig
from nas_jax.methods.terms import Term
from nas_jax.models.towers import TwoTowers, unit


@dataclass(frozen=True)
class OwnConfig(MethodConfig):
    name: str = "own"
    noise: float = 0.1  # added to the features of pictures


class OwnNetwork(TwoTowers):
    """Two towers, and a bridge from pictures to captions."""

    def setup(self):
        super().setup()
        self.bridge = nn.Dense(self.config.embed_dim)

    def __call__(self, image_BxHxWx3, token_ids_BxL, token_mask_BxL):
        self.bridge(self.encode_image(image_BxHxWx3)[1])
        self.encode_text(token_ids_BxL, token_mask_BxL)


@dataclass(frozen=True)
class Own(Method):
    """State: `mean_E`, the moving average of the captions' features."""

    Config, Network, pair_scores = OwnConfig, OwnNetwork, ("distance",)

    def init(self, rng):
        return super().init(rng)[0], {"mean_E": jnp.zeros(self.network.config.embed_dim)}

    def loss(self, params, state, batch, draw, step, stage):
        net = self.apply(params)
        image_BxE = net.bridge(net.encode_image(batch["image_BxHxWx3"])[1])
        noise_BxE = draw("noise", lambda key: jax.random.normal(key, image_BxE.shape))
        text_BxE = net.encode_text(batch["token_ids_BxL"], batch["token_mask_BxL"])[1]
        away_BxE = unit(image_BxE + self.config.noise * noise_BxE) - text_BxE + state["mean_E"]
        mean_E = 0.9 * state["mean_E"] + 0.1 * jax.lax.stop_gradient(text_BxE.mean(0))
        return (loss := jnp.square(away_BxE).mean()), ({"mean_E": mean_E}, {"loss": loss})

    def score(self, params, image_tokens_GxTxD, text_tokens_GxCxLxD, token_mask_GxCxL):
        away_GxCxD = image_tokens_GxTxD[:, :1] - text_tokens_GxCxLxD[:, :, 0]
        return {"distance": -jnp.square(away_GxCxD).sum(-1)}


class Sharp(Term):
    """Pulls each picture to the caption that is nearest."""

    def value(self, seen, rows, fused):
        return -jax.nn.log_softmax(seen.itc.i2t_BxB).max(-1).mean(), {}
