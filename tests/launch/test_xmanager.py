"""The experiment's jobs, built with a stand-in for XManager's package; its local jobs really run
launch/worker.sh.

docs/launch.md has the same with XManager itself, which pip takes too long to install for a test.
"""

from __future__ import annotations

import enum
import shlex
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from launch.xmanager import experiment
from nas_jax.utils.errors import ConfigError


class ResourceType(enum.Enum):
    A100 = 46
    T4 = 22


@dataclass
class Executor:
    """Local, Vertex or Kubernetes: where, and with what."""

    where: str
    requirements: dict = field(default_factory=dict)

    def Spec(self):
        return SimpleNamespace(where=self.where)


class Experiment:
    """Keeps the jobs; runs those of this machine as XManager does: through a shell, each word
    quoted.
    """

    def __init__(self):
        self.jobs = []

    def package(self, packages):
        return packages

    def add(self, job):
        self.jobs.append(job)
        if job.executor.where == "local":
            command = shlex.join([job.executable.path, *job.args])
            job.code = subprocess.run(
                command, shell=True, env=dict(self.environment, **job.env_vars)
            ).returncode


@pytest.fixture
def xmanager(monkeypatch, tmp_path):
    """The stand-in, in the place of the package; its experiment."""
    made = Experiment()
    made.environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "FOUND": str(tmp_path / "found"),
    }

    @contextmanager
    def create_experiment(experiment_title):
        made.title = experiment_title
        yield made

    xm = SimpleNamespace(
        ResourceType=ResourceType,
        JobRequirements=dict,
        Job=SimpleNamespace,
        binary=lambda executor_spec, path: SimpleNamespace(path=path),
        container=lambda executor_spec, image_path: SimpleNamespace(image=image_path),
    )
    xm_local = SimpleNamespace(
        create_experiment=create_experiment,
        Local=lambda: Executor("local"),
        Vertex=lambda requirements: Executor("vertex", requirements),
        Kubernetes=lambda requirements: Executor("kubernetes", requirements),
    )
    package = ModuleType("xmanager")
    package.xm, package.xm_local = xm, xm_local
    monkeypatch.setitem(sys.modules, "xmanager", package)
    return made


@pytest.fixture
def call():
    """Runs the launcher with a command line, and forgets its flags."""

    def run(*words):
        experiment.FLAGS.unparse_flags()
        for name in experiment.FLAGS:
            experiment.FLAGS[name].unparse()
        return experiment.main(experiment.FLAGS(["experiment", *words]))

    return run


SWEEP = (
    "--run_arg=--config=configs/demo.py",
    "--sweep=optimizer.lr=1e-3,3e-3",
    "--sweep=config.seed=0,1",
)


def test_a_sweep_is_every_combination_each_in_its_folder():
    found = experiment.units("runs/s/", ["--config=c.py"], ["optimizer.lr=1e-3,3e-3", "seed=0,1"])
    assert [unit.arguments[1:3] for unit in found] == [
        (f"--config.optimizer.lr={rate}", f"--config.seed={seed}")
        for rate in ("1e-3", "3e-3")
        for seed in "01"
    ]
    folders = [unit.arguments[-1] for unit in found]
    assert folders[3] == "--workdir=runs/s/3-optimizer.lr=3e-3-seed=1" and len(set(folders)) == 4
    assert all(unit.arguments[0] == "--config=c.py" for unit in found)
    (alone,) = experiment.units("runs/s", ["--config=c.py"], [])
    assert alone.arguments == ("--config=c.py", "--workdir=runs/s/0")


def test_local_units_run_the_worker(xmanager, call, monkeypatch, tmp_path):
    tree = tmp_path / "tree"
    (tree / "launch").mkdir(parents=True)
    for name in ("worker.sh", "common.sh"):
        (tree / "launch" / name).symlink_to(experiment.ROOT / "launch" / name)
    (tree / "main.py").write_text(
        "import os, sys; open(os.environ['FOUND'], 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    )
    monkeypatch.setattr(experiment, "ROOT", tree)
    assert call("--name=s", f"--workdir={tmp_path}/a b", *SWEEP) == 0
    lines = (tmp_path / "found").read_text().splitlines()
    assert (
        len(lines) == len(xmanager.jobs) == 4
        and xmanager.title == "s"
        and all(job.code == 0 for job in xmanager.jobs)
    )
    start = "--config=configs/demo.py --config.optimizer.lr=3e-3 --config.seed=0"
    assert lines[2] == f"{start} --workdir={tmp_path}/a b/2-optimizer.lr=3e-3-seed=0"
    assert all(int(job.env_vars["RETRIES"]) > 0 for job in xmanager.jobs)


@pytest.mark.parametrize(
    ("to", "workdir", "there"), [("vertex", "gs://b-1/s", "/gcs/b-1/s"), ("kubernetes", "/s", "/s")]
)
def test_containers_ask_for_their_gpus(xmanager, call, to, workdir, there):
    assert call(f"--to={to}", "--gpus=8", "--image=i:1", f"--workdir={workdir}", *SWEEP[:2]) == 0
    assert len(xmanager.jobs) == 2
    for number, job in enumerate(xmanager.jobs):
        assert (
            job.executor == Executor(to, {ResourceType.A100: 8}) and job.executable.image == "i:1"
        )
        assert (
            job.args[-1].startswith(f"--workdir={there}/{number}-") and job.env_vars["GPUS"] == "8"
        )


def test_a_tpu_sweep_is_jobsets(call, capsys):
    words = (
        "--to=gke",
        "--accelerator=v5e:4x4",
        "--image=i",
        "--workdir=gs://b-1/s",
        "--name=n",
        "--dry-run",
    )
    assert call(*words, *SWEEP) == 0
    manifests = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [manifest["metadata"]["name"] for manifest in manifests] == ["n-0", "n-1", "n-2", "n-3"]
    assert all(manifest["kind"] == "JobSet" for manifest in manifests)
    # what XManager's own executor would drop
    assert "google.com/tpu: 4" in yaml.safe_dump(manifests[0])


def test_a_dry_run_prints_and_needs_no_xmanager(call, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "xmanager", None)
    assert call("--workdir=runs/s", *SWEEP, "--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 4 and all(
        line.startswith("RETRIES=20 launch/worker.sh --config=") for line in lines
    )
    assert call("--workdir=runs/s", *SWEEP) == 2
    assert "pip install xmanager" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no --workdir"),
        (("--workdir=a", "--sweep=optimizer.lr"), "FIELD=VALUE"),
        (("--workdir=a", "--sweep=seed=1", "--sweep=seed=2"), "each field once"),
        (("--workdir=a", "--sweep=optimizer.lrr=1"), "did you mean optimizer.lr"),
        (("--workdir=a", "--to=vertex"), "without --image"),
        (("--workdir=a", "--to=vertex", "--image=i"), "a bucket"),
        (("--workdir=gs://b/a", "--to=kubernetes", "--image=i"), "use --to=gke"),
        (("--workdir=a", "--to=kubernetes", "--image=i", "--gpu=H100"), "--accelerator=h100:1"),
        (("--workdir=gs://b/a", "--to=vertex", "--image=i", "--gpu=T4"), "one of A100"),
        (("--workdir=gs://bu/a", "--to=gke", "--image=i"), "v5e:4x4"),
        (("--workdir=a", "more"), "only flags"),
    ],
)
def test_a_wrong_experiment_is_one_line(call, capsys, words, message):
    assert call(*words) == ConfigError.exit_code
    text = capsys.readouterr().err
    assert text.startswith("error: ") and message in text and text.count("\n") == 1
