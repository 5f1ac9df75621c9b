"""What a run begins with. There are four cases, tried in this order:

1. continue this run: the work directory has a checkpoint;
2. continue another run: `train.continue_from` names its work directory, whose newest checkpoint is
   taken over whole, with optimizer, queues and the position in the data;
3. start from weights: `train.weights` names a work directory or a folder of converted weights
   (docs/conversion.md), of whose newest checkpoint the parameters are taken, and the dictionary if
   both have one, with `train.weights_state` the teacher and the queues too; the rest is new, and
   training begins at step 1;
4. start from nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.stored import Shapes, nest
from nas_jax.checkpoint.surgery import adapt, adapt_dictionary
from nas_jax.losses.itc import QueueState
from nas_jax.parallel.rules import with_shardings
from nas_jax.storage.paths import as_path
from nas_jax.train.config import TrainConfig
from nas_jax.train.state import TrainState
from nas_jax.train.workdir import CHECKPOINTS
from nas_jax.typing import Params, PyTree
from nas_jax.utils.errors import MissingPart
from nas_jax.utils.trees import named_leaves

Position = dict[str, Any]
NOTHING_READ: Position = {"next_step": 0, "skipped": 0}


def begin(
    config: TrainConfig,
    init_state: Callable[[], TrainState],
    shardings: PyTree,
    say: Callable[[str], None],
) -> tuple[TrainState, Position]:
    """The cases 2 to 4: the first state of a work directory without a checkpoint, and where the
    data goes on.

    Raises CheckpointError where the other run has no checkpoint that is whole, or another state.
    """
    if config.continue_from:
        with _open(config.continue_from, say) as manager:
            abstract = with_shardings(jax.eval_shape(init_state), shardings)
            state, position = manager.restore(abstract)
        say(f"case 2: going on from step {position['next_step']} of {config.continue_from}")
        return state, position
    state = jax.jit(init_state, out_shardings=shardings)()
    if config.weights:
        with _open(config.weights, say) as manager:
            state = with_weights(state, shardings, manager, say, config.weights_state)
        say(f"case 3: weights of {config.weights}, all else new")
    return state, NOTHING_READ


def with_weights(
    state: TrainState,
    shardings: TrainState,
    manager: CheckpointManager,
    say: Callable[[str], None],
    teacher_too: bool = False,
) -> TrainState:
    """A fresh state with the parameters of a checkpoint, a teacher equal to them, and its
    dictionary if it has one.

    teacher_too: the checkpoint's own teacher instead, and its queues where they have the size of
    this run's.
    """
    params, report = adapt(
        _restore(manager, "params", state.params, shardings.params), state.params
    )
    say(str(report))
    params = _place(params, shardings.params)
    groups, places = state.method_state.teacher, shardings.method_state.teacher
    teacher, queue = {name: params[name] for name in groups}, state.method_state.queue
    if teacher_too:
        teacher = _teacher(manager, teacher, places, say)
        queue = _queue(manager, queue, shardings.method_state.queue, say)
    teacher = jax.tree.map(jax.numpy.copy, _place(teacher, places))
    method_state = state.method_state.replace(teacher=teacher, queue=queue)
    if state.method_state.dictionary is not None:
        try:
            saved = manager.restore_params(which="dictionary")
        except MissingPart:
            say("these weights have no dictionary: it starts anew")
        else:
            codes = len(state.method_state.dictionary.counts_K)
            # past its start from data
            dictionary = adapt_dictionary(saved, codes).replace(step=np.int32(1))
            method_state = method_state.replace(
                dictionary=_place(dictionary, shardings.method_state.dictionary),
            )
    return state.replace(params=params, method_state=method_state)


def _teacher(
    manager: CheckpointManager, student: Params, shardings: PyTree, say: Callable[[str], None]
) -> Params:
    """The teacher of a checkpoint; what it lacks is the student's."""
    try:
        saved = _restore(manager, "teacher", student, shardings)
    except MissingPart:
        say("these weights have no teacher: it starts as the student")
        return student
    teacher, report = adapt(saved, student)
    say(f"teacher: {report}")
    return teacher


def _queue(
    manager: CheckpointManager, fresh: QueueState, shardings: PyTree, say: Callable[[str], None]
) -> QueueState:
    """The queues of a checkpoint if they have the shape of the fresh ones."""
    try:
        saved = QueueState(**manager.restore_params(which="queue"))
    except MissingPart:
        say("these weights have no queues: they start anew")
        return fresh
    if saved.image_QxE.shape != fresh.image_QxE.shape:
        say(
            f"these weights have queues of {list(saved.image_QxE.shape)}: those of this run start "
            "anew"
        )
        return fresh
    return _place(saved, shardings)


def _restore(manager: CheckpointManager, which: str, wanted: PyTree, shardings: PyTree) -> Params:
    """A part of a checkpoint, each array where the array of that name lives; what does not fit it,
    whole everywhere.
    """
    places = {
        name: (tuple(leaf.shape), sharding)
        for (name, leaf), sharding in zip(
            named_leaves(wanted).items(), jax.tree.leaves(shardings), strict=True
        )
    }
    whole = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())

    def place(saved: Shapes) -> Params:
        leaves = {}
        for name, (shape, dtype) in saved.items():
            wanted_shape, sharding = places.get(name, (None, whole))
            leaves[name] = jax.ShapeDtypeStruct(
                shape, dtype, sharding=sharding if shape == wanted_shape else whole
            )
        return nest(leaves)

    return manager.restore_params(place, which=which)


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
