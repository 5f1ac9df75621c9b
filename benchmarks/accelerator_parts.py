"""What is measured on an accelerator: commands, and what the summary says of their output."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FIXTURE = "tests/fixtures/nas_step.npz"
ABOVE = "ABOVE"  # ends the rows of benchmarks.parity that fail
NUMBERS = "kernels.numbers.json"  # in OUT
# (pairs, attention); the first is profiled too
SIZES = ((128, "xla"), (128, "cudnn"), (256, "xla"), (256, "cudnn"), (64, "xla"), (64, "cudnn"))
STUDY_OF_DRY_RUN = 20.0  # seconds


class Part(NamedTuple):
    """One measurement. The log that `figure` reads is stdout and stderr."""

    name: str
    arguments: tuple[str, ...]  # of python
    figure: Callable[[str, Path], str]  # (log, OUT) -> what the summary says
    environment: Mapping[str, str] = {}
    goes_on: bool = False  # takes --budget, is called each time, and may leave work for the next
    at_most: float = float("inf")  # seconds of that budget

    def command(self, out: Path) -> str:
        """As it could be typed, with OUT for the folder."""
        before = [f"{name}={value}" for name, value in self.environment.items()]
        words = [shlex.quote(word.replace(str(out), "OUT")) for word in self.arguments]
        return " ".join([*before, "python", *words])


# ---------------------------------------------------------------------------------------- the parts


def parity_figure(log: str, out: Path) -> str:
    """The group that is nearest to its tolerance."""
    rows = [line.split() for line in log.splitlines() if "e-" in line or "e+" in line]
    shares = []
    for row in rows:
        numbers = [float(word) for word in row if "e-" in word or "e+" in word][:2]
        shares.append((numbers[0] / numbers[1] if numbers[1] else numbers[0], numbers))
    _, (error, tolerance) = max(shares)
    return f"{len(rows)} groups within tolerance, the nearest {error:.1e} of {tolerance:.0e}"


def step_figure(log: str, out: Path) -> str:
    """Speed, share of the peak, memory."""
    found = last_json(log)
    peak = f"{found['peak_share']:.1%} of the peak, " if found.get("peak_share") else ""
    milliseconds = 1e3 * found["wall_seconds"]["median"]
    return (
        f"{found['pairs_per_second']:.4g} pairs/s, {milliseconds:.4g} ms a step in the median, "
        f"{peak}{found['matmul_share']['median']:.1%} of a matmul, "
        f"{found['peak_memory_MB'] / 1e3:.3g} GB, {found['gflop_per_pair']:.4g} GFLOP a pair, "
        f"compiled in {found['compile_seconds']:.0f} s"
    )


def kernels_figure(log: str, out: Path) -> str:
    """The costliest one; the table is below the others."""
    found = json.loads((out / NUMBERS).read_text())
    first = found["kernels"][0]
    return (
        f"{1e3 * found['kernel_seconds']:.4g} ms of kernels in a step of "
        f"{1e3 * found['step_seconds']:.4g} ms; {first['share']:.1%} `{first['name']}`, "
        f"{first['part']}"
    )


def study_figure(log: str, out: Path) -> str:
    """How far it is."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    left = sum(line.startswith("left to do") for line in lines)
    pages = [line for line in lines if line.startswith("page: ")]
    done = [line for line in lines if ": done in " in line]
    said = [f"{len(done)} runs finished in this call", f"{left} left" if left else "all done"]
    return ", ".join([*said, *pages[-1:]])


def last_json(log: str) -> dict[str, Any]:
    """The last line that is an object."""
    return json.loads([line for line in log.splitlines() if line.startswith("{")][-1])


def parts(out: Path, dry_run: bool) -> dict[str, Part]:
    """All parts by name, in their order. dry_run: for the CPU, at the smallest sizes."""
    base = ("--preset", "base", "--dtype", "bfloat16")
    sizes = ((4, "xla"),) if dry_run else SIZES
    if dry_run:
        base = ("--preset", "tinybody")
    # TF32 and the like have their place in training, and none in a comparison of digits
    exact = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    found = [Part("parity", ("-m", "benchmarks.parity", FIXTURE), parity_figure, exact)]
    for batch, attention in sizes:
        options = (*base, "--batch", str(batch), "--attention", attention)
        steps = ("--steps", "1" if dry_run else "20")
        name = f"step-{batch}-{attention}"
        found.append(Part(name, ("-m", "benchmarks.step", *options, *steps), step_figure))
    options = (*base, "--batch", str(sizes[0][0]), "--json", str(out / NUMBERS))
    kernels = Part("kernels", ("-m", "benchmarks.kernels", *options), kernels_figure)
    found.insert(3, kernels)  # what says most comes first: the time may be short
    study = ("-m", "benchmarks.study", "--preset", "demo" if dry_run else "scenes")
    study += ("--seeds", "1") if dry_run else ()
    study += ("--out", str(out / "study"), "--runs", str(out / "runs"))
    most = STUDY_OF_DRY_RUN if dry_run else float("inf")
    found.append(Part("study", study, study_figure, {}, True, most))
    return {one.name: one for one in found}
