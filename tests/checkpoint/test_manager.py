from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.utils.errors import CheckpointError


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    method_state: dict
    rng: jax.Array


def make_state(seed=0, width=3, dtype=jnp.float32):
    rng = jax.random.key(seed)
    params = {"layer": {"kernel": jax.random.normal(rng, (2, width), dtype)}, "temp": jnp.float32(0.07)}
    method_state = {"queue": jax.random.normal(rng, (4, 2), jnp.bfloat16), "teacher": None, "pointer": jnp.int32(seed)}
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return State(jnp.int32(seed), params, opt_state, method_state, jax.random.key_data(rng))


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b)


@pytest.fixture
def saved(tmp_path):
    """A directory with checkpoints 1 and 2 out of 0, 1, 2."""
    with CheckpointManager(tmp_path / "checkpoints", keep=2) as manager:
        for step in range(3):
            manager.save(step, make_state(step), {"next_step": step, "skipped": 7}, {"config": {"seed": step}})
    return tmp_path / "checkpoints"


def test_round_trip_is_bit_exact(saved):
    (saved / "3.orbax-checkpoint-tmp").mkdir()  # what a kill during a save leaves
    with CheckpointManager(saved) as manager:
        assert manager.latest_step() == 2
        for step in (1, 2):
            state, position = manager.restore(abstract(make_state()), step)
            assert_same(state, make_state(step))
            assert position == {"next_step": step, "skipped": 7}
            assert manager.metadata(step) == {"config": {"seed": step}}
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]


def test_a_saved_state_may_be_overwritten_at_once(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    big = {"w": jnp.arange(4_000_000, dtype=jnp.float32)}
    shape = abstract(big)
    with CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(1, big, {"next_step": 1}, {})
        overwritten = overwrite(big)
        state, _ = manager.restore(shape, 1)
    assert overwritten["w"][5] == -1
    np.testing.assert_array_equal(state["w"], np.arange(4_000_000, dtype=np.float32))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (make_state(width=5), r"kernel is float32\[2, 3\] there and float32\[2, 5\] here and 2 more"),
        (make_state(dtype=jnp.bfloat16), r"kernel is float32\[2, 3\] there and bfloat16\[2, 3\] here"),
        (make_state().replace(method_state={}), r"method_state/pointer is int32\[\] there and absent here"),
    ],
)
def test_another_state_is_refused_by_name(saved, state, message):
    with CheckpointManager(saved, read_only=True) as manager, pytest.raises(CheckpointError, match=message):
        manager.restore(abstract(state))


def test_a_damaged_checkpoint_is_one_line(saved):
    for path in (saved / "2/state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    with CheckpointManager(saved) as manager:
        with pytest.raises(CheckpointError, match="checkpoint 2 in checkpoints/ cannot be read") as error:
            manager.restore(abstract(make_state()))
        assert "\n" not in str(error.value) and "delete checkpoints/2" in str(error.value)


def test_nothing_to_restore(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints in"):
        CheckpointManager(tmp_path / "absent", read_only=True)
    with CheckpointManager(tmp_path / "empty") as manager, pytest.raises(CheckpointError, match="train first"):
        manager.restore(abstract(make_state()))


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a writable directory"):
        CheckpointManager(tmp_path / "file" / "checkpoints")
