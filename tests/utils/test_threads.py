"""XLA gets one thread for steps so small that more would slow them down."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nas_jax.utils.threads import is_narrow, take_one_thread, usable_cores

ROOT = Path(__file__).parents[2]
# What XLA itself starts: its threads have a name on Linux.
COUNT = """
import glob, os
from nas_jax.utils.threads import take_one_thread
if {take}:
    assert take_one_thread(os.environ, 2)
import jax
jax.jit(lambda x: x @ x)(jax.numpy.ones((256, 256))).block_until_ready()
names = [open(file).read() for file in glob.glob("/proc/self/task/*/comm")]
print(sum("XLAEigen" in name for name in names))
"""
MAIN = """
import os, sys
import main
from nas_jax import runner
main.usable_cores = lambda: 2
runner.main = lambda *given: print("NPROC", os.environ.get("NPROC", "not set")) or 0
sys.argv = ["main.py", "--config=configs/demo.py", "--workdir=w", *sys.argv[1:]]
sys.exit(main.main(sys.argv))
"""


def python(code: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True, capture_output=True, text=True, cwd=ROOT,
        env={"PATH": "", "JAX_PLATFORMS": "cpu", **variables},
    )  # fmt: skip
    return done.stdout


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or usable_cores() < 2, reason="needs Linux and two cores"
)
def test_xla_starts_one_thread():
    assert int(python(COUNT.format(take=True))) == 1
    assert int(python(COUNT.format(take=False))) > 1


@pytest.mark.parametrize(
    "arguments, variables, threads",
    [
        ((), {}, "1"),
        (("--config.model.dim=192",), {}, "not set"),
        (("--config.data.batch_size=128",), {}, "not set"),
        (("--mode=eval",), {}, "not set"),
        (("--coordinator=auto",), {}, "not set"),
        ((), {"NPROC": "2"}, "2"),
        ((), {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, "not set"),
    ],
)
def test_small_steps_on_a_cpu_take_one_thread_and_nothing_else_does(arguments, variables, threads):
    assert f"NPROC {threads}\n" in python(MAIN, *arguments, **variables)


def test_where_the_measured_steps_lie():
    # batch, patches, dim: the demo, the demo with a larger batch, sizes tiny and small
    assert is_narrow(32, 36, 64)
    assert not any([is_narrow(128, 36, 64), is_narrow(16, 36, 192), is_narrow(16, 64, 384)])
    assert not take_one_thread({}, cores=1)
