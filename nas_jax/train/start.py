"""What a run begins with. There are four cases, tried in this order:

1. continue this run: the work directory has a checkpoint;
2. continue another run: `train.continue_from` names its work directory, whose newest checkpoint is
   taken over whole, with optimizer, queues and the position in the data, which is counted in pairs
   (train/going_on.py);
3. start from weights: `train.weights` names a work directory or a folder of converted weights
   (docs/conversion.md), of whose newest checkpoint the parameters are taken, and the dictionary if
   both have one, with `train.weights_state` the teacher and the queues too; the rest is new, and
   training begins at step 1;
4. start from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.stored import Shapes, nest
from nas_jax.checkpoint.surgery import adapt
from nas_jax.methods.method import Saved
from nas_jax.parallel.rules import with_shardings
from nas_jax.storage.paths import as_path
from nas_jax.train.config import TrainConfig
from nas_jax.train.going_on import Course, renumbered
from nas_jax.train.state import TrainState
from nas_jax.train.workdir import CHECKPOINTS
from nas_jax.typing import Params, PyTree
from nas_jax.utils.errors import MissingPart
from nas_jax.utils.trees import named_leaves

Position = dict[str, Any]
StartFrom = Callable[[Params, PyTree, Saved], PyTree]
"""`Method.start_from`: (params, fresh method state, saved) -> method state."""
Copies = Sequence[tuple[str, str]]
NOTHING_READ: Position = {"next_step": 0, "skipped": 0}


def begin(
    config: TrainConfig,
    init_state: Callable[[], TrainState],
    shardings: PyTree,
    say: Callable[[str], None],
    start_from: StartFrom | None = None,
    course: Course | None = None,
    copies: Copies = (),
    keep: Callable[[str], None] | None = None,
) -> tuple[TrainState, Position]:
    """The cases 2 to 4: the first state of a work directory without a checkpoint, and where the
    data goes on.

    course: of this run, for what differs from the other run's. copies: `Method.copies`. keep: gets
    a line for each tensor of the weights and of the model, in case 3.

    Raises CheckpointError where the other run has no checkpoint that is whole, or another state, or
    where pairs would be repeated or left out.
    """
    if config.continue_from:
        with _open(config.continue_from, say) as manager:
            state, position = go_on(manager, jax.eval_shape(init_state), shardings, say, course)
        say(f"case 2: going on at step {position['next_step']}, from {config.continue_from}")
        return state, position
    state = jax.jit(init_state, out_shardings=shardings)()
    if config.weights:
        with _open(config.weights, say) as manager:
            saved = SavedState(manager, shardings, config.weights_state, say)
            state = with_weights(state, shardings, saved, start_from, copies, keep)
        say(f"case 3: weights of {config.weights}, all else new")
    return state, NOTHING_READ


def go_on(
    manager: CheckpointManager,
    abstract: TrainState,
    shardings: PyTree,
    say: Callable[[str], None],
    course: Course | None = None,
) -> tuple[TrainState, Position]:
    """The state of the newest checkpoint that is whole, and where the data goes on; what `course`
    changes is said. Errors: as `begin`.
    """
    state, position = manager.restore(with_shardings(abstract, shardings))
    if course is None:
        return state, position
    step = position["next_step"]
    here, lines = course.after(manager.metadata(step).get("config", {}), step)
    for line in lines:
        say(line)
    if here != step:
        change = jax.jit(
            partial(renumbered, step=here, course=course), out_shardings=shardings, donate_argnums=0
        )
        state, position = change(state), position | {"next_step": here}
    return state, position


def with_weights(
    state: TrainState,
    shardings: TrainState,
    saved: SavedState,
    start_from: StartFrom | None = None,
    copies: Copies = (),
    keep: Callable[[str], None] | None = None,
) -> TrainState:
    """A fresh state with the parameters of a checkpoint, and what `start_from` takes of its
    method state. copies, keep: see `begin`.
    """
    weights = saved.restore("params", state.params, shardings.params)
    params, report = adapt(weights, state.params, copies)
    saved.say(str(report))
    if keep is not None:
        keep(report.account())
    params = _place(params, shardings.params)
    method_state = state.method_state
    if start_from is not None:
        method_state = start_from(params, method_state, saved)
    method_state = _place(method_state, shardings.method_state)
    return replace(state, params=params, method_state=method_state)


@dataclass(frozen=True)
class SavedState:
    """The state of a checkpoint that another run starts from; see `methods.method.Saved`."""

    manager: CheckpointManager
    shardings: TrainState
    whole: bool
    say: Callable[[str], None]

    def entry(self, name: str) -> Any | None:
        """An entry of the method state as it was saved, or None."""
        try:
            return self.manager.restore_part(f"method_state/{name}")
        except MissingPart:
            return None

    def fitted(self, name: str, like: Params) -> Params:
        """An entry whose arrays are named as parameters, fitted to the sizes of `like`."""
        places = self.shardings.method_state.get(name, {})
        try:
            saved = self.restore(f"method_state/{name}", like, places)
        except MissingPart:
            self.say(f"these weights have no {name}: it starts as the student")
            return like
        tree, report = adapt(saved, like)
        self.say(f"{name}: {report}")
        return tree

    def restore(self, part: str, wanted: PyTree, shardings: PyTree) -> Params:
        """A part of the state, each array where that of its name lives; others whole everywhere."""
        shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(wanted).items()}
        places = named_leaves(shardings)
        whole = NamedSharding(jax.tree.leaves(self.shardings)[0].mesh, PartitionSpec())

        def place(saved: Shapes) -> Params:
            leaves = {}
            for name, (shape, dtype) in saved.items():
                where = places.get(name, whole) if shape == shapes.get(name) else whole
                leaves[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=where)
            return nest(leaves)

        return self.manager.restore_part(part, place)


def _open(workdir: str, say: Callable[[str], None]) -> CheckpointManager:
    return CheckpointManager(as_path(workdir) / CHECKPOINTS, read_only=True, say=say)


def _place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every process has whole, as arrays on the mesh."""

    def place(leaf: Any, sharding: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree, shardings)
