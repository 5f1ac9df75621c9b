"""`--mode=compile`: the training step compiled for hardware that need not be there, and what the
compiler says of it.

Outermost layer, beside `runner.py`. Nothing is run and no data is read: memory, operations and
collectives are facts of the compiled program; times are predictions from the compiler's cycle
estimates and are called so.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from nas_jax.config import RunConfig, to_dict
from nas_jax.data.readers import batch_spec
from nas_jax.methods import make_method
from nas_jax.methods.method import Method, Setting
from nas_jax.parallel.hlo import Collective, Program, read_program
from nas_jax.parallel.mesh import batch_sharding, check_divisible, make_mesh
from nas_jax.parallel.rules import placements, state_shardings, with_shardings
from nas_jax.parallel.topology import Chip, topology_devices
from nas_jax.train.machine import matmul_flops
from nas_jax.train.optimizer import make_optimizer
from nas_jax.train.state import init_state
from nas_jax.train.step import make_train_step, sharded_step
from nas_jax.typing import PyTree, Vocabulary
from nas_jax.utils.logging import Console

STEPS_PER_EPOCH = 1000  # any: what is compiled depends on the stage, and that on epochs


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
    stage: str = ""  # of the method, where it has several
    program: Program | None = None

    def summary(self) -> dict[str, Any]:
        """Plain values, without the program."""
        return {name: value for name, value in asdict(self).items() if name != "program"}


EFFORTS = {"full": {}, "quick": {"exec_time_optimization_effort": -1.0}}
"""Compiler options. Quick takes a tenth of the time and is right about operations and collectives;
the program needs somewhat more memory and several times as long, so that its cycle estimates are no
prediction."""


def compile_step(
    run: RunConfig, topology: str, workdir: Path | None = None, effort: str = "full"
) -> int:
    """Compiles, prints the report and writes it to WORKDIR/compile-TOPOLOGY.json.

    Returns 0 if it fits, else 1.
    """
    console = Console()
    wait = {"full": "tens of minutes for a base model", "quick": "minutes for a base model"}[effort]
    console.say(f"compiling the step of {run.name} for {topology}: {wait}")
    result = rehearse(run, topology, effort)
    console.say(report(run, result))
    if workdir:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / f"compile-{topology.replace(':', '-')}.json"
        path.write_text(json.dumps(result.summary() | {"config": to_dict(run)}, indent=1) + "\n")
        console.say(f"written to {path}")
    return 0 if result.fits else 1


def rehearse(run: RunConfig, topology: str, effort: str = "full") -> Rehearsal:
    """Compiles the step of a run in its largest stage. effort: a row of EFFORTS."""
    devices, chip = topology_devices(topology)
    mesh = make_mesh(run.mesh, devices)
    check_divisible(run.data.batch_size, mesh, run.train.accumulate)
    abstract = abstract_step(run, mesh)
    placed = placements(abstract.state, mesh, abstract.method.sharding)
    stage, traced = largest_stage(abstract, _total_steps(run), mesh)
    known = {
        "topology": topology,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch": run.data.batch_size,
        "state_bytes": sum(row.bytes_per_device for row in placed),
        "capacity_bytes": chip.hbm_bytes if chip else 0,
        "effort": effort,
        "stage": "" if stage is None else str(stage),
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

    def traced(self, stage: Hashable, mesh: Mesh) -> Any:
        """The step of a stage, traced."""
        with jax.set_mesh(mesh):
            return self.step.jitted.trace(self.state, self.batch, stage)


def abstract_step(run: RunConfig, mesh: Mesh) -> AbstractStep:
    """The step of a run without its data and its tokenizer."""
    method = _method(run)
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


def largest_stage(abstract: AbstractStep, total_steps: int, mesh: Mesh) -> tuple[Hashable, Any]:
    """The stage of a run with the most operations, and its traced step."""
    method = abstract.method
    starts = [step for step in method.stage_starts() if step < max(total_steps, 1)]
    traced = {stage: abstract.traced(stage, mesh) for stage in map(method.stage, starts)}
    return max(traced.items(), key=lambda item: matmul_flops(item[1].jaxpr.jaxpr))


def _total_steps(run: RunConfig) -> int:
    return run.train.total_steps(STEPS_PER_EPOCH)


def _method(run: RunConfig) -> Method:
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


# --------------------------------------------------------------------------------------- the report


def report(run: RunConfig, result: Rehearsal) -> str:
    """The result as a person reads it."""
    rows = math.prod(result.mesh[axis] for axis in ("data", "fsdp"))
    sizes = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    head = (
        f"{run.name} on {result.topology}: {result.devices} devices, mesh {sizes}, "
        f"{result.batch / rows:g} pairs each"
    )
    if result.stage:
        head += f"\nstage              {result.stage}"
    capacity = f" of {_gigabytes(result.capacity_bytes)}" if result.capacity_bytes else ""
    if not result.program:
        remedies = "\n".join(f"  {line}" for line in remedy(run, result))
        quickly = "" if result.effort == "full" else " when compiled quickly"
        return (
            f"{head}\ndoes not fit{quickly}: the compiler needs "
            f"{_gigabytes(result.peak_bytes)}{capacity}, "
            f"{_gigabytes(result.state_bytes)} of it for the state\nwhat helps:\n{remedies}"
        )
    verdict = (
        ("fits" if result.fits else "DOES NOT FIT")
        if result.capacity_bytes
        else "this device does not say its size"
    )
    lines = [
        head,
        f"memory a device    peak {_gigabytes(result.peak_bytes)}{capacity}: {verdict}",
        f"                   arguments {_gigabytes(result.arguments_bytes)} (state "
        f"{_gigabytes(result.state_bytes)}), "
        f"temporaries {_gigabytes(result.temporaries_bytes)}",
    ]
    if not result.fits:
        lines += ["what helps:", *(f"  {line}" for line in remedy(run, result))]
    pairs = result.batch / result.devices
    looped = run.train.accumulate > 1 or run.model.scan_layers
    if not looped:
        lines.append(
            f"operations         {result.flops / pairs / 1e9:.4g} GFLOP a pair, counted in the "
            "compiled program"
        )
    else:
        lines.append("operations         not counted: the compiler counts the body of a loop once")
    if result.predicted_seconds:
        left_out = f"; without collectives and {result.program.unestimated} custom calls"
        lines.append(
            f"PREDICTED          {result.predicted_seconds * 1e3:.1f} ms a step, "
            f"{pairs / result.predicted_seconds:.0f} pairs/s a chip"
            + ("" if looped else f", MFU {result.predicted_mfu:.1%}")
            + f" (sum of the compiler's cycle estimates{left_out})"
        )
    elif result.effort == "quick":
        lines.append(
            "not predicted      --compile_effort=full predicts the time; the memory above is a "
            "little too high"
        )
    if result.program.unknown_loops:
        lines.append(
            f"                   {result.program.unknown_loops} loops of unknown length counted "
            "once"
        )
    lines.append(f"compiled in        {result.compile_seconds:.0f} s")
    moving = moves_image_tokens(result.program, run.model.num_patches)
    lines.append(
        f"image tokens       {len(moving)} collectives move them: "
        f"--config.method.itm.mining_shards={rows}"
        if moving
        else "image tokens       none crosses the interconnect"
    )
    return "\n".join(
        [*lines, "", *_collective_lines(result.program), "", *_operation_lines(result.program)]
    )


def moves_image_tokens(program: Program, patches: int) -> list[Collective]:
    """The collectives of a batch of image tokens, or of their keys and values: (rows, tokens,
    ...).
    """
    lengths = (patches, patches + 1)
    return [
        found
        for found in program.collectives
        if any(
            len(dims) > 2 and dims[0] > 1 and set(lengths) & set(dims[1:-1]) for dims in found.dims
        )
    ]


def remedy(run: RunConfig, result: Rehearsal) -> list[str]:
    """Settings that would lower the memory, the mildest first, each with what it saves."""
    pairs = result.batch // math.prod(result.mesh[axis] for axis in ("data", "fsdp"))
    activations = result.peak_bytes - result.state_bytes
    lines = []
    if run.model.remat == "none":
        lines.append(
            "--config.model.remat=dots    keeps only what the projections give, computes "
            "attention again"
        )
    if run.model.remat != "full":
        lines.append(
            "--config.model.remat=full    keeps one array a layer; about a third more operations"
        )
    if result.state_bytes > 0.2 * result.peak_bytes and result.mesh["data"] > 1:
        parts = min(8, result.mesh["data"])
        saved = result.state_bytes * (1 - 1 / parts)
        lines.append(
            f"--config.mesh.fsdp={result.mesh['fsdp'] * parts}        saves about "
            f"{_gigabytes(saved)} of the state"
        )
    pieces = 2 * run.train.accumulate
    if pairs % pieces == 0:
        lines.append(
            f"--config.train.accumulate={pieces} the same numbers, activations near "
            f"{_gigabytes(activations / 2)}"
        )
    lines.append(
        f"--config.data.batch_size={max(1, result.batch // 2)} half of the "
        f"{_gigabytes(activations)} beside the state"
    )
    return lines


def _collective_lines(program: Program) -> list[str]:
    """Equal collectives together, the largest first."""
    groups = defaultdict(list)
    for found in program.collectives:
        first = found.shape.split(" ")
        shape = first[0] + (f" and {len(first) - 1} more" if len(first) > 1 else "")
        groups[found.kind, shape, found.branch].append(found)
    if not groups:
        return ["collectives        none"]
    lines = ["collectives        result, times a step, MB that a device sends"]
    ordered = sorted(groups.items(), key=lambda item: -sum(found.wire_bytes for found in item[1]))
    for (kind, shape, branch), found in ordered[:16]:
        sent = sum(one.wire_bytes for one in found) / 1e6
        seldom = "  (inside a condition: not in every step)" if branch else ""
        lines.append(
            f"  {kind:<18} {shape:<44} {sum(one.times for one in found):>4} {sent:>10.3f}{seldom}"
        )
    if len(ordered) > 16:
        lines.append(f"  ... and {len(ordered) - 16} smaller")
    total = sum(found.wire_bytes for found in program.collectives if not found.branch)
    lines.append(f"  in every step      {total / 1e6:.1f} MB sent a device")
    return lines


def _operation_lines(program: Program) -> list[str]:
    """Where the predicted time goes, by the part of the model."""
    if not program.operations:
        return ["no cycle estimates for this hardware"]
    cycles: dict[str, float] = defaultdict(float)
    for operation in program.operations:
        cycles[part_of(operation.source)] += operation.cycles
    lines = ["costliest parts    share of the predicted time"]
    for name, spent in sorted(cycles.items(), key=lambda item: -item[1])[:14]:
        lines.append(f"  {name:<58} {spent / program.cycles:>6.1%}")
    return lines


def part_of(source: str) -> str:
    """`image_encoder/block_*/mlp_in backward` of an operation's name."""
    backward = "transpose(" in source
    source = re.sub(r"/jvp\(([a-z_0-9]+)\)", r"/\1", source)
    parts = [part for part in source.split("/") if re.fullmatch(r"[a-z_0-9]+", part)]
    layered = [
        re.sub(r"_\d+$", "_*", part)
        for part in parts
        if part not in ("closed_call", "while", "body", "checkpoint")
    ]
    return "/".join(layered[:3] or ["other"]) + (" backward" if backward else "")


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2f} MiB"
