"""The training state: one pytree with everything that changes the next step."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax

from nas_jax.methods.method import Method, MethodState
from nas_jax.typing import Array, Params


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds, besides the position in the data."""

    step: Array  # int32, steps done
    params: Params
    opt_state: optax.OptState
    method_state: MethodState  # teacher, queues, dictionary
    rng: Array  # uint32 key data; step k draws from fold_in(rng, k)


def init_state(method: Method, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; a pure function of the seed."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params, method_state = method.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        method_state=method_state,
        rng=jax.random.key_data(step_key),
    )
