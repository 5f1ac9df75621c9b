"""The smallest NAS as one process of four devices and as two of two, each continuing the other.

The devices are simulated.

    python -m benchmarks.processes

Prints the largest difference of the final states to that of a run in one process; exit code 1 above
1e-4 of an array's largest value. Minutes: each start compiles for its number of processes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.faults import RECIPE, ROOT, STEP, final_arrays

STEPS = 12


def free_port() -> int:
    """A port, of which the next one is probably free too."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(folder: Path, name: str, count: int, stop_at: int = 0) -> None:
    """Runs main.py as `count` processes to its end, or until one of them gets SIGTERM at a step."""
    processes, port, log = [], free_port(), folder / f"{name}-{time.monotonic_ns()}.log"
    for index in range(count):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        command = [
            sys.executable,
            str(ROOT / "main.py"),
            f"--config={folder / 'recipe.py'}:{STEPS}",
        ]
        command += [f"--workdir={folder / name}"]
        if count > 1:
            command += [
                f"--coordinator=localhost:{port}",
                f"--num_processes={count}",
                f"--process_id={index}",
            ]
        output = log.open("w") if index == 0 else subprocess.DEVNULL
        processes.append(
            subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        )
    if stop_at:
        while not any(int(found[1]) >= stop_at for found in STEP.finditer(log.read_text())):
            if processes[0].poll() is not None:
                break
            time.sleep(0.05)
        processes[-1].send_signal(signal.SIGTERM)
    codes = [process.wait() for process in processes]
    print(f"{name}: {count} process(es), exit codes {codes}", flush=True)
    if set(codes) - {0, 128 + signal.SIGTERM}:
        sys.exit(log.read_text()[-3000:])


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference of an array, as a share of its largest value."""
    worst = (0.0, "")
    for name, leaf in expected.items():
        other = found[name]
        if not np.issubdtype(leaf.dtype, np.floating):
            continue
        worst = max(
            worst, (float(np.abs(leaf - other).max() / max(np.abs(leaf).max(), 1e-30)), name)
        )
    return worst


def main() -> int:
    """Returns the exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, code = Path(temporary), 0
        (folder / "recipe.py").write_text(RECIPE)
        start(folder, "one", 1)
        expected = final_arrays(folder / "one")
        for name, first, second in (("two-one", 2, 1), ("one-two", 1, 2)):
            start(folder, name, first, stop_at=3)
            start(folder, name, second)
            error, array = difference(final_arrays(folder / name), expected)
            print(
                f"{name}: largest difference {error:.1e} of the largest value ({array})", flush=True
            )
            code |= error > 1e-4
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
