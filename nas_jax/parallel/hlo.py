"""What a compiled program tells: collectives with their bytes, and the compiler's cycle estimates.

Reads the text of an optimised XLA module (`compiled.as_text()`). Cycle estimates are libtpu's, one
a fusion; programs for other hardware have none. They leave out the time of collectives and of
custom calls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

# name of fusions for TPUs in which each device keeps its part of a sum
SCATTERED = "all-reduce-scatter"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_LIMIT = re.compile(r"^\s+%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"^\s+ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclass(frozen=True)
class Collective:
    """One collective operation of a step."""

    kind: str
    shape: str  # of the result on one device, e.g. bf16[512,257,768]
    dims: tuple[tuple[int, ...], ...]
    bytes: float  # of the result on one device
    wire_bytes: float  # that each device sends, over all runs in a step; ring algorithms
    group: int  # devices that take part
    times: int  # runs in a step
    branch: bool  # inside a conditional: not in every step
    source: str  # the operation of the program it comes from


@dataclass(frozen=True)
class Operation:
    """One fusion (or single operation) with the compiler's estimate."""

    source: str
    cycles: float  # over all runs in a step
    kind: str


@dataclass(frozen=True)
class Program:
    """Everything read from one module."""

    collectives: tuple[Collective, ...]
    operations: tuple[Operation, ...]  # with an estimate, those in conditionals left out
    unestimated: int  # custom calls without one
    unknown_loops: int = 0  # loops whose length is not in the text, counted once

    @property
    def cycles(self) -> float:
        """Sum of the estimates."""
        return sum(operation.cycles for operation in self.operations)


def read_program(text: str) -> Program:
    """Reads a module."""
    computations, entry = _split(text)
    runs = _runs(computations, entry)
    collectives: dict[object, Collective] = {}
    operations, unestimated = [], 0
    for name, lines in computations.items():
        for line in lines:
            for kind, collective in _collectives(
                line, *runs.get(name, (0, False)), name.startswith(SCATTERED)
            ):
                # The pieces of one asynchronous collective share its channel.
                channel = re.search(r"channel_id=(\d+)", line)
                collectives.setdefault((kind, channel[1]) if channel else object(), collective)
        if name not in runs or runs[name][1]:
            continue
        times = runs[name][0]
        for line in lines:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
            if cycles:
                operations.append(Operation(_source(line), times * float(cycles[1]), _opcode(line)))
            elif " custom-call(" in line:
                unestimated += times
    unknown = sum(
        " while(" in line and _trips(line, computations) is None
        for name in runs
        for line in computations[name]
    )
    return Program(tuple(collectives.values()), tuple(operations), unestimated, unknown)


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return computations, entry


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, tuple[int, bool]]:
    """Computation -> (runs in a step, whether inside a conditional); no fused ones."""
    runs: dict[str, tuple[int, bool]] = {}

    def visit(name: str, times: int, branch: bool) -> None:
        if name not in computations:
            return
        before = runs.get(name, (0, True))
        runs[name] = (before[0] + times, before[1] and branch)
        for line in computations[name]:
            opcode = _opcode(line)
            for attribute, names in _CALLED.findall(line):
                if opcode == "fusion" or attribute == "to_apply" and opcode != "call":
                    continue
                trips = 1
                if attribute in ("body", "condition"):
                    trips = _trips(line, computations) or 1
                for called in re.findall(r"[\w.\-]+", names):
                    visit(called, times * trips, branch or attribute == "branch_computations")

    visit(entry, 1, False)
    return runs


def _trips(line: str, computations: dict[str, list[str]]) -> int | None:
    """How often a loop runs: as the compiler notes, else (TPUs) by the limit in its condition.

    The loops of JAX with a length count from 0 in ones.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    limits = {found[1]: int(found[2]) for found in map(_LIMIT.match, lines) if found}
    for found in map(_BELOW.search, lines):
        if found and found[1] in limits:
            return limits[found[1]]
    return None


def _opcode(line: str) -> str:
    """`fusion` of `%x = f32[2]{0} fusion(...)`."""
    found = re.search(r"[\])}] ([a-z][\w\-]*)\(", line)
    return found[1] if found else ""


def _source(line: str) -> str:
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1] if found else (_INSTRUCTION.match(line) or ["", line.strip()[:60]])[1]


def _collectives(
    line: str, times: int, branch: bool, scattered: bool
) -> Iterator[tuple[str, Collective]]:
    opcode = _opcode(line)
    kind = opcode.removesuffix("-start")
    if kind not in KINDS:
        return
    arrays = [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _ARRAY.findall(line.split(f" {opcode}(")[0].split(" = ", 1)[1])
        if dtype in _BYTES
    ]
    if opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        arrays = arrays[len(arrays) // 2 :]  # (operands, results)
    group = _group(line)
    if scattered and kind == "all-reduce":
        kind, arrays = (
            "reduce-scatter",
            [(dtype, (dims[0] // group, *dims[1:])) for dtype, dims in arrays],
        )
    size = sum(_BYTES[dtype] * math.prod(dims) for dtype, dims in arrays)
    share = {
        "all-gather": (group - 1) / group,
        "all-reduce": 2 * (group - 1) / group,
        "reduce-scatter": group - 1,
        "all-to-all": (group - 1) / group,
        "collective-permute": 1,
    }[kind]
    shape = " ".join(f"{dtype}[{','.join(map(str, dims))}]" for dtype, dims in arrays)
    times = max(times, 1)
    yield (
        kind,
        Collective(
            kind,
            shape,
            tuple(dims for _, dims in arrays),
            size,
            size * share * times,
            group,
            times,
            branch,
            _source(line),
        ),
    )


def _group(line: str) -> int:
    """Devices of a group, from any of the three ways to write replica groups."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    if "source_target_pairs" in line:
        return 2
    if "replica_groups={}" in line or "replica_groups" not in line:
        return 1
    raise ValueError(
        f"replica groups in a form that is not known: {line.split('replica_groups', 1)[1][:80]}"
    )
