"""Image-text contrastive loss with queues, a momentum teacher and soft targets (ALBEF, Li et al. 2021, eq. 1, 2, 6)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

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


def positives(image_id_B: Array, queue_id_Q: Array, by_id: bool) -> Array:
    """Hard targets (B, B + Q), rows summing to 1.

    Only the own pair (pretraining), or, `by_id`, every key with the same image id in equal shares (ALBEF's retrieval
    fine-tuning).
    """
    batch = image_id_B.shape[0]
    if not by_id:
        return jnp.eye(batch, batch + queue_id_Q.shape[0], dtype=jnp.float32)
    key_id_P = jnp.concatenate([image_id_B, queue_id_Q])
    same_BxP = (image_id_B[:, None] == key_id_P[None]).astype(jnp.float32)
    return same_BxP / same_BxP.sum(-1, keepdims=True)


def soft_cross_entropy(logits_BxP: Array, targets_BxP: Array) -> Array:
    """-sum(targets * log softmax(logits)), one value a row."""
    return -jnp.sum(jax.nn.log_softmax(logits_BxP) * targets_BxP, axis=-1)


def itc_loss(
    image_BxE: Array,
    text_BxE: Array,
    teacher_image_BxE: Array,
    teacher_text_BxE: Array,
    queue: QueueState,
    targets_BxP: Array,
    temp: Array,
    alpha: Array,
) -> tuple[Array, Array, Array]:
    """Mean of both directions against teacher keys [batch ; queue].

    The target is alpha * softmax(teacher similarities) + (1 - alpha) * hard targets. All features are unit vectors in
    float32. Returns the loss and the student's similarities / temp (B, P) image-to-text and text-to-image.
    """

    def keys(teacher_BxE: Array, queue_QxE: Array) -> Array:
        # Only the features of the batch travel: all keys are on every device, the similarities stay with their rows.
        whole_BxE = pin(jax.lax.stop_gradient(teacher_BxE), None, None)
        return pin(jnp.concatenate([whole_BxE, queue_QxE]), None, None)

    def similarities(rows_BxE: Array, keys_PxE: Array, temp: Array) -> Array:
        return pin_rows(pin_rows(rows_BxE) @ keys_PxE.T / temp)

    image_keys_PxE, text_keys_PxE = keys(teacher_image_BxE, queue.image_QxE), keys(teacher_text_BxE, queue.text_QxE)
    logits_i2t_BxP = similarities(image_BxE, text_keys_PxE, temp)
    logits_t2i_BxP = similarities(text_BxE, image_keys_PxE, temp)
    taught = jax.lax.stop_gradient((teacher_image_BxE, teacher_text_BxE, temp))
    teacher_i2t_BxP = jax.nn.softmax(similarities(taught[0], text_keys_PxE, taught[2]))
    teacher_t2i_BxP = jax.nn.softmax(similarities(taught[1], image_keys_PxE, taught[2]))
    loss_i2t = soft_cross_entropy(logits_i2t_BxP, alpha * teacher_i2t_BxP + (1 - alpha) * targets_BxP).mean()
    loss_t2i = soft_cross_entropy(logits_t2i_BxP, alpha * teacher_t2i_BxP + (1 - alpha) * targets_BxP).mean()
    return (loss_i2t + loss_t2i) / 2, logits_i2t_BxP, logits_t2i_BxP
