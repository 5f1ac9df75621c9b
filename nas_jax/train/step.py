"""The training step: one pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method
from nas_jax.parallel.mesh import batch_sharding, replicated
from nas_jax.train.schedules import Schedule
from nas_jax.train.state import TrainState
from nas_jax.typing import Batch, Metrics, PyTree


def make_train_step(
    method: Method, optimizer: optax.GradientTransformation, schedule: Schedule
) -> Callable[[TrainState, Batch, Hashable], tuple[TrainState, Metrics]]:
    """step(state, batch, stage) -> (state, metrics); `stage` is static under jit, the state may be
    donated.
    """

    def step(state: TrainState, batch: Batch, stage: Hashable) -> tuple[TrainState, Metrics]:
        params = method.constrain(state.params)
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def loss(params):
            return method.loss(params, state.method_state, batch, Draws(rng), state.step, stage)

        grads, (method_state, metrics) = jax.grad(loss, has_aux=True)(params)
        method_state = method.after_gradient(method_state, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        # Apart from the optimizer's: shared, their squares would be written out, and read again for
        # the norms.
        grads = jax.tree.map(jax.lax.optimization_barrier, grads)
        metrics = {
            **metrics,
            "optim/lr": schedule(state.step),
            "optim/grad_norm": optax.tree.norm(grads),
            **{f"grad_norm/{module}": optax.tree.norm(part) for module, part in grads.items()},
        }
        params = method.scheduled(optax.apply_updates(params, updates), state.step + 1)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            method_state=method_state,
            rng=state.rng,
        )
        return new_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)

    return step


@dataclass(frozen=True)
class ShardedStep:
    """step(state, batch, stage) -> (state, metrics) on a mesh."""

    jitted: jax.stages.Wrapped
    mesh: Mesh

    def __call__(self, state: PyTree, batch: Batch, stage: Hashable) -> tuple[PyTree, Metrics]:
        """The next state, and what was measured; the state given is overwritten."""
        with jax.set_mesh(self.mesh):  # for the activations that models pin
            return self.jitted(state, batch, stage)


def sharded_step(train_step: Callable, mesh: Mesh, state_shardings: PyTree) -> ShardedStep:
    """The jitted step on a mesh: the state keeps its places and is overwritten, the batch comes
    split by rows.
    """
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        static_argnums=2,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
    )
    return ShardedStep(jitted, mesh)
