"""Memory that a process frees and takes again costs page faults, unless it keeps it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from nas_jax.utils import memory

ROUNDS = """
import resource, sys, threading
from nas_jax.utils.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def rounds():  # in a thread, as XLA's steps
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        large = b"1" * (128 << 20)
        del large
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=rounds)
thread.start()
thread.join()
"""


def last_round(how: str) -> int:
    """Page faults of the third time that 128 MiB are written and freed."""
    done = subprocess.run([sys.executable, "-c", ROUNDS, how], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    assert last_round("keep") < 10
    assert last_round("leave") > 10  # one fault for 2 MiB at least


def test_a_named_platform_decides_and_else_the_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "ACCELERATORS", (str(tmp_path / "accel[0-9]*"),))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert memory.cpu_only()
    (tmp_path / "accel0").touch()
    assert not memory.cpu_only()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert memory.cpu_only()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not memory.cpu_only()
