"""Several processes as one run: who is there, and the start of `jax.distributed`.

A single process needs none of it. jax ends a process whose partners do not come with an abort and a
stack of C++ frames, so the roll is called first, over a socket beside the coordinator's port.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass

import jax

from nas_jax.utils.errors import ConfigError, HostError

AUTO = "auto"
# after which the others of a process that died end too, so that a launcher can restart all
HEARTBEAT_SECONDS = 30


@dataclass(frozen=True)
class Processes:
    """How a launcher started this process."""

    # HOST:PORT of process 0; "auto": TPU slices, SLURM and GKE say it themselves; "": alone
    coordinator: str = ""
    count: int = 1
    index: int = 0
    timeout: float = 300.0  # seconds until all must be there

    def validate(self) -> None:
        """Raises ConfigError on values that contradict each other."""
        if self.coordinator in ("", AUTO):
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(
                f"--coordinator={self.coordinator}",
                "HOST:PORT or auto",
                "name process 0, like node0:8476",
            )
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"--process_id={self.index} of --num_processes={self.count}",
                "0 to the number less 1",
                "count from 0",
            )


def start(processes: Processes) -> None:
    """Joins the other processes; does nothing for one alone.

    Raises HostError, naming who is missing in time.
    """
    processes.validate()
    if not processes.coordinator:
        return
    known: dict = {}
    if processes.coordinator != AUTO:
        roll_call(processes)
        known = {
            "coordinator_address": processes.coordinator,
            "num_processes": processes.count,
            "process_id": processes.index,
        }
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=int(processes.timeout),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:  # nothing around that says where the others are
        reason = str(error).splitlines()[0][:200]
        raise HostError(
            f"--coordinator=auto ({reason})",
            "a TPU slice, SLURM or GKE",
            "pass --coordinator=HOST:PORT and the numbers",
        ) from error


def roll_call(processes: Processes) -> None:
    """Returns on every process when all are there. The port is the coordinator's plus one.

    Raises HostError on every process that could be reached, naming those that did not come.
    """
    host, _, port = processes.coordinator.rpartition(":")
    deadline = time.monotonic() + processes.timeout
    if processes.index == 0:
        _call(int(port) + 1, processes, deadline)
    else:
        _answer(host, int(port) + 1, processes, deadline)


def _call(port: int, processes: Processes, deadline: float) -> None:
    present: dict[int, socket.socket] = {}
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        while len(present) < processes.count - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            stack.enter_context(connection)
            connection.settimeout(10)
            try:
                index, count = (int(word) for word in _line(connection).split())
            except (ValueError, OSError):
                continue  # a port scanner, or one that died at once
            if count == processes.count and 0 < index < count:
                present[index] = connection
        missing = [index for index in range(1, processes.count) if index not in present]
        answer = "go" if not missing else " ".join(map(str, missing))
        for connection in present.values():
            connection.sendall(f"{answer}\n".encode())
        if missing:
            raise _missing(missing, processes)


def _answer(host: str, port: int, processes: Processes, deadline: float) -> None:
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 10)) as connection:
                connection.sendall(f"{processes.index} {processes.count}\n".encode())
                connection.settimeout(left + 5)
                answer = _line(connection)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(0.3, left))
            continue
        if answer == "go":
            return
        if answer:
            raise _missing([int(word) for word in answer.split()], processes)
        time.sleep(min(0.3, left))
    raise HostError(
        f"process {processes.index} could not reach process 0 at {host}:{port} in "
        f"{processes.timeout:g} s ({reason})",
        "process 0 running there, and two ports free",
        "look into its log, and check --coordinator and the firewall",
    )


def _line(connection: socket.socket) -> str:
    with connection.makefile("r") as file:
        return file.readline().strip()


def _missing(missing: list[int], processes: Processes) -> HostError:
    names = ", ".join(map(str, missing))
    return HostError(
        f"{processes.count - len(missing)} of {processes.count} processes after "
        f"{processes.timeout:g} s; "
        f"missing: {names}",
        "all of them",
        "look into their logs, or raise --start_timeout if their machines come later",
    )
