"""LOUPE: Fine-Grained Semantically Aligned Pre-Training (Li et al., NeurIPS 2022, arXiv
2208.02515): two towers. LOUPE-style, not a reproduction: its repository has no code.

Which patch belongs to which word need not be labelled: taken as players of a game whose value is
the similarity of picture and caption, a patch and a word that belong together are worth more
together than apart. This Shapley interaction becomes the soft label of their alignment, between
patches and words and between regions and phrases; a small network (UNSIL) predicts it, and is
uncertain where it must be computed.

Reconstructed, as only the ideas are known for certain: the value of a coalition (FILIP's similarity
of its members), labels from standardised interactions, the network, regions as clusters of patches
where the paper has a head for boxes, noun phrases from a list of words (data/phrases.py). Features
of the whole are means of projected tokens: were they [CLS], nothing but their own labels would
train the features that the games are played with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nas_jax.data.phrases import NounPhrases
from nas_jax.losses.infonce import infonce
from nas_jax.losses.mlm import word_places
from nas_jax.losses.shapley import (
    alignment_labels,
    alignment_loss,
    draw_coalitions,
    interaction_loss,
    masked_mean,
    pair_interactions,
    pairs_to_sample,
    replaced,
    standardised,
)
from nas_jax.methods.draws import Draws
from nas_jax.methods.dual import BlockConfig, DualEncoder
from nas_jax.models.interactions import LEVELS, LoupeNetwork
from nas_jax.models.regions import region_features
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import unit
from nas_jax.parallel.mesh import pin_rows
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError

READ = (
    "image_BxHxWx3", "token_ids_BxL", "token_mask_BxL", "phrase_ids_BxCxL", "phrase_mask_BxCxL",
    "phrase_real_BxC",
)  # fmt: skip


@dataclass(frozen=True)
class LoupeConfig(BlockConfig):
    """The games and the weights; none of the paper's values is known. The temperature is of all
    cosines.
    """

    name: str = "loupe"
    samples: int = 8  # coalitions that a sampled interaction is the mean of
    token_pairs: int = 64  # pairs of patch and word, of each picture, that are sampled
    phrase_pairs: int = 16  # pairs of region and phrase that are
    explored: float = 0.5  # share of these that is drawn at random, not by uncertainty
    regions: int = 8  # clusters of patches
    region_iterations: int = 4  # of k-means
    phrases: int = 4  # noun phrases of a caption, at most
    label_temp: float = 0.5  # of labels, which are softmaxes of interactions in their deviations
    hidden: int = 64  # width of the network that predicts interactions
    token_weight: float = 1.0  # of the alignment of patches and words
    phrase_weight: float = 1.0  # of that of regions and phrases

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range."""
        super().validate()
        for name in ("samples", "token_pairs", "phrase_pairs", "regions", "phrases", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", "at least 1", "raise it")
        shares = self.explored, self.label_temp, self.token_weight, self.phrase_weight
        if not 0 <= self.explored <= 1 or min(shares[1:]) < 0 or self.label_temp == 0:
            raise ConfigError(
                "explored={}, label_temp={}, token_weight={}, phrase_weight={}".format(*shares),
                "a share of 1, a positive temperature and weights of 0 or more",
                "0.5, 0.5, 1 and 1 are the defaults",
            )


class Game(NamedTuple):
    """The players of one level, and what is drawn for it."""

    x_BxNxE: Array  # unit features of patches or regions
    y_BxLxE: Array  # of words or phrases
    x_real_BxN: Array
    y_real_BxL: Array
    coalition_BxAxP: Array
    random_BxNxL: Array

    @property
    def plays_BxNxL(self) -> Array:
        """Which pairs there are."""
        return self.x_real_BxN[..., None] & self.y_real_BxL[:, None]


@dataclass(frozen=True)
class Loupe(DualEncoder):
    """No state."""

    Config = LoupeConfig
    Network = LoupeNetwork

    @classmethod
    def make_network(cls, config: LoupeConfig, model: ModelConfig) -> LoupeNetwork:
        """Two towers, and two networks of `config.hidden` units."""
        return LoupeNetwork(model, config.hidden)

    @property
    def wants(self) -> tuple[Any, ...]:
        """The noun phrases of each caption."""
        return (NounPhrases(self.config.phrases),)

    def rows(self, batch: Batch, draw: Draws) -> dict[str, Any]:
        """What the loss reads, with seeds of the dropout and what is drawn for the games."""
        config, size = self.config, len(batch["image_BxHxWx3"])
        counts = {
            "tokens": (self.network.config.num_patches, batch["token_ids_BxL"].shape[1]),
            "phrases": (config.regions, config.phrases),
        }
        drawn = {level: self.draw_game(draw, level, size, *counts[level]) for level in LEVELS}
        seeds = [draw.seeds(f"text/{number}", size) for number in range(1 + config.phrases)]
        read = {name: batch[name] for name in READ}
        return read | {"seeds_BxP": jnp.stack(seeds, 1), "drawn": drawn}

    def read(self, params: Params, rows: dict[str, Any]) -> PyTree:
        """Unit features of pictures and captions (B, E), and losses (B,) of each level."""
        image_BxE, text_BxE, players = self.players(params, rows)
        games = {level: Game(*players[level], *rows["drawn"][level]) for level in LEVELS}
        return image_BxE, text_BxE, {one: self.align(params, one, games[one]) for one in LEVELS}

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """L = L_CMC + L_TSA + L_SSA + L_UNSIL: InfoNCE of the whole, alignment of tokens and of
        phrases, and what the predicted interactions are off by. No gradient of the last reaches the
        towers, and none of the alignment the temperature.
        """
        config, (image_BxE, text_BxE, found) = self.config, read
        metrics = {"loss/contrast": infonce(image_BxE, text_BxE, temp, block=config.block)}
        for level in LEVELS:
            metrics |= {f"{name}/{level}": x_B.mean() for name, x_B in found[level].items()}
        weights = {
            "loss/contrast": 1.0,
            "loss/tokens": config.token_weight,
            "loss/phrases": config.phrase_weight,
            "interactions/tokens": 1.0,
            "interactions/phrases": 1.0,
        }
        return sum(weight * metrics[name] for name, weight in weights.items()), {**metrics}

    def draw_game(
        self, draw: Draws, level: str, size: int, firsts: int, seconds: int
    ) -> tuple[Array, Array]:
        """Coalitions (B, A, N + L), and a random number for each pair (B, N, L). Drawn with words
        first, so that more padding changes nothing.
        """
        count = size, self.config.samples, firsts + seconds
        coalition_BxAxP = draw(f"coalitions/{level}", lambda key: draw_coalitions(key, *count))
        shape = seconds, firsts, size
        random_BxNxL = draw(f"explored/{level}", lambda key: jax.random.uniform(key, shape).T)
        return pin_rows(coalition_BxAxP), pin_rows(random_BxNxL)

    def players(
        self, params: Params, batch: Batch
    ) -> tuple[Array, Array, dict[str, tuple[Array, ...]]]:
        """Unit features of pictures and captions (B, E), and the first four of `Game` by level."""
        net, config, seeds_BxP = self.apply(params), self.config, batch["seeds_BxP"]
        size, texts = seeds_BxP.shape
        image_BxTxE, image_BxE = net.encode_image(batch["image_BxHxWx3"])
        ids_RxL, mask_RxL = (
            pin_rows(jnp.concatenate([caption[:, None], phrases], 1).reshape(size * texts, -1))
            for caption, phrases in (
                (batch["token_ids_BxL"], batch["phrase_ids_BxCxL"]),
                (batch["token_mask_BxL"], batch["phrase_mask_BxCxL"]),
            )
        )
        read = net.encode_text(ids_RxL, mask_RxL, seeds_BxP.reshape(-1))
        words_BxPxLxE, text_BxPxE = (pin_rows(x.reshape(size, texts, *x.shape[1:])) for x in read)
        captions = batch["token_ids_BxL"], batch["token_mask_BxL"]
        word_BxL = word_places(*captions, self.setting.vocabulary)
        patch_BxNxE, patches = image_BxTxE[:, 1:], unit(image_BxTxE[:, 1:])
        regions = region_features(patch_BxNxE, config.regions, config.region_iterations)
        all_BxN = jnp.ones(patches.shape[:2], bool)
        return image_BxE, text_BxPxE[:, 0], {
            "tokens": (patches, unit(words_BxPxLxE[:, 0]), all_BxN, word_BxL),
            "phrases": (regions[0], text_BxPxE[:, 1:], regions[1], batch["phrase_real_BxC"]),
        }  # fmt: skip

    def align(self, params: Params, level: str, game: Game) -> dict[str, Array]:
        """The losses of one level, (B,) each: of alignment with soft labels, of the predictions."""
        interactions_BxNxL, losses = self.interactions(params, level, game)
        labels = alignment_labels(interactions_BxNxL, game.plays_BxNxL, self.config.label_temp)
        cosines_BxNxL = jnp.einsum("bne,ble->bnl", game.x_BxNxE, game.y_BxLxE)
        temp = jax.lax.stop_gradient(self.temperature(params))
        return {"loss": alignment_loss(cosines_BxNxL, labels, game.plays_BxNxL, temp), **losses}

    def interactions(
        self, params: Params, level: str, game: Game
    ) -> tuple[Array, dict[str, Array]]:
        """Interactions (B, N, L) in their deviations: predicted, and sampled for a fixed number of
        pairs, those of which the prediction is least certain and some at random. Also the loss of
        the predictions and their uncertainty, (B,) each.
        """
        config, plays_BxNxL = self.config, game.plays_BxNxL
        x_BxNxE, y_BxLxE = jax.lax.stop_gradient((game.x_BxNxE, game.y_BxLxE))
        inputs = level, x_BxNxE, y_BxLxE, plays_BxNxL
        predicted_BxNxL, log_variance_BxNxL = self.apply(params).interactions(*inputs)

        wanted = config.token_pairs if level == "tokens" else config.phrase_pairs
        pairs = min(wanted, plays_BxNxL[0].size)
        given = log_variance_BxNxL, plays_BxNxL, game.random_BxNxL
        chosen = pairs_to_sample(*given, pairs, round(config.explored * pairs))
        cosines_BxNxL = jnp.einsum("bne,ble->bnl", x_BxNxE, y_BxLxE)
        drawn = game.coalition_BxAxP, chosen.pair_BxM
        worth_BxM = pair_interactions(cosines_BxNxL, plays_BxNxL, *drawn)
        sampled_BxM = standardised(worth_BxM, chosen.valid_BxM)
        at = chosen.at(predicted_BxNxL), chosen.at(log_variance_BxNxL)
        return replaced(predicted_BxNxL, chosen, sampled_BxM), {
            "interactions": interaction_loss(*at, sampled_BxM, chosen.valid_BxM),
            "uncertainty": masked_mean(jnp.exp(at[1] / 2), chosen.valid_BxM),
        }
