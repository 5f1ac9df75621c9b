"""The shell scripts, from end to end: with the real processes, loop and checkpoints, and without
them where it is only about who is started and stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_processes import free_port

from nas_jax.utils import errors
from tests.launch.stand_ins import ROOT, calls, checkout, install

SMALL = Path(__file__).with_name("small_main.py")
RECORD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["CLOUD"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    names = "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_LOCAL_DEVICE_IDS"
    words = [name + "=" + os.environ.get(name, "") for name in names]
    cache = "cache=" + os.environ["JAX_COMPILATION_CACHE_DIR"]
    file.write(" ".join([*sys.argv[1:], *words, cache]) + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
codes = (folder / "codes").read_text().split()
number = len((folder / "starts").read_text().splitlines()) - 1
if codes[number] == "waits":
    time.sleep(60)
sys.exit(int(codes[number]))
"""


def wait_for(condition, log, seconds=60):
    end = time.monotonic() + 6 * seconds
    while not (found := condition()):
        assert time.monotonic() < end, (
            Path(log).read_text()[-3000:] if Path(log).exists() else "nothing started"
        )
        time.sleep(0.05)
    return found


def matched(path, pattern):
    return re.search(pattern, path.read_text()) if path.exists() else None


def finished_once_going_on(text, steps=10):
    """That the second start took over where a checkpoint was, and all steps came."""
    went_on = int(re.search(r"going on from step (\d+) of", text)[1])
    assert went_on in (4, 8) and f"step {steps}/{steps}" in text and text.count("finished in") == 1


def test_a_slurm_job_survives_the_kill_of_one_task(tmp_path):
    environment = install(tmp_path, PORT=str(free_port()), HARDWARE="cpu", PYTHON=sys.executable)
    tree, log = checkout(tmp_path / "tree", SMALL), tmp_path / "log"
    command = [
        tree / "launch/slurm/submit.sh",
        "--nodes=2",
        "--",
        "--config=c.py",
        f"--workdir={tmp_path}/runs/small",
    ]
    with log.open("w") as file:
        job = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    wait_for(
        lambda: matched(log, r"step 6/10") and (tmp_path / "runs/small/checkpoints/4").exists(), log
    )
    os.kill(int(matched(log, r"process 1 of 2 is (\d+)")[1]), signal.SIGKILL)
    assert job.wait(timeout=90) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert re.search(r"exit code (137|143): starting all processes again \(retry 1 of 20\)", text)
    finished_once_going_on(text)
    assert calls(environment, "sbatch")[0].startswith(
        f"--chdir={tree} --nodes=2 {tree}/launch/slurm/train.sbatch"
    )


def test_a_tpu_slice_survives_the_kill_of_one_worker(tmp_path):
    environment = install(tmp_path, PORT=str(free_port()))
    tree, log = checkout(tmp_path / "tree", SMALL), tmp_path / "log"
    command = [
        tree / "launch/tpu_vm/tpu.sh",
        "watch",
        "--name=n",
        "--zone=z",
        "--type=v5p-16",
        "--poll=1",
        "--grace=1",
    ]
    command += ["--", "--config=c.py", "--workdir=gs://bucket/runs/small"]
    with log.open("w") as file:
        watch = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    logs = [tmp_path / f"cloud/worker{index}/nas_jax_run/log" for index in range(2)]
    saved = tmp_path / "cloud/buckets/bucket/runs/small/checkpoints"
    wait_for(lambda: matched(logs[0], r"step 6/10") and (saved / "4").exists(), log)
    os.kill(int(matched(logs[1], r"process 1 of 2 is (\d+)")[1]), signal.SIGKILL)
    assert watch.wait(timeout=90) == 0, log.read_text()[-3000:]
    assert "starting all of them again (retry 1 of 100)" in log.read_text()
    finished_once_going_on(logs[0].read_text())
    assert (saved / "10").is_dir()  # gs:// was mounted, and is shared


