"""Takes the place of srun, sbatch, scontrol, gcloud and others: writes down its arguments and does
it on this machine.

`install` puts a program for each into a folder for the PATH; all of them are this file, which looks
at its own name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "srun",
    "sbatch",
    "scontrol",
    "gcloud",
    "curl",
    "gcsfuse",
    "mountpoint",
    "python3",
    "kubectl",
    "xpk",
)


def install(folder: Path, **variables: str) -> dict[str, str]:
    """Makes the programs in `folder`/bin; returns an environment in which they are found first.

    variables: what the programs shall read, above all CLOUD, the folder that stands for the cloud.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in NAMES:
        path = programs / name
        path.write_text(
            f"#!{sys.executable} -S\nimport runpy\nrunpy.run_path({str(__file__)!r}, "
            f"run_name={name!r})\n"
        )
        path.chmod(0o755)
    log = folder / "calls.jsonl"
    log.touch()
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return (
        os.environ | {"PATH": path, "CALLS": str(log), "CLOUD": str(folder / "cloud")} | variables
    )


def calls(environment: dict[str, str], name: str) -> list[str]:
    """The arguments of every call of a program, as one text each."""
    entries = map(json.loads, Path(environment["CALLS"]).read_text().splitlines())
    return [" ".join(arguments) for called, arguments in entries if called == name]


def checkout(folder: Path, main: Path | str) -> Path:
    """A checkout with another main.py, a file or its text."""
    folder.mkdir(parents=True)
    shutil.copytree(
        ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "main.py").write_text(main.read_text() if isinstance(main, Path) else main)
    (folder / "configs").mkdir()
    (folder / "nas_jax").symlink_to(ROOT / "nas_jax")
    for name in ("requirements.txt", "setup.py"):
        (folder / name).write_text("")
    return folder


def srun(arguments: list[str]) -> int:
    """Starts a task for each node, on this machine; kills all when one fails, as
    --kill-on-bad-exit=1 says.
    """
    assert "--kill-on-bad-exit=1" in arguments and "--ntasks-per-node=1" in arguments
    command = arguments[next(i for i, word in enumerate(arguments) if not word.startswith("--")) :]
    count = int(os.environ["SLURM_JOB_NUM_NODES"])
    missing = {int(word) for word in os.environ.get("MISSING", "").split()}
    tasks = []
    for index in sorted(set(range(count)) - missing):
        variables = {
            "SLURM_PROCID": str(index),
            "SLURM_NTASKS": str(count),
            "SLURM_GPUS_ON_NODE": "2",
        }
        tasks.append(subprocess.Popen(command, env=os.environ | variables, start_new_session=True))

    def send(number, frame=None):
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, number)

    signal.signal(signal.SIGTERM, send)  # srun hands signals on
    killed_at = None
    while any(task.poll() is None for task in tasks):
        failed = any(task.poll() not in (None, 0) for task in tasks)
        if failed and killed_at is None:
            killed_at = time.monotonic()
            send(signal.SIGTERM)
        if killed_at and time.monotonic() > killed_at + 1:
            send(signal.SIGKILL)
        time.sleep(0.02)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


def sbatch(arguments: list[str]) -> int:
    """Runs the script at once, with the options behind #SBATCH that matter here."""
    options = [word for word in arguments if word.startswith("--")]
    script = next(i for i, word in enumerate(arguments) if not word.startswith("--"))
    where = next(word.partition("=")[2] for word in options if word.startswith("--chdir="))
    nodes = next(
        (word.partition("=")[2] for word in options[:script] if word.startswith("--nodes=")), "1"
    )
    spool = Path(os.environ["CLOUD"]) / "spool" / "slurm_script"
    spool.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments[script], spool)  # SLURM runs a copy
    variables = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    os.chdir(where)
    os.execve("/bin/bash", ["bash", str(spool), *arguments[script + 1 :]], os.environ | variables)


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        print("localhost\nlocalhost")
    return 0


def gcloud(arguments: list[str]) -> int:
    """Queued resources and TPU VMs: each worker is a home folder below $CLOUD; `state` is that of
    the slice.
    """
    cloud, workers = Path(os.environ["CLOUD"]), int(os.environ.get("WORKERS", "2"))
    state, homes = cloud / "state", [cloud / f"worker{index}" for index in range(workers)]
    what, options = (
        tuple(arguments[2:4]),
        dict(word.partition("=")[::2] for word in arguments if word.startswith("--")),
    )
    if what == ("queued-resources", "create"):
        assert not state.exists()
        for home in homes:
            home.mkdir(parents=True)
        (cloud / "buckets/bucket").mkdir(parents=True, exist_ok=True)
        state.write_text("ACTIVE")
    elif what == ("queued-resources", "delete"):
        assert "--force" in options and "--quiet" in options
        for home in homes:
            if (home / "nas_jax_run/pid").exists():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int((home / "nas_jax_run/pid").read_text()), signal.SIGKILL)
            shutil.rmtree(home)
        state.unlink()
    elif what[1] == "describe":
        if not state.exists():
            print("ERROR: NOT_FOUND: no such thing", file=sys.stderr)
            return 1
        answers = {"value(state.state)": state.read_text(), "value(state)": "READY"}
        print(answers.get(options["--format"], "\n".join(["localhost"] * workers)))
    elif what == ("tpu-vm", "scp"):
        for home in homes:
            shutil.copy(arguments[4], home / arguments[5].partition(":")[2])
    elif what == ("tpu-vm", "ssh"):
        chosen = range(workers) if options["--worker"] == "all" else [int(options["--worker"])]
        started = [
            subprocess.Popen(
                ["bash", "-c", options["--command"]],
                cwd=homes[index],
                env=os.environ | {"HOME": str(homes[index]), "WORKER": str(index)},
            )
            for index in chosen
        ]
        return max(process.wait() for process in started)
    return 0


def curl(arguments: list[str]) -> int:
    """The metadata server of a TPU VM."""
    assert arguments[-1].endswith("/instance/attributes/agent-worker-number")
    print(os.environ["WORKER"])
    return 0


def gcsfuse(arguments: list[str]) -> int:
    mount = Path(arguments[-1])
    mount.rmdir()
    mount.symlink_to(Path(os.environ["CLOUD"]) / "buckets")
    return 0


def mountpoint(arguments: list[str]) -> int:
    return int(not Path(arguments[-1]).is_symlink())


def python3(arguments: list[str]) -> int:
    """pip and uv: a virtual environment is the Python that runs the tests."""
    if arguments[:3] == ["-m", "uv", "venv"]:
        python = Path(".venv/bin/python")
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    return 0


def kubectl(arguments: list[str]) -> int:
    sys.stdout.write(sys.stdin.read())
    return 0


def xpk(arguments: list[str]) -> int:
    return 0


if __name__ in NAMES:
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([__name__, sys.argv[1:]]) + "\n")
    sys.exit(globals()[__name__](sys.argv[1:]))
