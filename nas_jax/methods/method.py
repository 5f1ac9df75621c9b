"""The contract between a paper and all that trains, stores, evaluates and exports it.

A method is one file with a subclass of `Method`: its `Config`, its `Network` and its loss. It has
one line in the table `METHODS` (`methods/__init__.py`). Nothing outside knows which parts its state
has or which stages its training goes through: they ask the method.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.methods.draws import Draws
from nas_jax.models.sizes import ModelConfig
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree, Vocabulary

if TYPE_CHECKING:
    from nas_jax.methods.matching import MatchingRows
    from nas_jax.models.towers import PatchCodes

MethodState = dict[str, PyTree]
"""Name -> what changes with every step besides parameters and optimizer: teacher, queues ..."""


@dataclass(frozen=True)
class MethodConfig:
    """What the config of every method has."""

    name: str = ""  # a row of METHODS, of which each names its own

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""

    def check_batch(self, batch_size: int) -> None:
        """Raises ConfigError where the method cannot be trained with batches of that size."""

    @property
    def has_generator(self) -> bool:
        """Whether the method trains a language model on captions, which replaces words of them."""
        return False

    def mesh_advice(self, row_devices: int) -> str:
        """What would be faster where rows are split over that many devices; "" = nothing."""
        return ""


@dataclass(frozen=True)
class Setting:
    """What a method is told of the run besides its own config; static under jit."""

    vocabulary: Vocabulary
    total_steps: int = 1
    steps_per_epoch: int = 1
    pieces: int = 1  # in which row-wise parts of a batch are computed, one after the other

    def epoch(self, step: int | Array) -> float | Array:
        """Epochs that are done before a step, with its fraction."""
        return step / self.steps_per_epoch


class Saved(Protocol):
    """The method state of a checkpoint that another run starts from."""

    @property
    def whole(self) -> bool:
        """Whether teacher, queues and the like are wanted too (`train.weights_state`)."""

    def entry(self, name: str) -> Any | None:
        """An entry of the state as it was saved (nested dicts of NumPy arrays), or None."""

    def fitted(self, name: str, like: Params) -> Params:
        """An entry whose arrays are named as parameters, fitted to the sizes of `like`.

        What it lacks, or all of it, is that of `like`.
        """

    def say(self, line: str) -> None:
        """Tells the user what was taken and what was not."""


@dataclass(frozen=True)
class Method:
    """A paper: pure functions of parameters, state and batch.

    A subclass sets the class attributes and overrides what its paper says differently. The defaults
    are: no state, one stage, no constraint, nothing after the gradient.
    """

    config: Any
    network: nn.Module
    setting: Setting

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    Network: ClassVar[type[nn.Module]] = nn.Module
    # Names of scores that `compare` gives from features alone.
    feature_scores: ClassVar[tuple[str, ...]] = ("itc",)
    # Names of scores that `score` gives for picture and text read together; a method without a
    # fusion encoder has none.
    pair_scores: ClassVar[tuple[str, ...]] = ()
    # Names of scores that are the sum of others.
    summed_scores: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Scores of an evaluation that names none.
    default_scores: ClassVar[tuple[str, ...]] = ("itc",)
    # Whether a batch may be computed in pieces (`train.accumulate`).
    accumulates: ClassVar[bool] = True
    # (pattern of names of its parameters, name in the weights): where parameters begin that the
    # weights of `train.weights` lack, as in `checkpoint.surgery.adapt`.
    copies: ClassVar[tuple[tuple[str, str], ...]] = ()
    # Which class of convert/hf_files the method is exported as; "" = it has none. Not inherited.
    hf_class: ClassVar[str] = ""
    # (pattern of names, axes): where arrays live on a mesh, before the rules of parallel/rules.py.
    sharding: ClassVar[tuple[tuple[str, tuple[str | None, ...]], ...]] = ()

    @classmethod
    def build(cls, config: Any, model: ModelConfig, setting: Setting) -> Method:
        """The method of a config, for a model of that size."""
        return cls(config, cls.make_network(config, model), setting)

    @classmethod
    def make_network(cls, config: Any, model: ModelConfig) -> nn.Module:
        """The network that the config asks for."""
        return cls.Network(model)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of all scores that an evaluation may ask for."""
        return (*self.feature_scores, *self.pair_scores, *self.summed_scores)

    @property
    def scoring_state(self) -> tuple[str, ...]:
        """Entries of the state that `encode_image` reads: all that an evaluation has to load."""
        return ()

    @property
    def wants(self) -> tuple[Any, ...]:
        """Fields of a batch beyond the four that every batch has (data/readers.py)."""
        return ()

    def apply(self, params: Params) -> Any:
        """The network with these parameters: its methods are called as functions."""
        return self.network.bind({"params": params})

    # ---------------------------------------------------------------------------------- training

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32) and the state that goes with them."""
        size = self.network.config.image_size
        image_BxHxWx3, ids_BxL = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 4), jnp.int32)
        mask_BxL = jnp.ones((1, 4), bool)
        return self.network.init(rng, image_BxHxWx3, ids_BxL, mask_BxL)["params"], {}

    def constrain(self, params: Params) -> Params:
        """What must hold of the parameters before each step."""
        return params

    def scheduled(self, params: Params, step: Array) -> Params:
        """The parameters for a step: what follows a schedule, and not the gradient, is set."""
        return params

    def stage(self, step: int) -> Hashable:
        """Which parts of the loss are on at a step; static, so each stage is compiled by itself."""
        return None

    def stage_starts(self) -> tuple[int, ...]:
        """Steps at which a stage may begin."""
        return (0,)

    def loss(
        self,
        params: Params,
        state: MethodState,
        batch: Batch,
        draw: Draws,
        step: Array,
        stage: Hashable,
    ) -> tuple[Array, tuple[MethodState, Metrics]]:
        """The scalar loss of a batch; also the next state, up to `after_gradient`, and metrics."""
        raise NotImplementedError

    def after_gradient(self, state: MethodState, grads: Params) -> MethodState:
        """The state that `loss` gave, for the next step. grads: of that loss."""
        return state

    def observe(self, params: Params, state: MethodState) -> Metrics:
        """Metrics of the steps that are recorded only, as they cost too much for every step."""
        return {}

    def renumbered(self, state: MethodState, by: int | Array) -> MethodState:
        """The state of a run that goes on with another batch size, so that step k is k + by: what
        counts steps itself is moved, by its own `renumbered`; traceable by `jax.jit`.
        """
        return {
            name: part.renumbered(by) if hasattr(part, "renumbered") else part
            for name, part in state.items()
        }

    def start_from(self, params: Params, state: MethodState, saved: Saved) -> MethodState:
        """The fresh state of a run whose parameters are those of a checkpoint."""
        return state

    # ---------------------------------------------------------------------------------- scoring

    def encode_image(
        self, params: Params, state: MethodState, image_BxHxWx3: Array, tokens: str = "method"
    ) -> tuple[Array, Array]:
        """Image tokens (B, T, D) as `score` reads them, and features (B, ...) for `compare`.

        tokens: "method", or "encoder" for those of the image encoder where the method has others.
        """
        return self.apply(params).encode_image(image_BxHxWx3)

    def encode_text(
        self, params: Params, token_ids_BxL: Array, token_mask_BxL: Array
    ) -> tuple[Array, Array]:
        """Text tokens (B, L, D) as `score` reads them, and features (B, ...) for `compare`."""
        return self.apply(params).encode_text(token_ids_BxL, token_mask_BxL)

    def compare(self, name: str, image_RxE: np.ndarray, text_CxE: np.ndarray) -> np.ndarray:
        """The feature score of R pictures with C texts, (R, C): here the dot product, on the host.

        Summed in float64, so that equal features tie in whatever order the sum is taken. Another
        score of features (R, ...) and (C, ...), as `encode_image` and `encode_text` give them, may
        be computed on the devices; the caller bounds R and C, the method its memory.
        """
        return image_RxE.astype(np.float64) @ text_CxE.astype(np.float64).T

    def score(
        self,
        params: Params,
        image_tokens_GxTxD: Array,
        text_tokens_GxCxLxD: Array,
        token_mask_GxCxL: Array,
    ) -> dict[str, Array]:
        """Each of `pair_scores`, (G, C): C texts beside each of G pictures, read together."""
        raise NotImplementedError(f"{type(self).__name__} has no pair scores")

    def matching_rows(
        self, params: Params, state: MethodState, batch: Batch, draw: Draws
    ) -> Mapping[str, MatchingRows] | None:
        """The rows of the method's matching loss on a batch, by kind, as an evaluation reads them
        with the whole recipe on; None: it has no such loss. `score` gives their "itm".

        state: `scoring_state`, and "teacher" if it is at hand. The same draw as for
        `explain_negatives` gives the same negatives.
        """
        return None

    def with_published_negatives(self) -> Method | None:
        """The method with its picture negatives as published, for a diagnosis to show beside its
        own; None: these are the published ones, or it makes none.
        """
        return None

    def explain_negatives(
        self, params: Params, state: MethodState, batch: Batch, draw: Draws
    ) -> Any | None:
        """What the method's picture negatives of a batch are, for drawing; None: it makes none."""
        return None

    def patch_codes(
        self, params: Params, state: MethodState, image_BxHxWx3: Array
    ) -> PatchCodes | None:
        """The codes of the pictures' patches, for drawing; None: it has no visual dictionary."""
        return None


def norm_distance(tree: PyTree, other: PyTree) -> Array:
    """|tree - other| / |other| over all arrays."""
    difference = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), tree, other)
    size = jax.tree.map(lambda b: jnp.sum(jnp.square(b)), other)
    return jnp.sqrt(sum(jax.tree.leaves(difference)) / sum(jax.tree.leaves(size)))
