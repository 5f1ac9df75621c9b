"""`nas_jax doctor` says what is wrong with a machine, on machines where it is wrong."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import setuptools

from nas_jax.doctor import __main__ as doctor
from nas_jax.doctor import libraries, machine, report
from nas_jax.doctor.libraries import EXTRAS, REQUIRED, Probe

ROOT = Path(__file__).resolve().parents[1]
CPU = {"platform": "cpu", "kind": "cpu", "memory": None}


def ask(folder: Path, fakes: dict[str, str], *flags: str, **variables: str):
    """Runs the doctor with modules of its own; returns (exit code, its lines)."""
    for name, source in fakes.items():
        (folder / f"{name}.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "nas_jax", "doctor", *flags],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"} | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def errors(lines: list[str]) -> list[str]:
    """Lines of the first part that say ERROR."""
    return [line for line in lines[: lines.index("")] if " ERROR " in line]


def test_a_whole_machine_has_no_error(tmp_path):
    code, lines = ask(tmp_path, {"tensorboardX": ""}, "--wait=60")
    assert code == 0 and not errors(lines), lines
    assert any(line.startswith("devices    ok ") and "(cpu)" in line for line in lines)
    assert any("17 of 17" in line for line in lines)
    assert any("python main.py --config=configs/demo.py" in line for line in lines)
    assert lines.count("```") == 2 and any("jaxlib" in line for line in lines)


@pytest.mark.parametrize(
    ("fakes", "flags", "said"),
    [
        ({"jax": "raise ImportError('libcuda.so.1: no such file')"}, (), "libcuda.so.1"),
        ({"jax": "import os; os.kill(os.getpid(), 4)"}, (), "SIGILL when jax is imported"),
        ({"jax": "import time; time.sleep(99)"}, ("--wait=1",), "no answer within 1 s"),
        (
            {"jax": "def local_devices():\n    raise RuntimeError('no driver\\n')"},
            (),
            "jax has none: RuntimeError: no driver; JAX_PLATFORMS",
        ),
        ({"simplejpeg": "1/0", "jax": ""}, (), "simplejpeg .* import: ZeroDivisionError.*; mend"),
    ],
)
def test_trouble_is_one_line_each(tmp_path, fakes, flags, said):
    """What the process prints besides its answers, and how it ends, is borne."""
    code, lines = ask(tmp_path, {"tensorboardX": "print('{noise')"} | fakes, *flags)
    found = [line for line in lines[: lines.index("")] if re.search(said, line)]
    assert len(found) == 1, lines
    assert code == 2 and errors(lines)
    assert "mend what says ERROR, then ask again" in lines


def test_a_wrong_flag_is_one_line(capsys):
    assert doctor.main(["--weit=3"]) == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --weit=3; expected")


def test_a_library_that_is_missing_or_of_another_version(monkeypatch):
    have = {name: wanted.split(",")[0][2:] for name, (wanted, _) in REQUIRED.items()}
    have |= {"jax": "0.13.0", "optax": None, "grain": None, "flax": "0.12.5", "pillow": "12.0.rc1"}
    monkeypatch.setattr(libraries, "version", have.get)
    lines = [line for line in doctor.packages(Probe({}, [CPU])) if line.verdict == "ERROR"]
    assert [line.text.split(";")[0] for line in lines] == [
        "missing: optax, grain",
        "jax 0.13.0, but >=0.10,<0.13 is needed",
        "flax 0.12.5, but >=0.12.6 is needed",
    ]
    assert libraries.in_range("0.12.10", ">=0.12.9,<0.13") and libraries.in_range("1", ">=1.0.0")
    assert not libraries.in_range("0.9", ">=0.10")


def test_an_accelerator_that_jax_does_not_use(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(doctor, "ACCELERATORS", (f"{tmp_path}/nvidia[0-9]*",))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (line,) = [line for line in doctor.devices(Probe({}, [CPU])) if line.verdict == "warning"]
    assert "jax has only the CPU" in line.text and "[gpu]" in line.text
    gpu = {"platform": "gpu", "kind": "H100", "memory": 2**36}
    (line,) = doctor.devices(Probe({}, [gpu] * 8))
    assert line.text == "8 x H100 (gpu, 64.0 GiB for jax)"
    assert "mesh.fsdp=8" in doctor.advice(Probe({}, [gpu] * 8))[-1]


def test_the_tables_are_those_of_setup(monkeypatch):
    kept: dict[str, dict] = {}
    monkeypatch.setattr(setuptools, "setup", kept.update)
    runpy.run_path(str(ROOT / "setup.py"))
    wanted = {name + numbers for name, (numbers, _) in REQUIRED.items()}
    assert wanted == set(kept["install_requires"])
    assert EXTRAS.keys() == kept["extras_require"].keys() - {"test", "docs"}


@pytest.mark.parametrize(
    ("files", "quota", "limit"),
    [
        ({}, None, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "max 100000"}, None, None),
        (  # the folder above allows less than the own one
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "150000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": "4294967296",
            },
            1.5,
            2**32,
        ),
        (  # in a container that sees the path of the host
            {
                "proc/self/cgroup": "0::/host/docker-1\n",
                "sys/fs/cgroup/cpu.max": "200000 100000",
                "sys/fs/cgroup/memory.max": "1073741824",
            },
            2.0,
            2**30,
        ),
        (  # version 1
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/d\n2:memory:/d\n1:name=systemd:/d\n",
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/d/memory.limit_in_bytes": "2147483648",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            0.5,
            2**31,
        ),
    ],
)
def test_limits_of_containers(tmp_path, files, quota, limit):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cores = machine.cores(tmp_path)
    assert cores.quota == quota and 0 < cores.usable <= (quota or cores.installed)
    assert machine.memory(tmp_path).limit == limit


def test_folders_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    monkeypatch.chdir(tmp_path)
    assert "free for the current folder" in next(doctor.folders()).text
    bad = [line for line in doctor.folders() if "cannot be written" in line.text]
    assert [(line.verdict, "set " in line.text) for line in bad] == [
        ("ERROR", True),
        ("warning", True),
    ]


def test_a_bug_report_does_not_say_who_and_where(monkeypatch, tmp_path):
    home = tmp_path / "Zoë Müller"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "zmueller")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={home}/dump --xla_a=/data/secret/b")
    monkeypatch.setattr(report.socket, "gethostname", lambda: "node7.lab.example")
    error = (
        f"cannot open {home}/.venv/lib/a.so of zmueller on NODE7: /opt/of_zoe/b.so, /dev/nvidia0"
    )
    text = report.block("1", [], list(doctor.devices(Probe({}, [], error))))
    assert "cannot open ~" in text and "b.so, /dev/nvidia0" in text and "xla_dump_to=~" in text
    for secret in (
        "Zoë",
        "Müller",
        "zmueller",
        "node7",
        "NODE7",
        str(tmp_path),
        "secret",
        "of_zoe",
    ):
        assert secret not in text, text
