"""Entries of ALBEF's state from a checkpoint: what it has is taken, what it lacks is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from nas_jax.losses.itc import QueueState, enqueue, init_queue
from nas_jax.typing import Params

if TYPE_CHECKING:
    from nas_jax.methods.albef import Albef
    from nas_jax.methods.method import MethodState, Saved


# The parameters whose gradients are the last to read the queue.
QUEUE_READERS = ("image_proj", "text_proj")


def with_new_keys(state: MethodState, grads: Params) -> MethodState:
    """A state whose "new_keys" are in the queue, unless a gradient that reads it is not finite."""
    keys = state["new_keys"]
    state = {name: entry for name, entry in state.items() if name != "new_keys"}
    if keys is None:
        return state
    leaves = jax.tree.leaves({name: grads[name] for name in QUEUE_READERS})
    finite = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
    return state | {"queue": enqueue(state["queue"], **keys, keep=finite)}


def saved_queue(saved: Saved, fresh: QueueState) -> QueueState:
    """The queue of a checkpoint if it has the shape of the fresh one."""
    fields = saved.entry("queue")
    if fields is None:
        saved.say("these weights have no queues: they start anew")
        return fresh
    if fields["image_QxE"].shape != fresh.image_QxE.shape:
        shape = list(fields["image_QxE"].shape)
        saved.say(f"these weights have queues of {shape}: those of this run start anew")
        return fresh
    return QueueState(**fields)


def filled(method: Albef, params: Params, state: MethodState) -> MethodState:
    """A state whose teacher equals the parameters, and whose queue is empty, where it has none."""
    queue = init_queue(jax.random.key(0), 0, method.network.config.embed_dim)
    return {"teacher": method.fresh_teacher(params), "queue": queue} | state
