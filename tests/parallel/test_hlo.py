"""What is read from a compiled program: checked on programs whose collectives are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from nas_jax.parallel.hlo import read_program
from nas_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, pin, replicated
from nas_jax.parallel.topology import topology_devices
from nas_jax.utils.errors import ConfigError


def program(function, *shapes):
    mesh = make_mesh(MeshConfig(data=4))
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh)) for shape in shapes
    ]
    with jax.set_mesh(mesh):
        return read_program(
            jax.jit(function, out_shardings=replicated(mesh)).lower(*arguments).compile().as_text()
        )


def test_bytes_of_an_all_gather_and_of_a_sum():
    (gathered,) = program(lambda x: x * 2, (8, 16)).collectives
    assert (gathered.kind, gathered.dims, gathered.group, gathered.times) == (
        "all-gather",
        ((8, 16),),
        4,
        1,
    )
    assert gathered.bytes == 8 * 16 * 4 and gathered.wire_bytes == gathered.bytes * 3 / 4
    summed = [
        found
        for found in program(lambda x: x.sum(0), (8, 16)).collectives
        if found.kind == "all-reduce"
    ]
    assert [found.wire_bytes for found in summed] == [16 * 4 * 2 * 3 / 4]


def test_loops_are_counted_and_conditions_marked():
    def looped(x):
        return jax.lax.fori_loop(
            0, 5, lambda _, y: pin(y + pin(y, None, None).sum(0), "data", None), x
        )

    found = program(looped, (8, 16)).collectives
    assert found and {collective.times for collective in found if len(collective.dims[0]) == 2} >= {
        5
    }

    def seldom(x):
        return jax.lax.cond(
            x.sum() > 0, lambda x: pin(x, None, None)[::-1] * 2, lambda x: pin(x * 3, None, None), x
        )

    gathered = [one for one in program(seldom, (8, 16)).collectives if one.kind == "all-gather"]
    assert gathered and all(one.branch for one in gathered)
    assert not any(one.branch for one in program(lambda x: x * 2, (8, 16)).collectives)


TEXT = """HloModule step
%fused (p: f32[8]) -> f32[8] {
  %inner = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"999"}
}
%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), calls=%fused, backend_config={"estimated_cycles":"100"}
  %g = bf16[4,8]{1,0} all-gather(%x), channel_id=7, \
replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}
}
%below (t: (s32[], f32[8])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit.1), direction=LT, metadata={op_name="while/cond/lt"}
}
%short (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %e = f32[8]{0} fusion(%x), calls=%fused, backend_config={"estimated_cycles":"7"}
}
%rare (t: f32[8]) -> f32[8] {
  %r = f32[8]{0} all-reduce(%x), channel_id=9, replica_groups={{0,1},{2,3}}, to_apply=%fused
  %s = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"5000"}
}
%all-reduce-scatter.1 (p: f32[8,4]) -> f32[2,4] {
  %z = f32[8,4]{1,0} all-reduce(%p), channel_id=11, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%fused
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %v = (s32[], f32[8]) while(%t), condition=%below, body=%short, metadata={op_name="while"}
  %u = (s32[], f32[8]) while(%t), condition=%unseen, body=%short, metadata={op_name="while"}
  %o = f32[8]{0} conditional(%p, %a, %b), branch_computations={%rare, %rare}
  %h = bf16[4,8]{1,0} all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  %q = f32[8]{0} custom-call(%x), custom_call_target="mystery"
  %k = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"30"}
}
"""


def test_cycles_times_trips_without_what_is_fused_or_seldom():
    read = read_program(TEXT)
    assert read.cycles == 12 * 100 + 30 + (3 + 1) * 7 and read.unestimated == 1
    assert read.unknown_loops == 1  # counted once
    gathered, reduced, scattered = read.collectives  # the two pieces of channel 7 are one
    assert (gathered.group, gathered.times, gathered.bytes, gathered.wire_bytes) == (
        4,
        12,
        64,
        64 * 0.75 * 12,
    )
    assert (reduced.group, reduced.branch, reduced.wire_bytes) == (2, True, 2 * 32 / 2 * 2)
    assert (scattered.kind, scattered.group, scattered.bytes, scattered.wire_bytes) == (
        "reduce-scatter",
        4,
        32,
        32 * 3,
    )
    with pytest.raises(ValueError, match="replica groups in a form"):
        read_program(TEXT.replace("[2,4]<=[8]", "new(2,4)"))


@pytest.mark.parametrize("name", ["v5e", "h100:8", "v5litepod-16"])
def test_a_topology_that_is_not_known(name):
    with pytest.raises(ConfigError, match=f"--topology={name}; expected local, or one of v5e"):
        topology_devices(name)
