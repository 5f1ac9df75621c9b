from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, PartitionSpec

from nas_jax.negatives.in_batch import allowed_negatives, draw_negative
from nas_jax.parallel.mesh import (
    MeshConfig,
    batch_sharding,
    check_divisible,
    make_mesh,
    put_batch,
    take_rows,
)
from nas_jax.parallel.rules import RULES, format_placements, placements, state_shardings
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.state import init_state
from nas_jax.utils.errors import ConfigError


def abstract_state():
    optimizer, _ = make_optimizer(OptimizerConfig(schedule="smooth"), 100, 10)
    return jax.eval_shape(lambda: init_state(tiny.method("nas"), optimizer, 0))


def test_a_batch_is_split_and_whole():
    mesh = make_mesh(MeshConfig(fsdp=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1} and set(mesh.axis_types) == {
        AxisType.Auto
    }
    image_BxD = np.arange(4 * mesh.size).reshape(-1, 2)
    batch = put_batch({"image_BxD": image_BxD}, mesh)
    np.testing.assert_array_equal(batch["image_BxD"], image_BxD)
    assert len({str(shard.index) for shard in batch["image_BxD"].addressable_shards}) == mesh.size


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ((1000, 1, 1), "mesh of data=1000.*at most the 4 devices"),
        ((0, 3, 1), "product divides the 4 devices"),
        ((1, 0, 1), "fsdp=0.*at least 1"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make(sizes, match):
    with pytest.raises(ConfigError, match=match):
        make_mesh(MeshConfig(*sizes))


def test_an_uneven_batch():
    mesh = jax.sharding.AbstractMesh((2, 2, 5), ("data", "fsdp", "tensor"))
    check_divisible(12, mesh)
    with pytest.raises(
        ConfigError,
        match="batch_size=10; expected a multiple of 4 .4 devices with rows.*use 8",
    ):
        check_divisible(10, mesh)
    with pytest.raises(ConfigError, match="a multiple of 12 .4 devices with rows, 3 pieces each"):
        check_divisible(16, mesh, pieces=3)


def test_every_array_of_the_state_has_its_place():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    state = abstract_state()
    rows = placements(state, mesh)
    by_name = {row.name: row for row in rows}
    qkv = "image_encoder/block_0/attention/qkv/kernel"
    for part in ("params", "method_state/teacher", "opt_state/0/mu", "opt_state/0/nu"):
        assert by_name[f"{part}/{qkv}"].spec == PartitionSpec("fsdp", None, "tensor", None), part
    assert by_name["method_state/queue/image_QxE"].spec == PartitionSpec()
    # The shares are those that the arrays really have.
    arrays = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state),
        out_shardings=state_shardings(state, mesh),
    )()
    held = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arrays)]
    assert held == [row.bytes_per_device for row in rows]
    whole = placements(state, make_mesh(MeshConfig(data=1)))
    assert sum(held) < 0.7 * sum(row.bytes_per_device for row in whole)
    table = format_placements(rows, mesh)
    assert f"{sum(held) / 1e6:.1f} MB of state a device" in table
    assert "image_encoder/block_*/attention/qkv/kernel" in table and "fsdp - tensor -" in table
    # What an axis does not divide stays whole, and says so.
    odd = placements({"mlp_in": {"kernel": jax.ShapeDtypeStruct((16, 3), jnp.float32)}}, mesh)[0]
    assert odd.spec == PartitionSpec("fsdp", None) and odd.whole == (1,)

    # A method's own rules come first; what else it keeps is whole, but a parameter has a rule.
    leaf = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    novel = {"params": {"novel": leaf}}
    with pytest.raises(ConfigError, match="the array params/novel of the state.*Method.sharding"):
        placements(novel, mesh)
    own = ((r"/novel$", ("fsdp", "tensor")),)
    assert placements(novel, mesh, own)[0].spec == PartitionSpec("fsdp", "tensor")
    kept = {"method_state": {"bank": leaf, "novel": leaf, "mean_E": leaf}}
    specs = {row.name: row.spec for row in placements(kept, mesh, own)}
    assert specs.pop("method_state/novel") == PartitionSpec("fsdp", "tensor")
    assert set(specs.values()) == {PartitionSpec()}
    placed = state_shardings(kept, mesh, own)["method_state"]
    assert placed["novel"].spec == PartitionSpec("fsdp", "tensor")


def test_no_rule_is_dead():
    names = " \n".join(
        row.name for row in placements(abstract_state(), make_mesh(MeshConfig(data=1)))
    )
    import re

    assert all(
        re.search(pattern.replace("$", r"(?= |$)"), names, re.MULTILINE) for pattern, _ in RULES
    )


def test_negatives_of_the_own_shard_stay_on_its_device():
    """The draw is that of blocks, whatever the mesh; and taking rows moves none between devices,
    unlike the global.
    """
    mesh, rng = make_mesh(), np.random.default_rng(0)
    logits_BxB = jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)
    allowed_BxB = allowed_negatives(jnp.arange(16), shards=4)
    index_B = draw_negative(jax.random.key(0), logits_BxB, allowed_BxB)
    assert (index_B // 4 == jnp.arange(16) // 4).all() and (index_B != jnp.arange(16)).all()
    tokens_BxTxD = jnp.asarray(rng.normal(size=(16, 5, 8)), jnp.float32)
    rows = batch_sharding(mesh)
    texts = {}
    for shards in (1, 4):
        with jax.set_mesh(mesh):
            take = jax.jit(
                lambda x, i, shards=shards: take_rows(x, i, shards),
                in_shardings=rows,
                out_shardings=rows,
            )
            compiled = take.lower(tokens_BxTxD, index_B).compile()
        taken = compiled(*(jax.device_put(x, rows) for x in (tokens_BxTxD, index_B)))
        np.testing.assert_array_equal(taken, tokens_BxTxD[index_B])
        texts[shards] = compiled.as_text()
    collectives = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    assert any(name in texts[1] for name in collectives)
    assert not any(name in texts[4] for name in collectives)
