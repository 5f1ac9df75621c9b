"""Units side by side: processes, what they report, and what happens when one of them dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2

from nas_jax.data.prepare.items import Unit
from nas_jax.data.prepare.units import Options, prepare_unit
from nas_jax.utils.errors import DataError, UserError
from nas_jax.utils.logging import Console, format_seconds

MIN_COUNTED = 1000  # images before losses end a run early

Job = tuple[int, Unit]
"""The number of a shard, and what it is made from."""

_TICK_SECONDS = 0.3  # between two messages of a worker
_LINE_SECONDS = 10.0  # between two lines where no line can be rewritten


class Progress:
    """What was seen and lost so far, on the console; ends the run where too much is lost."""

    def __init__(
        self, units: Sequence[Unit], max_lost: float, console: Console, seen: int = 0, lost: int = 0
    ):
        self._units, self._max_lost, self._console = units, max_lost, console
        self._before, self.seen, self.lost = seen, seen, lost  # `before`: by an earlier run
        self._start = self._line = time.monotonic()
        self._running: dict[int, tuple[int, int]] = {}
        self._weights: list[tuple[int, int]] = []  # pictures and bytes of the tars that are done

    @property
    def too_much(self) -> bool:
        """Whether a larger share is lost than may be."""
        return self.lost > self._max_lost * self.seen

    @property
    def beyond(self) -> bool:
        """Whether more is lost already than may be of all pictures, however good the rest is. While
        nobody knows how many there are, those seen so far stand for all.
        """
        enough = self.seen >= MIN_COUNTED
        return enough and self.lost > self._max_lost * max(self.seen, self._total())

    def skip(self, number: int, seen: int) -> None:
        """A unit that was finished by an earlier run."""
        self._weights.append((seen, self._units[number].size))

    def tick(self, number: int, seen: int, lost: int) -> None:
        """Unit `number` stands at so many. Raises TooMuchLost."""
        before = self._running.get(number, (0, 0))
        self._running[number] = seen, lost
        self.seen, self.lost = self.seen + seen - before[0], self.lost + lost - before[1]
        if self.beyond:
            raise TooMuchLost
        now = time.monotonic()
        due = now - self._line >= _LINE_SECONDS
        if due:
            self._line = now
        self._console.progress(self._text(now), due)

    def done(self, number: int, seen: int, lost: int) -> None:
        """Unit `number` is finished. Raises TooMuchLost."""
        self._weights.append((seen, self._units[number].size))
        self.tick(number, seen, lost)

    def _text(self, now: float) -> str:
        share = 100 * self.lost / max(1, self.seen)
        rate = (self.seen - self._before) / max(1e-3, now - self._start)
        text = f"{self.seen:,} images, {self.lost:,} lost ({share:.1f} %), {rate:.0f} images/s"
        total = self._total()
        return text + (
            f", about {format_seconds((total - self.seen) / rate)} left" if total and rate else ""
        )

    def _total(self) -> float:
        """Pictures in all units: counted in lists, estimated for tars; 0 before one is done."""
        tars = sum(unit.size for unit in self._units if not unit.count)
        seen, size = (
            (sum(column) for column in zip(*self._weights, strict=True))
            if self._weights
            else (0, 0)
        )
        if tars and not seen:
            return 0
        return sum(unit.count for unit in self._units) + (tars * seen / size if tars else 0)


class TooMuchLost(Exception):
    """The share of losses is above --max-lost."""


def run_units(
    todo: Sequence[Job], out: Path, options: Options, workers: int, store: bool, progress: Progress
) -> None:
    """Prepares the units, in this process where workers is 0.

    Raises UserError, and TooMuchLost from the progress.
    """
    if workers:
        return _run_pool(todo, out, options, workers, store, progress)
    for number, unit in todo:
        tick = _seldom(partial(progress.tick, number))
        with _disk_errors(out):
            counts = prepare_unit(unit, number, out, options, store, tick)
        progress.done(number, *counts)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job


def _run_pool(
    todo: Sequence[Job], out: Path, options: Options, workers: int, store: bool, progress: Progress
) -> None:
    # forked children would share locks of our libraries
    context = multiprocessing.get_context("spawn")
    waiting, pool = list(reversed(todo)), []
    try:
        for _ in range(min(workers, len(waiting))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, out, options, store), daemon=True)
            process.start()
            theirs.close()
            pool.append(_Worker(process, ours, waiting.pop()))
            _send(pool[-1])
        while pool:
            ready = multiprocessing.connection.wait([worker.connection for worker in pool])
            for worker in [worker for worker in pool if worker.connection in ready]:
                if not _listen(worker, progress):
                    continue
                if waiting:
                    worker.job = waiting.pop()
                    _send(worker)
                else:
                    worker.connection.close()  # which ends it
                    worker.process.join()
                    pool.remove(worker)
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()


def _send(worker: _Worker) -> None:
    # one that has died already is seen when its answer is read
    with contextlib.suppress(BrokenPipeError):
        worker.connection.send(worker.job)


def _listen(worker: _Worker, progress: Progress) -> bool:
    """Reads one message; whether the job is done. Raises what went wrong."""
    number, unit = worker.job
    try:
        message = worker.connection.recv()
    except (EOFError, OSError) as error:
        worker.process.join()
        raise _worker_died(worker.process, unit) from error
    if isinstance(message, UserError):
        raise message
    if isinstance(message, str):
        raise RuntimeError(f"while preparing {unit.path}:\n{message}")
    done, counts = message
    (progress.done if done else progress.tick)(number, *counts)
    return done


def _worker_died(process: BaseProcess, unit: Unit) -> UserError:
    code = process.exitcode or 0
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return UserError(
        f"a worker ended with {how} while it read {unit.path}",
        "workers that live",
        "if the machine ran out of memory pass a smaller --workers; run the same command again to "
        "go on",
    )


def _work(connection: Connection, out: Path, options: Options, store: bool) -> None:
    """A worker: prepares the units it is sent.

    It answers (False, (seen, lost)) now and then, and at the end (True, (seen, lost)) or what went
    wrong: a UserError, or the text of a traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells us when to end
    cv2.setNumThreads(1)
    # the parent has ended
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, unit = connection.recv()
            try:
                with _disk_errors(out):
                    tick = _seldom(lambda *counts: connection.send((False, counts)))
                    counts = prepare_unit(unit, number, out, options, store, tick)
                connection.send((True, counts))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except UserError as error:
                connection.send(error)
            except Exception:  # crosses the border as text, and is raised there
                connection.send(traceback.format_exc())


def _seldom(tick: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Passes on the first call, and then one every so many seconds."""
    last = 0.0

    def pass_on(seen: int, lost: int) -> None:
        nonlocal last
        now = time.monotonic()
        # where the share is judged first
        if now - last >= _TICK_SECONDS or lost and seen == MIN_COUNTED:
            last = now
            tick(seen, lost)

    return pass_on


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        raise
    except OSError as error:
        what = error.filename or out
        raise DataError(
            f"{what}: {error.strerror or error}",
            "readable input and space to write",
            "make room or mend it, and run again to go on",
        ) from error
