"""Memory that a process frees and takes again costs page faults, unless it keeps it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nas_jax.utils import memory

ROOT = Path(__file__).parents[2]
ROUNDS = """
import resource, sys, threading
from nas_jax.utils.memory import keep_freed_memory
if sys.argv[1] != "leave":
    assert keep_freed_memory(huge_pages=sys.argv[1] == "huge")
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

# Flags are global: a fork for each mode.
MODES = """
import os, sys
import main
from nas_jax import runner
main.keep_freed_memory = lambda: print(mode, flush=True)
runner.main = lambda *given: 0
for platform in ("cpu", "cuda"):
    os.environ["JAX_PLATFORMS"] = platform
    for mode in main.MODES:
        pid = os.fork()
        if not pid:
            sys.argv = ["main.py", "--config=configs/demo.py", "--workdir=w", f"--mode={mode}"]
            os._exit(main.main(sys.argv))
        assert os.waitpid(pid, 0)[1] == 0
"""


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def faults(how: str, before: str = "") -> list[int]:
    """Page faults of each of three times that 128 MiB are written and freed."""
    done = subprocess.run(
        [sys.executable, "-c", before + ROUNDS, how], check=True, capture_output=True, text=True
    )
    return [int(line) for line in done.stdout.split()]


@needs_glibc
@pytest.mark.parametrize("how", ["keep", "huge"])
def test_freed_memory_is_kept(how):
    assert faults(how)[-1] < 10
    assert faults("leave")[-1] > 10  # one fault for 2 MiB at least


@needs_glibc
@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="needs huge pages for who asks",
)
def test_memory_is_asked_for_in_huge_pages():
    assert faults("huge")[0] < 15_000  # 64, or more where memory is in pieces
    assert faults("keep")[0] > 30_000  # one for each 4 kB


@needs_glibc
def test_freed_memory_is_kept_where_the_heap_may_not_grow_as_large_as_the_machine():
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))"
    assert faults("huge", before=limit)[-1] < 10


def test_runs_on_a_cpu_keep_it_and_nothing_else_does():
    done = subprocess.run(
        [sys.executable, "-c", MODES], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == ["train", "eval"]


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
