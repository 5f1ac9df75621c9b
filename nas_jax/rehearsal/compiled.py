"""The training step of a run, compiled for hardware that need not be there.

Nothing is run and no data is read: memory, operations and collectives are facts of the compiled
program; times are predictions from the compiler's cycle estimates and are called so.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from nas_jax.config import RunConfig, mesh_of
from nas_jax.data.readers import batch_spec
from nas_jax.methods import make_method
from nas_jax.methods.method import Method, Setting
from nas_jax.parallel.hlo import Program, read_program
from nas_jax.parallel.mesh import batch_sharding
from nas_jax.parallel.rules import placements, state_shardings, with_shardings
from nas_jax.parallel.topology import Chip, topology_devices
from nas_jax.train.config import TrainConfig
from nas_jax.train.machine import matmul_flops
from nas_jax.train.optimizer import make_optimizer
from nas_jax.train.state import init_state
from nas_jax.train.step import make_train_step, sharded_step
from nas_jax.typing import PyTree, Vocabulary

STEPS_PER_EPOCH = 1000  # any: which stages a run has depends on its epochs alone


@dataclass(frozen=True)
class Rehearsal:
    """What the compiler says about one step."""

    topology: str
    devices: int
    mesh: dict[str, int]
    batch: int
    fits: bool
    state_bytes: int  # of the state on a device
    arguments_bytes: float = 0  # on a device, as are all below
    temporaries_bytes: float = 0
    peak_bytes: float = 0
    capacity_bytes: float = 0  # 0 where unknown
    flops: float = 0
    predicted_seconds: float = 0  # 0 where there are no estimates
    predicted_mfu: float = 0
    wire_bytes: float = 0
    compile_seconds: float = 0
    effort: str = "full"
    stage: str = ""  # that was compiled; "" where the method has but one
    stages: int = 1  # of the run
    program: Program | None = None

    def summary(self) -> dict[str, Any]:
        """Plain values, without the program."""
        return {name: value for name, value in asdict(self).items() if name != "program"}


EFFORTS = {"full": {}, "quick": {"exec_time_optimization_effort": -1.0}}
"""Compiler options. Quick takes a tenth of the time and is right about operations and collectives;
the program needs somewhat more memory and several times as long, so that its cycle estimates are no
prediction."""


def rehearse(run: RunConfig, topology: str, effort: str = "full") -> Rehearsal:
    """Compiles the step of a run in its largest stage. effort: a row of EFFORTS."""
    devices, chip = topology_devices(topology)
    mesh = mesh_of(run, devices)
    abstract = abstract_step(run, mesh)
    placed = placements(abstract.state, mesh, abstract.method.sharding)
    stages = traced_stages(abstract, run.train, mesh)
    stage, traced = largest(stages)
    known: dict[str, Any] = {
        "topology": topology,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch": run.data.batch_size,
        "state_bytes": sum(row.bytes_per_device for row in placed),
        "capacity_bytes": chip.hbm_bytes if chip else 0,
        "effort": effort,
        "stage": str(stage) if len(stages) > 1 else "",
        "stages": len(stages),
    }
    began = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = traced.lower()
    try:
        compiled = lowered.compile(compiler_options=EFFORTS[effort] if chip else None)
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        return Rehearsal(**known | {"capacity_bytes": needed[1]}, fits=False, peak_bytes=needed[0])
    return _measured(compiled, known, chip, time.monotonic() - began)


def _measured(compiled: Any, known: dict[str, Any], chip: Chip | None, seconds: float) -> Rehearsal:
    memory, program = compiled.memory_analysis(), read_program(compiled.as_text())
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    predicted = program.cycles / chip.clock_hz if chip and known["effort"] == "full" else 0.0
    flops = costs.get("flops", 0.0)
    return Rehearsal(
        **known,
        fits=not known["capacity_bytes"] or peak <= known["capacity_bytes"],
        arguments_bytes=memory.argument_size_in_bytes,
        temporaries_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        flops=flops,
        predicted_seconds=predicted,
        predicted_mfu=flops / predicted / chip.peak_flops if chip and predicted else 0.0,
        wire_bytes=sum(found.wire_bytes for found in program.collectives if not found.branch),
        compile_seconds=seconds,
        program=program,
    )


class AbstractStep(NamedTuple):
    """A training step on a mesh, as shapes with their places."""

    state: PyTree
    batch: PyTree
    step: Any  # the jitted step
    method: Method


def abstract_step(run: RunConfig, mesh: Mesh) -> AbstractStep:
    """The step of a run without its data and its tokenizer."""
    method = planned_method(run)
    optimizer, schedule = make_optimizer(run.optimizer, _total_steps(run), STEPS_PER_EPOCH)
    abstract = jax.eval_shape(lambda: init_state(method, optimizer, run.seed))
    shardings = state_shardings(abstract, mesh, method.sharding)
    step = sharded_step(make_train_step(method, optimizer, schedule), mesh, shardings)
    rows = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
        for name, array in batch_spec(run.data, run.data.batch_size, method.wants).items()
    }
    return AbstractStep(with_shardings(abstract, shardings), batch, step, method)


def traced_stages(abstract: AbstractStep, config: TrainConfig, mesh: Mesh) -> dict[Hashable, Any]:
    """Each stage that a run goes through, and its step, traced.

    Without the data it is not known how many epochs a number of steps is; a run of `train.steps`
    is then taken to be long enough for all stages.
    """
    total = math.inf if config.steps else max(1, config.epochs * STEPS_PER_EPOCH)
    stages = [
        abstract.method.stage(start) for start in abstract.method.stage_starts() if start < total
    ]
    with jax.set_mesh(mesh):
        return {
            stage: abstract.step.jitted.trace(abstract.state, abstract.batch, stage)
            for stage in stages
        }


def largest(stages: dict[Hashable, Any]) -> tuple[Hashable, Any]:
    """The stage whose traced step has the most operations, and that step."""
    return max(stages.items(), key=lambda item: matmul_flops(item[1].jaxpr.jaxpr))


def _total_steps(run: RunConfig) -> int:
    return run.train.total_steps(STEPS_PER_EPOCH)


def planned_method(run: RunConfig) -> Method:
    """The method without a tokenizer: which words may be replaced changes no shape."""
    learned = 30522 if "bert" in run.data.tokenizer else run.data.vocab_size
    vocabulary = Vocabulary.blank(run.model.vocab_size or learned)
    pieces = run.train.accumulate
    setting = Setting(vocabulary, _total_steps(run), STEPS_PER_EPOCH, pieces)
    return make_method(run.method, run.model, setting)


def out_of_memory(message: str) -> tuple[float, float] | None:
    """(needed, capacity) in bytes from the compiler's error, or None if it is about something
    else.
    """
    found = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
    if not found:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]
