"""Runs jobs as processes of their own: one a core, or one after the other on an accelerator."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.checkout import ROOT
from benchmarks.study.plan import Job, method_of, resolved, same_run
from nas_jax.inspect.negatives_measure import SCORE
from nas_jax.train.workdir import CONFIG
from nas_jax.utils.errors import ConfigError, DataError

SAVING_SECONDS = 120  # that a stopped run has for its checkpoint
LOG_LINES = 3  # of a failed run that are shown


def places(jobs_at_a_time: int) -> list[int | None]:
    """The cores that runs are bound to; None for each where there is an accelerator, or where the
    system binds no processes.

    jobs_at_a_time: 0 = one a core that this process may use, or one on an accelerator.
    """
    # in a process of its own, which gives an accelerator back
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[-1]
    if backend != "cpu" or not hasattr(os, "sched_getaffinity"):
        return [None] * max(1, jobs_at_a_time)
    cores = sorted(os.sched_getaffinity(0))
    if jobs_at_a_time > len(cores):
        raise ConfigError(
            f"--jobs {jobs_at_a_time}", f"at most {len(cores)}, the cores", "leave it out"
        )
    return cores[-jobs_at_a_time:]  # of 0, all


def environment(place: int | None, cache: Path) -> dict[str, str]:
    """Of a run. On a core XLA gets one thread: two small runs side by side are faster so than one
    after the other with all threads.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {**os.environ, "PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    if place is not None:
        flags = found.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen=false"
        found |= {"XLA_FLAGS": " ".join(filter(None, flags)), "OMP_NUM_THREADS": "1"}
    return found


def of_job(job: Job, workdir: Path, report: bool = False) -> list[list[str]]:
    """Trains, diagnoses the negatives of a method that matches and, on request, writes the run's
    page.
    """
    matches = SCORE in method_of(resolved(job)).pair_scores
    modules = ["nas_jax.inspect.negatives"] * matches + ["nas_jax.inspect.run"] * report
    return [
        [sys.executable, "main.py", *job.command(str(workdir))],
        *([sys.executable, "-m", module, str(workdir)] for module in modules),
    ]


def set_aside(workdir: Path, job: Job) -> Path | None:
    """Renames a work directory of another config, as a run of this one could not go on there.

    Returns its new name, or None where there was no need.
    """
    known = workdir / CONFIG
    if not known.exists() or same_run(json.loads(known.read_text()), job):
        return None
    free = next(
        path
        for number in itertools.count(1)
        if not (path := workdir.with_name(f"{workdir.name}.{number}")).exists()
    )
    return workdir.rename(free)


class Running:
    """Runs the commands of jobs, one at each place, until all are done or the time is up.

    A run that fails ends no other, unless its data is at fault: then all stop.
    """

    def __init__(
        self,
        places: Sequence[int | None],
        folder: Path,
        deadline: float,
        finished: Callable[[Job, int | None], None],
        say: Callable[[str], None],
        commands: Callable[[Job, Path], Sequence[Sequence[str]]],
    ):
        """folder: of the work directories and logs. deadline: of time.monotonic(); runs are then
        stopped, and save themselves. finished: called after a job whose commands all succeeded.
        commands: of a job, one after the other.
        """
        self.places, self.folder, self.deadline = places, folder, deadline
        self.finished, self.say, self.commands = finished, say, commands
        self.failed: list[str] = []
        self.now: dict[int, tuple[Job, Path]] = {}
        self._stop, self._lock = threading.Event(), threading.Lock()

    def run(self, jobs: Sequence[Job], watch: Callable[[], None]) -> None:
        """watch: called every half second.

        An interruption stops the runs, waits until they have saved, and is raised.
        """
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        threads = [
            threading.Thread(target=self._work, args=(number, waiting))
            for number in range(len(self.places))
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                if time.monotonic() > self.deadline:
                    self._stop.set()
                watch()
                time.sleep(0.5)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _work(self, number: int, waiting: queue.SimpleQueue[Job]) -> None:
        while not self._stop.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._one(number, job)
            except Exception as error:  # a thread's traceback would end nothing and tell nobody
                self._lost(job, repr(error))
            finally:
                self.now.pop(number, None)

    def _one(self, number: int, job: Job) -> None:
        workdir, place = self.folder / job.name, self.places[number]
        if aside := set_aside(workdir, job):
            self.say(f"{job.name}: what was there is of another config, and is now {aside}")
        workdir.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{job.name}.log"
        self.now[number] = job, log
        for command in self.commands(job, workdir):
            code = self._process(command, place, log)
            if self._stop.is_set():
                return
            if code:
                last = log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
                self._lost(job, " | ".join([f"exit code {code}", *last]))
                if code == DataError.exit_code:  # the runs that wait would read the same data
                    self._stop.set()
                return
        with self._lock:
            self.finished(job, place)

    def _lost(self, job: Job, why: str) -> None:
        with self._lock:
            self.failed.append(job.name)
            self.say(f"{job.name} failed: {why}")

    def _process(self, command: Sequence[str], place: int | None, log: Path) -> int:
        with open(log, "a") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment(place, self.folder / "compile_cache"),
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the runs
            )
            if place is not None:
                os.sched_setaffinity(process.pid, {place})
            while process.poll() is None:
                if self._stop.wait(0.5):
                    process.send_signal(signal.SIGTERM)
                    try:
                        return process.wait(SAVING_SECONDS)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        return process.wait()
            return process.returncode


def last_line(log: Path) -> str:
    """What a run said last; "" where it has said nothing."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - 2000))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    spoken = [line.strip() for line in lines if line.strip()]
    return spoken[-1] if spoken else ""
