"""Measures what needs an accelerator, part by part, within a budget, and starts the study.

    benchmarks/accelerator.sh OUT                    # or python -m benchmarks.accelerator OUT
    benchmarks/accelerator.sh OUT --parts parity,kernels
    benchmarks/accelerator.sh OUT --dry-run          # on the CPU, at the smallest sizes

Each part is a process of its own with a log in OUT. What it found is in OUT/PART.json, and all of
it in OUT/summary.md, which is written after each part. A further call with the same OUT does what
is left: a part that is done is not done again, one that failed or had no time is. Exits 1 if a part
failed, 2 without an accelerator. This process itself imports neither jax nor the package.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator_parts import ABOVE, Part, last_json, parts
from benchmarks.checkout import ROOT, commit

BUDGET = 540.0  # seconds of a call
LEAST = 60.0  # seconds that a part is started with
MARGIN = 45.0  # seconds at the end in which the study's runs save
STOP_SECONDS = 60.0  # from one signal to the next
SUMMARY = "summary.md"
DONE, FAILED, LEFT, WAITING = "done", "FAILED", "to go on", "not yet"
ASK = (
    "import jax, json; d = jax.devices(); print(json.dumps("
    "{'count': len(d), 'device': d[0].device_kind, 'platform': d[0].platform, "
    "'jax': jax.__version__}))"
)
NO_DEVICE = (
    "jax sees CPUs alone; expected an accelerator. Remedy: install jax[cuda13], or --dry-run"
)
# compiles several times as fast, to slower programs
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


# ----------------------------------------------------------------------------------------- one part


class Call:
    """One call: its folder, its deadline, and what it runs on."""

    def __init__(self, out: Path, budget: float, dry_run: bool):
        self.out, self.dry_run = out, dry_run
        self.deadline = time.monotonic() + budget
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(out / "compile_cache"),
        }
        if dry_run:
            flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
            self.environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        self.hardware: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def ask_hardware(self) -> str:
        """Finds the devices; returns what is wrong, or ""."""
        done = subprocess.run(
            [sys.executable, "-c", ASK], env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            return f"jax finds no device ({done.stderr.strip().splitlines()[-1:]})"
        self.hardware = last_json(done.stdout)
        if self.hardware["platform"] == "cpu" and not self.dry_run:
            return NO_DEVICE
        return ""

    def record(self, part: Part) -> dict[str, Any]:
        """What is known of a part."""
        path = self.out / f"{part.name}.json"
        return json.loads(path.read_text()) if path.exists() else {"status": WAITING}

    def is_done(self, part: Part) -> bool:
        """Whether a former call has done this very command."""
        known = self.record(part)
        same = known["status"] == DONE and known["command"] == part.command(self.out)
        return same and not part.goes_on

    def do(self, part: Part) -> bool:
        """Runs a part; returns whether it did not fail."""
        began, arguments = time.monotonic(), list(part.arguments)
        if part.goes_on:
            budget = min(part.at_most, max(1.0, self.left - MARGIN))
            arguments += ["--budget", f"{budget:.0f}"]
        log = self.out / f"{part.name}.log"
        code = self._process(arguments, part, log)
        text = log.read_text(errors="replace")
        status, figure = self._outcome(part, code, text)
        known = {
            "status": status,
            "command": part.command(self.out),
            "figure": figure,
            "seconds": round(time.monotonic() - began, 1),
            "date": datetime.date.today().isoformat(),
            "hardware": f"{self.hardware['count']} x {self.hardware['device']}",
            "jax": self.hardware["jax"],
            "code": commit(),
        }
        whole(self.out / f"{part.name}.json", json.dumps(known, indent=1) + "\n")
        say(f"{part.name}: {status} in {known['seconds']:.0f} s: {figure}")
        return status != FAILED

    def _outcome(self, part: Part, code: int, text: str) -> tuple[str, str]:
        """Status and figure."""
        lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no output"]
        told = [line for line in lines if line.endswith(ABOVE)] or lines
        unfinished = part.goes_on and code == 1 and "left to do" in text and " failed: " not in text
        if code and self.left <= 0 and not unfinished:
            return LEFT, "stopped as the time was up; call again"
        if code and not unfinished:
            return FAILED, f"exit code {code}: {told[-1][:200]}"
        try:
            return LEFT if unfinished else DONE, part.figure(text, self.out)
        except (ValueError, KeyError, IndexError, OSError) as error:
            return FAILED, f"its output was not understood: {error!r}"

    def _process(self, arguments: list[str], part: Part, log: Path) -> int:
        """Returns the exit code. What runs beyond the deadline is told to stop, then stopped."""
        environment = {**self.environment, **part.environment}
        with log.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                return process.wait(max(1.0, self.left))
            except subprocess.TimeoutExpired:
                return stop(process)
            except BaseException:  # Ctrl-C
                stop(process)
                raise


def stop(process: subprocess.Popen) -> int:
    """Ends a process and what it started, the study by Ctrl-C, as it then saves its runs; returns
    the exit code.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            return process.wait(STOP_SECONDS)
        except ProcessLookupError:
            return process.wait()
        except subprocess.TimeoutExpired:
            continue
    return process.wait()


