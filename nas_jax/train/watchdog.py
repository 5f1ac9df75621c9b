"""A watchdog for hangs: when no step finishes for a long time, every host writes what all its
threads are doing.

It reports and ends nothing: a slow evaluation, a stuck file system and a host that waits for
another look alike from inside, and the stacks tell them apart.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nas_jax.storage.growing import Mirror
from nas_jax.storage.paths import failures, in_words
from nas_jax.utils.logging import format_seconds

# by number: sys.stderr may be a stand-in without one, which faulthandler cannot write to
STDERR = 2
# times the limit: these are long where nothing is wrong
PATIENCE = {"start": 6, "compile": 6, "evaluation": 6}
POLLS = 20  # looks in the time that is allowed
HEADER = "hang"


class Watchdog:
    """Context manager with a thread that looks whether the loop goes on: ends a step, or one of its
    parts.

    Where it does not for `seconds`, it writes to stderr and to `folder`/hang-PROCESS.txt the last
    step, what is waited for, and the Python stack of every thread of this process; once a hang.
    Children, like the workers of the input pipeline, are processes of their own and not in it.
    """

    def __init__(
        self,
        seconds: float,
        folder: Path,
        process: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """seconds: without a finished step; 0 = never look.

        process: index of this one, in the name of the file.
        """
        self._seconds, self._path, self._process, self._clock = (
            seconds,
            folder / f"hang-{process}.txt",
            process,
            clock,
        )
        self._step, self._phases, self._since = 0, ["start"], clock()
        self._reported, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._since = self._clock()
            self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._stop.set()
        if self._seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int) -> None:
        """`step` is done."""
        self._step = step
        self._goes_on()

    @contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """What is waited for inside: input, compute, checkpoint, barrier, compile or evaluation."""
        self._phases.append(phase)
        try:
            yield
        finally:
            self._phases.pop()
            self._goes_on()

    def _goes_on(self) -> None:
        was, silent = self._reported, self._clock() - self._since
        self._since, self._reported = self._clock(), False
        if was:
            _write(
                STDERR,
                f"{HEADER}: over after {format_seconds(silent)}, the run goes on after step "
                f"{self._step}\n",
            )

    def _look(self) -> None:
        poll = self._seconds / POLLS
        while not self._stop.wait(poll):
            # A call that keeps Python's lock stops this thread too; faulthandler's own timer needs
            # no lock.
            faulthandler.dump_traceback_later(2 * self._seconds, file=STDERR)
            silent, phase = self._clock() - self._since, self._phases[-1]
            if not self._reported and silent >= self._seconds * PATIENCE.get(phase, 1):
                self._reported = True
                self._report(silent, phase)

    def _report(self, silent: float, phase: str) -> None:
        text = (
            f"\n{HEADER}: process {self._process}: nothing done for {format_seconds(silent)} "
            f"after step {self._step}, "
            f"waits for {phase}; {_threads()}\n"
        )
        # First where no file system is needed, as that may be what hangs.
        _write(STDERR, text)
        faulthandler.dump_traceback(STDERR, all_threads=True)
        try:
            mirror = Mirror(self._path)
            with mirror.local.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.lstrip()}")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            mirror.close()
        except failures() as error:
            _write(STDERR, f"{HEADER}: writing {self._path} failed ({in_words(error)})\n")


def _threads() -> str:
    """Which stack is whose: faulthandler prints numbers only.

    A thread that is just being started has none yet.
    """
    known = [thread for thread in threading.enumerate() if thread.ident is not None]
    return "threads: " + ", ".join(f"0x{thread.ident:016x} {thread.name}" for thread in known)


def _write(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode())
