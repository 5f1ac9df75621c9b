"""Image-text contrastive loss with queues, a momentum teacher and soft targets (ALBEF, Li et al. 2021, eq. 1, 2, 6)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.parallel.mesh import pin, pin_rows
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

    return QueueState(noise(image_key), noise(text_key), jnp.full((size,), -1, jnp.int32), jnp.zeros((), jnp.int32))


def enqueue(queue: QueueState, image_BxE: Array, text_BxE: Array, image_id_B: Array) -> QueueState:
    """Overwrites the block at the pointer with the (global) batch; B must divide Q. An empty queue stays empty."""
    size = queue.image_QxE.shape[0]
    if size == 0:
        return queue
    if size % image_BxE.shape[0]:
        raise ValueError(f"queue of {size} rows, batch of {image_BxE.shape[0]}: the batch must divide the queue")

    def write(rows: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(rows, new.astype(rows.dtype), queue.pointer, axis=0)

    return QueueState(
        write(queue.image_QxE, image_BxE),
        write(queue.text_QxE, text_BxE),
        write(queue.image_id_Q, image_id_B),
        (queue.pointer + image_BxE.shape[0]) % size,
    )


def positives(image_id_B: Array, queue_id_Q: Array, by_id: bool) -> tuple[Array, Array | None]:
    """The truth for the keys of the batch (B, B) and of the queue (B, Q), rows summing to 1 over both.

    Only the own pair (pretraining; None for the queue), or, `by_id`, every key with the same image id in equal shares
    (ALBEF's retrieval fine-tuning).
    """
    if not by_id:
        return jnp.eye(image_id_B.shape[0], dtype=jnp.float32), None
    same_BxB, same_BxQ = (
        (image_id_B[:, None] == ids[None]).astype(jnp.float32) for ids in (image_id_B, queue_id_Q)
    )  # fmt: skip
    total_Bx1 = same_BxB.sum(-1, keepdims=True) + same_BxQ.sum(-1, keepdims=True)
    return same_BxB / total_Bx1, same_BxQ / total_Bx1


def itc_loss(
    image_BxE: Array,
    text_BxE: Array,
    teacher_image_BxE: Array,
    teacher_text_BxE: Array,
    queue: QueueState,
    truth: tuple[Array, Array | None],
    temp: Array,
    alpha: Array,
) -> tuple[Array, Array, Array]:
    """Mean of both directions against the teacher's keys of the batch and the queue.

    The target is alpha * softmax(teacher similarities) + (1 - alpha) * truth. All features are unit vectors in float32.
    Returns the loss and the student's similarities / temp to the keys of the batch, (B, B), image-to-text and
    text-to-image.
    """
    taught = jax.lax.stop_gradient((teacher_image_BxE, teacher_text_BxE))
    queued = queue.image_QxE.shape[0] > 0

    def similarities(rows_Bx2xE: Array, keys_BxE: Array, queue_QxE: Array) -> list[Array]:
        # Only the features of the batch travel: all keys are on every device, the similarities stay with their rows.
        groups = (pin(keys_BxE, None, None), pin(queue_QxE, None, None))
        return [pin_rows(jnp.einsum("bse,pe->bsp", rows_Bx2xE, keys_PxE)) for keys_PxE in groups[: 1 + queued]]

    def direction(rows_BxE: Array, taught_BxE: Array, keys_BxE: Array, queue_QxE: Array) -> tuple[Array, Array]:
        # Student and teacher together: the keys are read once.
        both_Bx2xE = jnp.stack([rows_BxE / temp, taught_BxE / jax.lax.stop_gradient(temp)], axis=1)
        both = similarities(pin_rows(both_Bx2xE), keys_BxE, queue_QxE)
        logits, teacher = (tuple(group[:, side] for group in both) for side in range(2))
        return soft_cross_entropy(logits, teacher, truth[: 1 + queued], alpha).mean(), logits[0]

    loss_i2t, logits_i2t_BxB = direction(image_BxE, taught[0], taught[1], queue.text_QxE)
    loss_t2i, logits_t2i_BxB = direction(text_BxE, taught[1], taught[0], queue.image_QxE)
    return (loss_i2t + loss_t2i) / 2, logits_i2t_BxB, logits_t2i_BxB
