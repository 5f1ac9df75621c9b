"""The costliest kernels of a training step, from a profile and without TensorBoard.

    python -m benchmarks.kernels --preset base --dtype bfloat16 --batch 128

Takes the options of benchmarks.step. Runs a few steps under jax.profiler and reads the trace that
it writes (*.trace.json.gz): on a GPU the kernels of all streams, elsewhere the operations of the
compiled program. Kernels of one name, up to their number, that compute the same part of the model
in any layer are one row; `part` is from the names in the compiled program, and ends in `backward`
for what was made from a transposed operation. Prints a table; --json FILE writes its numbers.
CUDA graphs are off meanwhile, so that each kernel is in the trace. Parallel kernels each count in
full, and on CPUs so does each thread: the sum may exceed the time of the step.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import step
from nas_jax.parallel.mesh import put_batch
from nas_jax.utils.errors import DataError, UserError
from nas_jax.utils.memory import cpu_only

STEPS = 3
ROWS = 10
NO_GRAPHS = "--xla_gpu_enable_command_buffer="
NAMED = re.compile(r'%?([\w.-]+) = .*metadata=\{[^}]*op_name="([^"]*)"')
NUMBER = re.compile(r"(?:[._]\d+)+$")
LAYER = re.compile(r"\b(layer|block)_\d+")
WRAPPED = re.compile(r"\w+\((.*)\)$")


class Kernel(NamedTuple):
    """Kernels of one name and one part of the model."""

    name: str
    part: str
    seconds: float  # of a step
    calls: float  # of a step


class Event(NamedTuple):
    """One kernel in a trace."""

    name: str
    operation: str  # of the compiled program; "" where the trace does not say it
    seconds: float


def part_of(op_name: str) -> str:
    """`jit(step)/transpose(jvp(Net.fuse))/Net.fuse/fusion_encoder/layer_3/attention/dot_general` is
    `fusion_encoder/layer/attention/dot_general, backward`.
    """
    backward = "transpose(" in op_name
    names = []
    for word in op_name.split("/")[1:]:
        while match := WRAPPED.match(word):
            word = match[1]
        if word and "." not in word and word not in names[-1:]:
            names.append(word)
    text = LAYER.sub(r"\1", "/".join(names))
    return (text or "-") + (", backward" if backward else "")


def parts(program: str) -> dict[str, str]:
    """Operation -> part of the model, of the text of a compiled program."""
    return {name: part_of(op_name) for name, op_name in NAMED.findall(program)}


def read_trace(folder: Path) -> list[Event]:
    """The kernels in a profile. Raises DataError if there are none."""
    paths = sorted(folder.glob("**/*.trace.json.gz"))
    events: list[Mapping[str, Any]] = []
    for path in paths:
        with gzip.open(path) as file:
            events += json.load(file)["traceEvents"]
    found = _on_devices(events)
    if not found:
        raise DataError(
            f"{len(paths)} traces without a kernel",
            "the kernels of the devices",
            "on a GPU, install nvidia-cuda-cupti, which jax[cuda13] brings",
        )
    return found


def _on_devices(events: Sequence[Mapping[str, Any]]) -> list[Event]:
    """Those of a GPU's streams, else of a TPU's line of operations, else with an operation."""
    about = [event for event in events if event.get("ph") == "M"]
    device = {
        event["pid"]
        for event in about
        if event["name"] == "process_name" and "/device:" in event["args"]["name"]
    }
    threads = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in about
        if event["name"] == "thread_name" and event["pid"] in device
    }
    timed = [event for event in events if event.get("ph") == "X"]
    for wanted in ("Stream", "XLA Ops"):
        places = {place for place, name in threads.items() if name.startswith(wanted)}
        found = [event for event in timed if (event["pid"], event.get("tid")) in places]
        if found:
            return [_event(one) for one in found]
    return [_event(one) for one in timed if "hlo_op" in one.get("args", {})]


def _event(event: Mapping[str, Any]) -> Event:
    operation = event.get("args", {}).get("hlo_op", "")
    return Event(event["name"], operation, event.get("dur", 0.0) / 1e6)


def costliest(events: Iterable[Event], known: Mapping[str, str], steps: int) -> list[Kernel]:
    """All groups, those that take longest first. known: operation -> part of the model."""
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for event in events:
        key = NUMBER.sub("", event.name), known.get(event.operation, "-")
        seconds, calls = sums.get(key, (0.0, 0))
        sums[key] = seconds + event.seconds, calls + 1
    found = [Kernel(*key, seconds / steps, calls / steps) for key, (seconds, calls) in sums.items()]
    return sorted(found, key=lambda one: -one.seconds)


def profile(options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Runs the step under the profiler; the numbers of the table."""
    built = step.build(options)
    compiled, _, _ = step.compile_step(built, step.twins(options))
    with jax.set_mesh(built.mesh), tempfile.TemporaryDirectory() as folder:
        state = jax.jit(built.init, out_shardings=built.shardings)()
        batch = put_batch(built.batch, built.mesh)
        state = jax.block_until_ready(compiled(state, batch)[0])
        jax.profiler.start_trace(folder)
        began = time.perf_counter()
        for _ in range(steps):
            state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - began) / steps
        jax.profiler.stop_trace()
        events = read_trace(Path(folder))
    found = costliest(events, parts(compiled.as_text()), steps)
    total = sum(one.seconds for one in found)
    described = step.describe(options, built)
    return described | {
        "step_seconds": seconds,
        "kernel_seconds": total,
        "kernels": [one._asdict() | {"share": one.seconds / total} for one in found[:ROWS]],
    }


def to_markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        f"{result['device']}, jax {result['jax']}: {result['preset']}, batch {result['batch']}, "
        f"{result['dtype']}, attention {result['attention']}; all kernels of a step "
        f"{1e3 * result['kernel_seconds']:.2f} ms, the step {1e3 * result['step_seconds']:.2f} ms",
        "",
        "| share | ms a step | calls a step | kernel | part |",
        "|---:|---:|---:|---|---|",
    ]
    for one in result["kernels"]:
        lines.append(
            f"| {one['share']:.1%} | {1e3 * one['seconds']:.3f} | {one['calls']:g} "
            f"| `{one['name'][:60]}` | {one['part']} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0],
        allow_abbrev=False,
        epilog="All other options are those of python -m benchmarks.step.",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--profiled", type=int, default=STEPS, help=f"steps (default {STEPS})")
    own, rest = parser.parse_known_args(argv)
    if not cpu_only():  # before the first use of a device
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_GRAPHS}".strip()
    try:
        result = step.rounded(profile(step.parse(rest), max(1, own.profiled)))
        if own.json:
            own.json.write_text(json.dumps(result) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(to_markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
