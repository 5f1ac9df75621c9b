"""Text assignment, which prepares a model for NLVR2 (Li et al. 2021, appendix A; ALBEF code,
models/model_pretrain_nlvr.py): is a caption of the left picture, of the right one, or of neither?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from nas_jax.data.config import DataConfig
from nas_jax.methods.draws import Draws
from nas_jax.models.towers import unit
from nas_jax.parallel.mesh import take_rows
from nas_jax.tasks.finetuned import FineTuneConfig
from nas_jax.tasks.nlvr2 import Paired, PairEncoder, with_twins
from nas_jax.tasks.task import Task
from nas_jax.typing import Array, Batch, Metrics, Params

TEMPERATURE = 0.07  # of the similarity of pictures, by which others are drawn
NEITHER = 1 / 3  # share of captions that are of neither picture


@dataclass(frozen=True)
class TextAssignmentConfig(FineTuneConfig):
    """It has no teacher."""

    name: str = "nlvr2_ta"
    alpha: float = 0.0


class AssignmentNetwork(PairEncoder):
    """NLVR2's network with a layer for three answers in place of its head, and the projection that
    compares pictures, which gets no gradient.
    """

    def setup(self):
        super().setup()
        self.assignment_head = nn.Dense(3)
        self.image_proj = nn.Dense(self.config.embed_dim)

    def assign(self, text: tuple[Array, Array], images: Sequence[Array], seeds: Mapping) -> Array:
        """Logits (B, 3): left, right, neither."""
        return self.assignment_head(self.fuse_pair(text, images, seeds).astype(jnp.float32))

    def likeness(self, tokens_BxTxD: Array) -> Array:
        """Cosine similarities (B, B) of pictures."""
        image_BxE = unit(self.image_proj(tokens_BxTxD[:, 0].astype(jnp.float32)))
        return image_BxE @ image_BxE.T

    def __call__(self, image_BxHxWx3: Array, token_ids_BxL: Array, token_mask_BxL: Array) -> Array:
        """Uses every parameter once, so that `init` makes them all."""
        tokens = self.encode_image(image_BxHxWx3)
        self.likeness(tokens)
        return self.assign((token_ids_BxL, token_mask_BxL), (tokens, tokens), {})


@dataclass(frozen=True)
class TextAssignment(Paired):
    """Captions beside two pictures (appendix A): of the left, of the right, or of neither."""

    Config = TextAssignmentConfig
    Network = AssignmentNetwork
    accumulates = False  # pictures are drawn from the whole batch

    def loss_of(
        self, params: Params, teacher: Params | None, batch: Batch, draw: Draws, alpha: Array
    ) -> tuple[Array, Metrics]:
        """Cross-entropy over the three answers; others are drawn by how like the own picture they
        are.
        """
        text = batch["token_ids_BxL"], batch["token_mask_BxL"]
        size, net = len(text[0]), self.apply(with_twins(params))
        tokens_BxTxD = net.encode_image(batch["image_BxHxWx3"])
        likeness_BxB = jax.lax.stop_gradient(net.likeness(tokens_BxTxD)) / TEMPERATURE
        chosen = draw("assignment_B", lambda key: assigned(key, likeness_BxB))
        images = [take_rows(tokens_BxTxD, chosen[name]) for name in ("left_B", "right_B")]
        logits_Bx3 = net.assign(text, images, self.seeds(draw, "student", size))
        label_B = chosen["label_B"]
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits_Bx3), label_B[:, None], 1).mean()
        return loss, {"accuracy": (logits_Bx3.argmax(-1) == label_B).mean(dtype=jnp.float32)}


def assigned(key: Array, likeness_BxB: Array) -> dict[str, Array]:
    """Two pictures for each caption, and the label: 0 left, 1 right, 2 neither.

    The own picture is never among the others, and the two of a caption of neither differ (in
    batches of three or more).
    """
    size = len(likeness_BxB)
    kind_key, side_key, other_key = jax.random.split(key, 3)
    logits_BxB = jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, likeness_BxB)
    # the two greatest of logits with Gumbel noise are draws without replacement
    noisy_BxB = logits_BxB + jax.random.gumbel(other_key, logits_BxB.shape)
    other_B, another_B = jax.lax.top_k(noisy_BxB, 2)[1].T
    neither_B = jax.random.uniform(kind_key, (size,)) < NEITHER
    right_side_B = jax.random.bernoulli(side_key, 0.5, (size,))
    own_B = jnp.arange(size)
    left_B = jnp.where(neither_B | right_side_B, other_B, own_B)
    right_B = jnp.where(neither_B, another_B, jnp.where(right_side_B, own_B, other_B))
    label_B = jnp.where(neither_B, 2, right_side_B.astype(jnp.int32))
    return {"left_B": left_B, "right_B": right_B, "label_B": label_B}


class TextAssignmentTask(Task):
    """On the pairs of pretraining; its loss is all that is measured."""

    method = TextAssignment

    def open_eval_sets(self, config: DataConfig, seed: int, cased: bool) -> tuple:
        """None: the method has no scores of pairs."""
        return ()
