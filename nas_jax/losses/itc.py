"""Image-text contrastive loss with queues, a momentum teacher and soft targets (ALBEF, Li et al.

2021, eq. 1, 2, 6).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.parallel.mesh import BATCH, pin, pin_rows
from nas_jax.typing import Array


@flax.struct.dataclass
class QueueState:
    """Ring buffers of past teacher features; one pointer for both."""

    image_QxE: Array
    text_QxE: Array
    image_id_Q: Array  # int32; -1 where nothing was enqueued yet
    pointer: Array  # int32, next row to overwrite


def init_queue(key: Array, size: int, embed_dim: int) -> QueueState:
    """Queues of unit Gaussian noise, as ALBEF starts them."""
    image_key, text_key = jax.random.split(key)

    def noise(key: Array) -> Array:
        rows = jax.random.normal(key, (size, embed_dim), jnp.float32)
        return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)

    return QueueState(
        noise(image_key),
        noise(text_key),
        jnp.full((size,), -1, jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def enqueue(
    queue: QueueState,
    image_BxE: Array,
    text_BxE: Array,
    image_id_B: Array,
    keep: Array | bool = True,
) -> QueueState:
    """The block at the pointer overwritten with the (global) batch; B must divide Q. An empty queue
    stays empty.

    keep: bool; where it is False the old rows stay.
    """
    size = queue.image_QxE.shape[0]
    if size == 0:
        return queue
    if size % image_BxE.shape[0]:
        raise ValueError(
            f"queue of {size} rows, batch of {image_BxE.shape[0]}: the batch must divide the queue"
        )

    def write(rows: Array, new: Array) -> Array:
        old = jax.lax.dynamic_slice_in_dim(rows, queue.pointer, len(new), axis=0)
        return jax.lax.dynamic_update_slice_in_dim(
            rows, jnp.where(keep, new.astype(rows.dtype), old), queue.pointer, axis=0
        )

    return QueueState(
        write(queue.image_QxE, image_BxE),
        write(queue.text_QxE, text_BxE),
        write(queue.image_id_Q, image_id_B),
        (queue.pointer + image_BxE.shape[0]) % size,
    )


class Truth(NamedTuple):
    """Which keys are right for each row, the same in both directions."""

    own_BxB: Array  # of the batch; rows sum to 1 over both
    queued_BxQ: Array | None  # of the queue; None: none
    # keys that are neither right nor wrong, and take no part; None: none
    ignored_BxB: Array | None = None
    ignored_BxQ: Array | None = None


def positives(image_id_B: Array, queue_id_Q: Array, by_id: bool) -> tuple[Array, Array | None]:
    """The truth for the keys of the batch (B, B) and of the queue (B, Q), rows summing to 1 over
    both.

    Only the own pair (pretraining; None for the queue), or, `by_id`, every key with the same image
    id in equal shares (ALBEF's retrieval fine-tuning).
    """
    if not by_id:
        return jnp.eye(image_id_B.shape[0], dtype=jnp.float32), None
    same_BxB, same_BxQ = (
        (image_id_B[:, None] == ids[None]).astype(jnp.float32) for ids in (image_id_B, queue_id_Q)
    )  # fmt: skip
    total_Bx1 = same_BxB.sum(-1, keepdims=True) + same_BxQ.sum(-1, keepdims=True)
    return same_BxB / total_Bx1, same_BxQ / total_Bx1


IGNORED = -1e9  # the similarity of a key that is ignored; finite, so that 0 times it is 0


def without(logits_BxP: Array, ignored_BxP: Array | None) -> Array:
    """Similarities in which ignored keys take no part; None: all take part."""
    return logits_BxP if ignored_BxP is None else jnp.where(ignored_BxP, IGNORED, logits_BxP)


@jax.custom_vjp
def similarities(rows_BxE: Array, taught_BxE: Array, keys_PxE: Array) -> tuple[Array, Array]:
    """Dot products (B, P) of student and teacher with the keys, read once for both.

    A gradient goes to `rows` alone.
    """
    both_2xBxE = pin(jnp.stack([rows_BxE, taught_BxE]), None, BATCH, None)
    both_2xBxP = pin(jnp.einsum("sbe,pe->sbp", both_2xBxE, keys_PxE), None, BATCH, None)
    return both_2xBxP[0], both_2xBxP[1]


def _similarities_backward(keys_PxE: Array, grads: tuple[Array, Array]) -> tuple[Array, None, None]:
    return pin_rows(jnp.einsum("bp,pe->be", grads[0], keys_PxE)), None, None


similarities.defvjp(
    lambda rows, taught, keys: (similarities(rows, taught, keys), keys), _similarities_backward
)


def itc_loss(
    student: tuple[Array, Array],
    teacher: tuple[Array, Array],
    queue: QueueState,
    truth: Truth | tuple[Array, Array | None],
    temp: Array,
    alpha: Array,
) -> tuple[Array, Array, Array]:
    """Mean of both directions against the teacher's keys of the batch and the queue.

    student, teacher: features (B, E) of pictures and of captions, unit vectors in float32. The
    target is alpha * softmax(teacher similarities) + (1 - alpha) * truth.
    Returns the loss and the student's similarities / temp to the keys of the batch, (B, B),
    image-to-text and text-to-image.
    """
    image_BxE, text_BxE = student
    taught_image_BxE, taught_text_BxE = jax.lax.stop_gradient(teacher)
    queued, truth = queue.image_QxE.shape[0] > 0, Truth(*truth)
    ignored, truth = truth[2:], truth[:2]

    def direction(
        rows_BxE: Array, taught_BxE: Array, keys_BxE: Array, queue_QxE: Array
    ) -> tuple[Array, Array]:
        # Only the features of the batch travel: all keys are on every device, the similarities
        # stay with their rows.
        groups = (pin(keys_BxE, None, None), pin(queue_QxE, None, None))[: 1 + queued]
        rows_BxE, taught_BxE = rows_BxE / temp, taught_BxE / jax.lax.stop_gradient(temp)
        logits, taught = zip(
            *(similarities(rows_BxE, taught_BxE, keys_PxE) for keys_PxE in groups), strict=True
        )
        own_BxB = logits[0]
        logits, taught = (
            tuple(without(*pair) for pair in zip(groups, ignored, strict=False))
            for groups in (logits, taught)
        )
        loss_B = soft_cross_entropy(logits, taught, truth[: 1 + queued], alpha)
        return loss_B.mean(), own_BxB

    loss_i2t, i2t_BxB = direction(image_BxE, taught_image_BxE, taught_text_BxE, queue.text_QxE)
    loss_t2i, t2i_BxB = direction(text_BxE, taught_text_BxE, taught_image_BxE, queue.image_QxE)
    return (loss_i2t + loss_t2i) / 2, i2t_BxB, t2i_BxB
