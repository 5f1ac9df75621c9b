from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nas_jax.checkpoint.digest import digests

ARRAY = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def digest(array):
    return digests({"x": jnp.asarray(array)})["x"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_same_on_any_mesh(dtype):
    array = jnp.asarray(ARRAY * 100).astype(dtype)
    alone = digest(array)
    assert len(alone) == 16 and int(alone, 16)
    assert digests({"x": np.asarray(array)})["x"] == alone  # in memory
    for shape, spec in [
        ((4, 1), ("a",)),
        ((2, 2), ("a", "b")),
        ((2, 2), (None, "b")),
        ((4, 1), ()),
    ]:
        mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        assert digest(jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))) == alone
    assert digests({"a": {"b": array}}) == {"a/b": alone}


def test_no_data_crosses_the_mesh():
    from nas_jax.checkpoint.digest import _sums

    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    array = jax.device_put(jnp.zeros((64, 32)), NamedSharding(mesh, PartitionSpec("a")))
    moved = [
        line for line in _sums.lower(array).compile().as_text().splitlines() if " all-" in line
    ]
    # one word a device
    assert moved and all("u32[4,1]" in line or "u32[]" in line for line in moved)


def test_every_flipped_bit_is_seen():
    rng = np.random.default_rng(1)
    right = digest(ARRAY)
    for bit in range(32):
        for place in rng.choice(ARRAY.size, 8, replace=False):
            changed = ARRAY.view(np.uint32).copy()
            changed.flat[place] ^= np.uint32(1 << bit)
            assert digest(changed.view(np.float32)) != right
    zeros = np.zeros(3, np.float32)
    assert digest(-zeros) != digest(zeros)


def test_in_memory_by_chunks(monkeypatch):
    monkeypatch.setattr("nas_jax.checkpoint.digest._CHUNK", 7)
    for array in (
        ARRAY,
        ARRAY.T,
        np.float32(3.5),
        np.zeros((0, 3), np.int32),
        np.arange(5, dtype=np.int8),
    ):
        assert digests({"x": np.asarray(array)})["x"] == digest(array)


def test_order_shape_and_dtype_count():
    swapped = ARRAY.copy()
    swapped[[0, 5]] = swapped[[5, 0]]
    others = [
        swapped,
        ARRAY.T,
        ARRAY.reshape(6, 8),
        ARRAY.view(np.int32),
        ARRAY[None],
        ARRAY[:7],
        np.zeros((0, 3)),
    ]
    others += [
        np.zeros(4, np.int32),
        np.zeros(4, np.float32),
        np.zeros(5, np.float32),
        np.float32(0),
        np.int32(0),
    ]
    assert len({digest(array) for array in [ARRAY, *others]}) == len(others) + 1


def test_the_digest_of_a_known_array_never_changes():
    """Checkpoints hold these: another digest would make all of them look damaged."""
    assert digest(np.arange(6, dtype=np.float32).reshape(2, 3)) == "7b19ae80750c8d38"
    assert digest(jnp.arange(6, dtype=jnp.bfloat16)) == "a071cb061086f0d3"
