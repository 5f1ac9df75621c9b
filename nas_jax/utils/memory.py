"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import glob
import os

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Of mallopt(3), glibc:
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# Of madvise(2), Linux:
MADV_HUGEPAGE, HUGE_PAGE = 14, 2 << 20


def cpu_only() -> bool:
    """Whether JAX will compute on the CPU: by JAX_PLATFORMS, or for lack of an accelerator."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(map(glob.glob, ACCELERATORS))


def keep_freed_memory(huge_pages: bool = True) -> bool:
    """Lets this process keep freed memory for its next use; returns whether the system can.

    On CPUs a step takes its temporary arrays from malloc and gives them back. glibc returns arrays
    of that size to the system at once, which hands out empty pages again, one fault each 4 kB
    (`benchmarks.step --return-memory`). Must be called before there are other threads, as each
    would get a heap of its own, which cannot hold large arrays.

    huge_pages: asks for pages of 2 MB too, of which a step needs fewer; where the system has none,
    it goes on without.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    # -1: never
    kept = all([mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1)])
    if kept and huge_pages:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    # The system is asked by address, so the heap must have its own before: most of the machine's
    # memory, taken and freed again. That costs nothing, as a page is there from the first time that
    # it is written only.
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = (
        [ctypes.c_void_p],
        [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int],
    )
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * 3
    if start := libc.malloc(size):
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(first, (start + size - first) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
        libc.free(start)