# ---------------------------------------------------------------------------------------- all parts


def summary(call: Call, planned: Mapping[str, Part]) -> str:
    """The page: a row for each part, and the table of kernels."""
    lines = ["# On an accelerator", ""]
    if call.dry_run:
        lines += ["A dry run on the CPU: its figures say nothing.", ""]
    lines += ["| part | | figure | hardware | date | code | command |", f"|{'---|' * 7}"]
    for part in planned.values():
        known = call.record(part)
        hardware = f"{known['hardware']}, jax {known['jax']}" if "hardware" in known else ""
        cells = [part.name, known["status"], known.get("figure", ""), hardware]
        cells += [known.get("date", ""), known.get("code", ""), f"`{part.command(call.out)}`"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    log = call.out / "kernels.log"
    if "kernels" in planned and call.record(planned["kernels"])["status"] == DONE and log.exists():
        table = [line for line in log.read_text().splitlines() if line.startswith("|")]
        lines += ["", "## The costliest kernels of a step", "", *table]
    return "\n".join(lines) + "\n"


def run(call: Call, planned: Mapping[str, Part], names: Sequence[str]) -> int:
    """Does what is left of the parts named; returns the exit code."""
    failed = []
    for part in (planned[name] for name in names):
        if call.is_done(part):
            say(f"{part.name}: done before")
        elif call.left < LEAST + (MARGIN if part.goes_on else 0):
            say(f"{part.name}: no time left; call again")
        else:
            say(f"{part.name}: {part.command(call.out)}")
            failed += [] if call.do(part) else [part.name]
            whole(call.out / SUMMARY, summary(call, planned))
    whole(call.out / SUMMARY, summary(call, planned))
    say(f"summary: {call.out / SUMMARY}")
    if failed:
        say(f"failed: {', '.join(failed)}; see the logs beside it")
    return int(bool(failed))


def whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def say(text: str) -> None:
    """Progress."""
    print(text, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/accelerator.sh", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of logs, records, summary.md")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help=f"seconds of this call (default {BUDGET:.0f})"
    )
    parser.add_argument("--parts", default="", metavar="NAME,...", help="default: all, in order")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at the smallest sizes")
    options = parser.parse_args(argv)
    out = options.out.absolute()
    planned = parts(out, options.dry_run)
    names = [name for name in options.parts.split(",") if name] or list(planned)
    if unknown := [name for name in names if name not in planned]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(planned)}")
    out.mkdir(parents=True, exist_ok=True)
    # where it was ignored, as in a background job, the parts would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    call = Call(out, options.budget, options.dry_run)
    if wrong := call.ask_hardware():
        print(f"error: {wrong}.", file=sys.stderr)
        return 2
    return run(call, planned, names)


if __name__ == "__main__":
    sys.exit(main())
