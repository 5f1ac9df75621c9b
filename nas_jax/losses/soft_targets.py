"""Cross-entropy against targets that are part of a teacher's distribution and part of the truth
(ALBEF, eq. 6 and 7).

The classes may come in groups, as the keys of a batch and those of a queue do, which are never
joined. What the backward pass needs of a row is one array as large as its logits, softmax minus
target, made in the forward pass.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from nas_jax.typing import Array

Groups = tuple[Array, ...]


@jax.custom_vjp
def soft_cross_entropy(
    logits: Groups, teacher: Groups | None, truth: tuple[Array | None, ...], alpha: Array
) -> Array:
    """-sum(target * log softmax(logits)) of each row, (R,), float32.

    The target is alpha * softmax(teacher) + (1 - alpha) * truth; without a teacher it is the truth.
    logits, teacher: (R, K) for each group of classes; the softmax is over all of them. truth: for
    each group the distribution (R, K), or the right class (R,) int32, or None for nothing there. No
    gradient goes to teacher, truth or alpha.
    """
    return _forward(logits, teacher, truth, alpha)[0]


def _forward(logits: Groups, teacher: Groups | None, truth: tuple[Array | None, ...], alpha: Array):
    weights, total_Rx1, largest_Rx1 = _exponentials(logits)
    targets = [
        None if part is None else _distribution(part, like)
        for part, like in zip(truth, logits, strict=True)
    ]
    if teacher is not None:
        taught, taught_total_Rx1, _ = _exponentials(teacher)
        share_Rx1 = alpha / taught_total_Rx1
        targets = [
            share_Rx1 * soft if hard is None else share_Rx1 * soft + (1 - alpha) * hard
            for soft, hard in zip(taught, targets, strict=True)
        ]
    loss_R = (jnp.log(total_Rx1) + largest_Rx1)[:, 0]
    slopes = []
    for part, weight, target in zip(logits, weights, targets, strict=True):
        slope = weight / total_Rx1
        if target is not None:
            loss_R = loss_R - jnp.sum(target * part.astype(jnp.float32), axis=-1)
            slope = slope - target
        slopes.append(slope.astype(part.dtype))
    return loss_R, tuple(slopes)


def _backward(slopes: Groups, grad_R: Array):
    return (
        tuple((grad_R[:, None] * slope).astype(slope.dtype) for slope in slopes),
        None,
        None,
        None,
    )


soft_cross_entropy.defvjp(_forward, _backward)


def _exponentials(logits: Groups) -> tuple[list[Array], Array, Array]:
    """exp(logits - largest), their sum (R, 1) and the largest (R, 1), over all groups."""
    parts = [part.astype(jnp.float32) for part in logits]
    largest_Rx1 = jnp.max(jnp.stack([part.max(-1, keepdims=True) for part in parts]), axis=0)
    weights = [jnp.exp(part - largest_Rx1) for part in parts]
    sums = [weight.sum(-1, keepdims=True) for weight in weights]
    return weights, functools.reduce(jnp.add, sums), largest_Rx1


def _distribution(truth: Array, like: Array) -> Array:
    if truth.ndim == 2:
        return truth
    return (jnp.arange(like.shape[1])[None] == truth[:, None]).astype(jnp.float32)
