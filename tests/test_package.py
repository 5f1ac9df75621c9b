"""The wheel holds all of the package, installs, and names every command; nothing of the checkout is
needed for that.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import main as main_program
import nas_jax
from nas_jax.__main__ import MODES, MODULES, help_text, main

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked sdist, built from a copy, so that no build folder of the checkout takes part."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    bytecode = shutil.ignore_patterns("__pycache__")
    for folder in ("nas_jax", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=bytecode)
    for path in ROOT.iterdir():
        if path.is_file() and path.name not in (".git", ".gitignore"):
            shutil.copy(path, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, out]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (packed,) = out.iterdir()
    assert packed.name == f"nas_jax-{nas_jax.__version__}.tar.gz"
    shutil.unpack_archive(packed, out, filter="data")
    return out / packed.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the sdist alone."""
    out = tmp_path_factory.mktemp("wheel")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out]
    done = subprocess.run([*PIP, "wheel", sdist, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of a fresh environment with the wheel, and with the requirements of
    this one.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    install = [*PIP, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def test_the_wheel_holds_every_file_and_no_other(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "nas_jax").rglob("*")
        if path.is_file()
    }
    expected = {name for name in expected if "__pycache__" not in name}
    beside = [ROOT / "main.py", *(ROOT / "configs").glob("*.py")]
    expected |= {f"nas_jax/checkout/{path.relative_to(ROOT).as_posix()}" for path in beside}
    found = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert "nas_jax/convert/hf_files/modeling_nas.py" in found
    assert wheel.name.startswith(f"nas_jax-{nas_jax.__version__}-py3-none-any")


def caller(folder: Path):
    """Runs programs in a folder, without the checkout."""

    def run(*command):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


def test_an_installed_package_runs(installed, tmp_path):
    run = caller(tmp_path)
    where = run(installed / "python", "-c", "import nas_jax; print(nas_jax.__file__)")
    assert str(ROOT) not in where.stdout and installed.parent.name in where.stdout
    assert run(installed / "python", "-m", "nas_jax", "--help").stdout == help_text() + "\n"
    helped = run(installed / "nas_jax", "evals.compare", "--help")
    assert helped.returncode == 0 and "usage: python -m nas_jax.evals.compare" in helped.stdout, (
        helped.stderr
    )
    wrong = run(installed / "nas_jax", "evals.compare", "A")
    assert (
        wrong.returncode == 2
        and wrong.stderr.startswith("error: ")
        and wrong.stderr.count("\n") == 1
    )
    unknown = run(installed / "nas_jax", "compare")
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: command 'compare'")


def test_an_installed_package_trains(installed, tmp_path):
    """Two steps of a config that imports another one, by its name, from another folder."""
    small = {
        "data.num_train": 32,
        "data.image_size": 16,
        "data.batch_size": 8,
        "model.image_size": 16,
        "model.dim": 32,
        "eval.max_images": 4,
        "eval.max_pairs": 4,
        "mesh.data": 1,
        "train.steps": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    run = caller(tmp_path)
    done = run(installed / "nas_jax", "train", "--config=clip:method=siglip", "--workdir=a", *flags)
    assert done.returncode == 0, done.stderr
    assert "siglip-scenes" in done.stdout and "finished" in done.stdout
    assert (tmp_path / "a/checkpoints/2").is_dir()
    wrong = run(installed / "nas_jax", "train", "--config=configs/demo.py", "--workdir=b")
    assert wrong.returncode == 2 and "did you mean --config=demo," in wrong.stderr
    doctor = run(installed / "nas_jax", "doctor", "--wait=60").stdout
    assert "nas_jax train --config=demo --workdir=runs/demo" in doctor, doctor


@pytest.mark.parametrize("given", [["--config=clip:size=base"], ["--config", "clip:size=base"]])
def test_a_config_has_a_name(given, tmp_path, monkeypatch):
    """The name stands for the file, unless a file of that name is where the command runs."""
    monkeypatch.chdir(tmp_path)
    arguments = ["main.py", *given, "--workdir=a"]
    main_program._check_config_file(arguments)
    assert arguments == ["main.py", f"--config={ROOT}/configs/clip.py:size=base", "--workdir=a"]
    (tmp_path / "clip").touch()
    arguments = ["main.py", *given, "--workdir=a"]
    main_program._check_config_file(arguments)
    assert arguments[1] == "--config=clip:size=base"


def test_the_help_names_every_program_and_every_mode():
    programs = set()
    for path in (ROOT / "nas_jax").rglob("*.py"):
        parts = path.relative_to(ROOT / "nas_jax").with_suffix("").parts
        if '\nif __name__ == "__main__":' in path.read_text():
            programs.add(".".join(part for part in parts if part != "__main__"))
    # this table itself, what to-hf starts, and a file that it copies into exports
    started = ("gate_torch", "onnx_torch", "onnx_run", "sentence_run")
    internal = {"", *map("convert.{}".format, started), "convert.hf_files.app"}
    assert programs - internal == MODULES.keys()
    (modes,) = re.findall(r"^MODES = (.+)$", (ROOT / "main.py").read_text(), re.MULTILINE)
    assert set(ast.literal_eval(modes)) == MODES.keys()
    lines = help_text().splitlines()
    assert all(sum(line.split()[:1] == [name] for line in lines) == 1 for name in MODULES)
    assert max(map(len, lines)) <= 120


def test_no_command_prints_the_help_and_another_is_an_error(capsys):
    assert main([]) == 0 and capsys.readouterr().out == help_text() + "\n"
    assert (
        main(["evals.compar"]) == 2 and "error: command 'evals.compar'" in capsys.readouterr().err
    )


def test_a_second_mode_is_an_error(capsys):
    assert main(["train", "--config=demo", "--workdir=a", "--mode=eval"]) == 2
    assert capsys.readouterr().err.startswith("error: train and --mode=eval; expected one mode.")


def test_helpfull_is_short():
    """What main.py itself defines comes first, one screen with its examples; absl's own flags
    follow.
    """
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", "--helpfull"], capture_output=True, text=True
    )
    ours = done.stdout.split("\nabsl.app:")[0].splitlines()
    assert 20 < len(ours) < 50 and len(done.stdout.splitlines()) < 150
    assert all(
        any(line.startswith(f"  --{name}:") for line in ours)
        for name in ("config", "workdir", "mode")
    )
