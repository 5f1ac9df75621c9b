"""What the compiler says of a step, as a person reads it."""

from __future__ import annotations

import math
import re
from collections import defaultdict

from nas_jax.config import RunConfig
from nas_jax.parallel.hlo import Collective, Program
from nas_jax.parallel.mesh import BATCH
from nas_jax.rehearsal.compiled import Rehearsal


def format_report(run: RunConfig, result: Rehearsal) -> str:
    """The result as lines for the terminal."""
    program = result.program
    if program is None:
        quickly = "" if result.effort == "full" else " when compiled quickly"
        verdict = (
            f"does not fit{quickly}: the compiler needs {_gigabytes(result.peak_bytes)}"
            f"{_capacity(result)}, {_gigabytes(result.state_bytes)} of it for the state"
        )
        return "\n".join([*_head(run, result), verdict, *_what_helps(run, result)])
    lines = [
        *_head(run, result),
        *_memory_lines(run, result),
        *_speed_lines(run, result, program),
        f"compiled in        {result.compile_seconds:.0f} s",
        _image_token_line(run, result, program),
        "",
        *_collective_lines(program),
        "",
        *_operation_lines(program),
    ]
    return "\n".join(lines)


def _head(run: RunConfig, result: Rehearsal) -> list[str]:
    sizes = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    lines = [
        f"{run.name} on {result.topology}: {result.devices} devices, mesh {sizes}, "
        f"{result.batch / _row_devices(result):g} pairs each"
    ]
    if result.stage:
        lines.append(f"stage              {result.stage}, the largest of {result.stages}")
    return lines


def _memory_lines(run: RunConfig, result: Rehearsal) -> list[str]:
    verdict = "this device does not say its size"
    if result.capacity_bytes:
        verdict = "fits" if result.fits else "DOES NOT FIT"
    lines = [
        f"memory a device    peak {_gigabytes(result.peak_bytes)}{_capacity(result)}: {verdict}",
        f"                   arguments {_gigabytes(result.arguments_bytes)} "
        f"(state {_gigabytes(result.state_bytes)}), "
        f"temporaries {_gigabytes(result.temporaries_bytes)}",
    ]
    return lines if result.fits else lines + _what_helps(run, result)


def _speed_lines(run: RunConfig, result: Rehearsal, program: Program) -> list[str]:
    """Operations, and the time that the compiler predicts."""
    pairs = result.batch / result.devices
    looped = run.train.accumulate > 1 or run.model.scan_layers
    counted = (
        "not counted: the compiler counts the body of a loop once"
        if looped
        else f"{result.flops / pairs / 1e9:.4g} GFLOP a pair, counted in the compiled program"
    )
    lines = [f"operations         {counted}"]
    if result.predicted_seconds:
        mfu = "" if looped else f", MFU {result.predicted_mfu:.1%}"
        lines.append(
            f"PREDICTED          {result.predicted_seconds * 1e3:.1f} ms a step, "
            f"{pairs / result.predicted_seconds:.0f} pairs/s a chip{mfu} "
            "(sum of the compiler's cycle estimates; without collectives and "
            f"{program.unestimated} custom calls)"
        )
    elif result.effort == "quick":
        lines.append(
            "not predicted      --compile_effort=full predicts the time; the memory above is a "
            "little too high"
        )
    if unknown := program.unknown_loops:
        lines.append(f"                   {unknown} loops of unknown length counted once")
    return lines


def _image_token_line(run: RunConfig, result: Rehearsal, program: Program) -> str:
    moving = moves_image_tokens(program, run.model.num_patches)
    if not moving:
        return "image tokens       none crosses the interconnect"
    advice = run.method.mesh_advice(_row_devices(result))
    return f"image tokens       {len(moving)} collectives move them" + (advice and f": {advice}")


def _what_helps(run: RunConfig, result: Rehearsal) -> list[str]:
    return ["what helps:", *(f"  {line}" for line in remedy(run, result))]


def _row_devices(result: Rehearsal) -> int:
    """Devices that the rows of a batch are split over."""
    return math.prod(result.mesh[axis] for axis in BATCH)


def _capacity(result: Rehearsal) -> str:
    return f" of {_gigabytes(result.capacity_bytes)}" if result.capacity_bytes else ""


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
    pairs = result.batch // _row_devices(result)
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
    for (kind, shape, branch), equal in ordered[:16]:
        sent = sum(one.wire_bytes for one in equal) / 1e6
        seldom = "  (inside a condition: not in every step)" if branch else ""
        lines.append(
            f"  {kind:<18} {shape:<44} {sum(one.times for one in equal):>4} {sent:>10.3f}{seldom}"
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