def test_a_start_without_one_host_names_it_in_time(tmp_path):
    environment = install(tmp_path, PORT=str(free_port()), HARDWARE="cpu", PYTHON=sys.executable)
    environment |= {"MISSING": "1", "START_TIMEOUT": "2", "RETRIES": "0", "JAX_PLATFORMS": "cpu"}
    command = [
        ROOT / "launch/slurm/submit.sh",
        "--nodes=2",
        "--",
        f"--config={ROOT}/configs/demo.py",
    ]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/w"], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == errors.HostError.exit_code
    assert b"error: 1 of 2 processes after 2 s; missing: 1" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.fixture
def place(tmp_path):
    """(checkout whose main.py writes down how it was called, environment, file of those calls)."""
    environment = install(tmp_path, PYTHON=sys.executable, POLL="0.2")
    (tmp_path / "cloud").mkdir()
    return checkout(tmp_path / "tree", RECORD), environment, tmp_path / "cloud/starts"


def codes(place, *given):
    """What main.py shall end with, start by start."""
    (place[2].parent / "codes").write_text(" ".join(map(str, given)))


def worker(place, *arguments, **variables):
    command = [place[0] / "launch/worker.sh", *arguments, "--workdir=runs/a"]
    return subprocess.run(
        command, env=place[1] | variables, capture_output=True, text=True, timeout=30
    )


def test_a_worker_is_started_with_its_numbers_options_and_cache(place):
    codes(place, 0, 0, 0, 0)
    given = {"COORDINATOR": "node0:1", "NUM_PROCESSES": "3", "XLA_FLAGS": "--mine=1"}
    assert worker(place, HARDWARE="gpu", GPUS="2", SLURM_PROCID="2", **given).returncode == 0
    assert worker(place, HARDWARE="v5e", JOB_COMPLETION_INDEX="1", **given).returncode == 0
    gke = {"TPU_WORKER_HOSTNAMES": "h0.s,h1.s", "TPU_WORKER_ID": "1"}
    assert worker(place, HARDWARE="v6e", COMPILE_CACHE="/c", **gke).returncode == 0
    assert worker(place).returncode == 0
    gpu, v5e, v6e, alone = place[2].read_text().splitlines()
    assert "--coordinator=node0:1 --num_processes=3 --process_id=2 --start_timeout=300" in gpu
    # the user's option wins
    assert "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true --mine=1" in gpu
    assert "JAX_LOCAL_DEVICE_IDS=0,1 cache=runs/compile_cache" in gpu
    assert (
        "--process_id=1" in v5e and "fuse_all_reduce=true" in v5e and "XLA_FLAGS=--mine=1 " in v5e
    )
    assert "--coordinator=h0.s:8476 --num_processes=2 --process_id=1" in v6e and v6e.endswith(
        "cache=/c"
    )
    assert "--coordinator" not in alone and "LIBTPU_INIT_ARGS= " in alone


