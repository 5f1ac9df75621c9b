"""Two processes of two devices against one of four: the same run, also when it goes on as the
other.

The whole NAS does so too: python -m benchmarks.processes.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from test_processes import free_port

from nas_jax.checkpoint.manager import CheckpointManager

PROGRAM = Path(__file__).with_name("run_as_processes.py")
STEPS, RECORDS, BATCH = 20, 40, 8


class Run:
    """The program as one process of four devices, or as two of two."""

    def __init__(self, workdir: Path, count: int):
        port, self.logs, self.processes = free_port(), [], []
        for index in range(count):
            log = workdir.with_name(f"{workdir.name}-{time.monotonic_ns()}.log")
            arguments = [str(workdir), str(4 // count), f"localhost:{port}", str(count), str(index)]
            with log.open("w") as file:
                command = [sys.executable, "-u", str(PROGRAM), *arguments]
                self.processes.append(
                    subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
                )
            self.logs.append(log)

    def stop_at(self, step: int) -> None:
        """Sends SIGTERM to the last process once the first has reported the step."""
        while f"step {step}/" not in self.logs[0].read_text():
            assert self.processes[0].poll() is None, self.logs[0].read_text()[-2000:]
            time.sleep(0.02)
        self.processes[-1].send_signal(signal.SIGTERM)

    def codes(self) -> list[int]:
        return [process.wait(timeout=120) for process in self.processes]


def final(workdir: Path) -> dict[str, np.ndarray]:
    abstract = {
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "params": {
            "kernel": jax.ShapeDtypeStruct((16, 16), jnp.float32),
            "seen_R": jax.ShapeDtypeStruct((RECORDS,), jnp.int32),
        },
    }
    with CheckpointManager(workdir / "checkpoints", read_only=True) as manager:
        state, position = manager.restore(abstract)
    assert position["next_step"] == STEPS
    return state["params"]


def test_one_process_and_two_make_the_same_run_and_take_over_from_each_other(tmp_path):
    assert Run(tmp_path / "whole", 1).codes() == [0]
    whole = final(tmp_path / "whole")
    for name, counts in (("two-one", (2, 1)), ("one-two", (1, 2))):
        run = Run(tmp_path / name, counts[0])
        run.stop_at(4)  # one is told, all stop at the same step and save
        assert set(run.codes()) == {128 + signal.SIGTERM}
        stopped = int(re.search(r"at step (\d+)/20, saved", run.logs[0].read_text())[1])
        assert 4 <= stopped < STEPS
        run = Run(tmp_path / name, counts[1])
        assert set(run.codes()) == {0}, run.logs[-1].read_text()[-2000:]
        assert f"going on from step {stopped} of" in run.logs[0].read_text()
        if counts[1] == 2:
            assert "step" not in run.logs[1].read_text()  # only the first process reports
        found = final(tmp_path / name)
        np.testing.assert_allclose(found["kernel"], whole["kernel"], rtol=1e-6)
        # Twenty batches of eight are four epochs of forty: every record came four times, whoever
        # read it.
        np.testing.assert_array_equal(found["seen_R"], np.full(RECORDS, STEPS * BATCH // RECORDS))