def test_xla_knows_the_options_for_gpus():
    """An unknown one ends the process. Those for TPUs are not in this build of XLA."""
    flags = re.search(r"XLA_FLAGS=(--xla_gpu\S+)", (ROOT / "launch/worker.sh").read_text())[1]
    code = (
        "import os; os.environ['XLA_FLAGS'] = {!r}; "
        "import jaxlib.xla_client; jaxlib.xla_client.make_cpu_client()"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for options, right in ((flags, True), (flags + "x", False)):
        program = [sys.executable, "-c", code.format(options)]
        assert (
            subprocess.run(program, env=environment, capture_output=True, timeout=60).returncode
            == 0
        ) == right


def test_a_failure_is_tried_again_and_a_hopeless_one_is_not(place):
    codes(place, 1, 137, 6, 0)
    assert worker(place, RETRIES="5").returncode == 0
    assert len(place[2].read_text().splitlines()) == 4
    for hopeless in (
        errors.ConfigError,
        errors.DataError,
        errors.CheckpointError,
        errors.DivergedError,
    ):
        place[2].unlink()
        codes(place, hopeless.exit_code, 0)
        assert worker(place, RETRIES="5").returncode == hopeless.exit_code
        assert len(place[2].read_text().splitlines()) == 1
    place[2].unlink()
    codes(place, 1, 1, 1)
    assert worker(place, RETRIES="2").returncode == 1
    assert len(place[2].read_text().splitlines()) == 3


def test_slurm_puts_a_job_back_that_it_stops_before_the_end(place, tmp_path):
    codes(place, "waits", "waits")
    command = [place[0] / "launch/slurm/submit.sh", "--nodes=2", "--", "--workdir=runs/a"]
    job = subprocess.Popen(command, env=place[1], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: matched(place[2], r"\n.*\n"), place[2])
    job.send_signal(signal.SIGUSR1)
    assert "back into the queue" in job.communicate(timeout=30)[0] and job.returncode == 0
    assert calls(place[1], "scontrol")[-1] == "requeue 4242"
    starts = place[2].read_text()
    assert all(
        f"--coordinator=localhost:28484 --num_processes=2 --process_id={index}" in starts
        for index in (0, 1)
    )


def test_a_preempted_slice_is_replaced(place, tmp_path):
    codes(place, "waits", "waits", 0, 0)
    environment, log = place[1], tmp_path / "log"
    del environment["PYTHON"]  # the workers have their own
    command = [
        place[0] / "launch/tpu_vm/tpu.sh",
        "watch",
        "--name=n",
        "--zone=z",
        "--type=v5litepod-8",
        "--spot",
    ]
    command += ["--poll=0.2", "--grace=1", "--", "--workdir=gs://bucket/a"]
    with log.open("w") as file:
        watch = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    wait_for(lambda: matched(place[2], r"\n.*\n"), log)
    (tmp_path / "cloud/state").write_text("SUSPENDED")
    assert watch.wait(timeout=60) == 0, log.read_text()
    assert "the slice is SUSPENDED: giving it back and asking for another" in log.read_text()
    done = [" ".join(call.split()[2:4]) for call in calls(environment, "gcloud")]
    assert done.count("queued-resources create") == 2 and done.count("queued-resources delete") == 1
    assert "--spot" in next(call for call in calls(environment, "gcloud") if " create " in call)
    assert len(place[2].read_text().splitlines()) == 4
    # A second `watch` after the end, and a second `create`, find all done.
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert again.returncode == 0 and len(place[2].read_text().splitlines()) == 4


def test_what_is_hopeless_ends_the_watch_and_stop_by_hand_does_too(place, tmp_path):
    environment = place[1]
    del environment["PYTHON"]
    tpu = [
        place[0] / "launch/tpu_vm/tpu.sh",
        "--name=n",
        "--zone=z",
        "--type=v6e-8",
        "--poll=0.2",
        "--grace=5",
    ]
    end = ["--", "--workdir=gs://bucket/a"]

    def status():
        command = [*tpu, "status"]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    codes(place, 2, 2)
    done = subprocess.run(
        [*tpu, "watch", *end], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "ended with exit code 2, and would again" in done.stdout
    # one worker was enough for that verdict; the other must have ended too, or it is not started
    wait_for(lambda: "running" not in status(), place[2])
    place[2].unlink()
    codes(place, "waits", "waits")
    assert subprocess.run([*tpu, "start", *end], env=environment, timeout=30).returncode == 0
    wait_for(lambda: matched(place[2], r"\n.*\n"), place[2])
    watch = subprocess.Popen(
        [*tpu, "watch", *end], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert "running already" in watch.stdout.readline()
    assert (
        subprocess.run([*tpu, "start", *end], env=environment, capture_output=True).stdout.count(
            b"already"
        )
        == 2
    )
    assert subprocess.run([*tpu, "stop"], env=environment, timeout=30).returncode == 0
    assert "stopped by hand" in watch.communicate(timeout=30)[0] and watch.returncode == 0
    found = status()
    assert "slice: READY" in found and "0 stopped\n1 stopped\n" in found
    assert len(place[2].read_text().splitlines()) == 2  # nothing was started twice


DRY = {
    "slurm/submit.sh --dry-run --nodes=2 -- --workdir=runs/a": (
        "sbatch --chdir={root} --nodes=2 {root}/launch/slurm/train.sbatch --workdir=runs/a",
        "main.py --workdir=runs/a --coordinator=FIRST_NODE:20000 --num_processes=NODES "
        "--process_id=0",
    ),
    "worker.sh --dry-run --workdir=runs/a": ("main.py --workdir=runs/a",),
    "tpu_vm/tpu.sh --dry-run watch --name=n --zone=z --type=v5p-8 --workers=2 -- "
    "--workdir=gs://b/a": (
        "gcloud compute tpus queued-resources create n --zone=z --quiet --node-id=n "
        "--accelerator-type=v5p-8",
        "gcloud compute tpus tpu-vm scp nas_jax.tar.gz n:nas_jax.tar.gz --zone=z --quiet "
        "--worker=all",
        "COORDINATOR=ADDRESS_OF_WORKER_0:8476 NUM_PROCESSES=2",
        "gcloud compute tpus queued-resources delete n --zone=z --quiet --force",
    ),
    "tpu_vm/tpu.sh --dry-run stop --name=n --zone=z": ("on_worker.sh stop by-hand",),
    "tpu_vm/tpu.sh --dry-run logs --name=n --zone=z --worker=1": (
        "--worker=1 '--command=bash nas_jax/",
    ),
}


@pytest.mark.parametrize("line", DRY)
def test_a_dry_run_prints_what_would_be_done_and_does_nothing(place, line):
    done = subprocess.run(
        ["bash", *f"{place[0]}/launch/{line}".split()],
        env=place[1],
        capture_output=True,
        text=True,
        check=True,
    )
    for part in DRY[line]:
        assert part.format(root=place[0]) in done.stdout
    assert Path(place[1]["CALLS"]).read_text() == "" and not place[2].exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("worker.sh --config=c", "no --workdir"),
        ("worker.sh --workdir=gs://bucket/a", "where the bucket is mounted"),
        ("slurm/submit.sh --nodes=2 --workdir=a", "no -- before the arguments"),
        ("slurm/submit.sh -- --config=c", "no --workdir"),
        ("tpu_vm/tpu.sh --name=n --zone=z", "no command"),
        ("tpu_vm/tpu.sh create --name=n --zone=z --type=v4-8", "expected v5litepod-N"),
        ("tpu_vm/tpu.sh create --name=n --zone=z", "no --type"),
        ("tpu_vm/tpu.sh watch --zone=z --type=v5p-8", "no --name"),
        ("tpu_vm/tpu.sh create stop --name=n --zone=z", "two commands"),
        ("tpu_vm/tpu.sh start --name=n --zone=z -- --workdir=a", "expected gs://"),
        ("tpu_vm/tpu.sh create --nmae=n", "--nmae=n"),
    ],
)
def test_a_wrong_command_line_is_one_line(place, line, message):
    done = subprocess.run(
        ["bash", *f"{place[0]}/launch/{line}".split()],
        env=place[1],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and Path(place[1]["CALLS"]).read_text() == ""


def scripts():
    found = [*sorted((ROOT / "launch").rglob("*.sh")), ROOT / "launch/slurm/train.sbatch"]
    return [*found, ROOT / "benchmarks/accelerator.sh"]


def test_shellcheck_finds_nothing(tmp_path):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert len(scripts()) == 7
    done = subprocess.run(
        [shellcheck, "--external-sources", *scripts()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    (tmp_path / "wrong.sh").write_text("#!/usr/bin/env bash\ncd $1\nrm *\n")
    assert subprocess.run([shellcheck, tmp_path / "wrong.sh"], capture_output=True).returncode == 1


def test_hadolint_finds_nothing(tmp_path):
    hadolint = Path(sys.executable).with_name("hadolint")
    files = sorted((ROOT / "launch/gke").glob("Dockerfile.*"))
    assert len(files) == 2
    done = subprocess.run([hadolint, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    shutil.copy(files[0], tmp_path / "Dockerfile")
    with (tmp_path / "Dockerfile").open("a") as file:
        file.write("RUN cd /tmp && sudo apt-get install curl\n")
    assert subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True).returncode == 1


def documented():
    """The commands of docs/launch.md that it calls tested, as lines of a shell."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs/launch.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removesuffix("# tested").strip() for line in lines if line.endswith("# tested")]


def test_the_documented_dry_runs_work_and_do_nothing(tmp_path):
    lines = documented()
    assert len(lines) >= 8 and all("--dry-run" in line for line in lines)
    environment = install(tmp_path)
    python = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment | {"PATH": python}, capture_output=True
        )
        assert done.returncode == 0 and done.stdout, f"{line}: {done.stderr.decode()}"
    assert Path(environment["CALLS"]).read_text() == ""
