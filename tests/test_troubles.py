"""What a user meets on damaged checkpoints, a full disk, a read-only directory, another config:
main.py, one line each.

The run is a real one, except that its state is small and its step and evaluation do nothing:
compilers take minutes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import main
from benchmarks.faults import RECIPE
from nas_jax import runner
from nas_jax.methods.albef import Albef
from nas_jax.train.state import TrainState

# The smallest run, without what its end would draw; and another config if asked for.
CHANGES = """
from dataclasses import asdict

from nas_jax.methods.albef import AlbefConfig

smallest = get_config


def get_config(argument=""):
    steps, rate, metric = (argument + "@@").split("@", 2)
    config = smallest(steps)
    config.method = asdict(AlbefConfig(itc=ItcConfig(queue_size=16)))
    config.optimizer.lr = float(rate or 1e-3)
    config.train.best_metric = metric.rstrip("@")
    return config
"""


@dataclass(frozen=True)
class Metric:
    key: str = "val/r1"
    value: float = 0.5
    chance: float = 0.1
    blind: float | None = None
    count: int = 1


def small_state(parts):
    rng = jax.random.key(parts.seed)
    # every file that Orbax may cut it into is longer than the config
    table = jax.random.normal(rng, (64, 800))
    params = {"text_encoder": {"word_embedding": {"embedding": table}}, "temp": jnp.float32(0.07)}
    return TrainState(jnp.int32(0), params, (), {}, jax.random.key_data(rng))


def make_small_step(*args):
    def step(state, batch, stage):
        params = jax.tree.map(lambda leaf: leaf * 1.01, state.params)
        return state.replace(step=state.step + 1, params=params), {"loss": jnp.float32(1)}

    return step


def evaluate(params, method_state, step):
    return [Metric()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner.Parts, "init_state", small_state)
    monkeypatch.setattr(runner, "make_train_step", make_small_step)
    monkeypatch.setattr(Albef, "observe", lambda self, params, state: {})
    monkeypatch.setattr(runner, "make_evaluator", lambda *args: evaluate)
    monkeypatch.setattr(runner, "format_table", lambda metrics: "")
    cache = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    yield
    jax.config.update("jax_compilation_cache_dir", cache[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cache[1])


def call(workdir, argument=6, mode="train"):
    """main.py in this process; the exit code."""
    recipe = f"--config={recipe_beside(workdir)}:{argument}"
    return main.main(["main.py", recipe, f"--workdir={workdir}", f"--mode={mode}"])


def recipe_beside(workdir):
    recipe = workdir.parent / "recipe.py"
    if not recipe.exists():
        recipe.write_text(RECIPE + CHANGES)
    return recipe


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def error_line(capfd):
    """The one line on stderr."""
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "; expected " in lines[0], err
    assert "Remedy: " in lines[0] and "Traceback" not in out
    return lines[0]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    return tmp_path_factory.mktemp("made") / "run"


@pytest.fixture
def saved(made_once, quick, tmp_path, capfd):
    """The work directory of a run with checkpoints 3 and 6."""
    if not made_once.exists():
        assert call(made_once) == 0
    capfd.readouterr()
    return Path(shutil.copytree(made_once, tmp_path / "run"))


# ------------------------------------------------------------------------------ damaged checkpoints


def array_file(checkpoint):
    return max(checkpoint.glob("state/**/d/*"), key=lambda path: path.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "a truncated array file": (
        lambda it: cut(array_file(it)),
        "OUT_OF_RANGE: Error reading .* not valid for value",
    ),
    "one flipped byte": (
        lambda it: flip(array_file(it)),
        "params/text_encoder/.*: other bits than were saved",
    ),
    "a missing metadata file": (
        lambda it: (it / "state/_METADATA").unlink(),
        "state/_METADATA is missing",
    ),
    "a missing record": (
        lambda it: (it / "position/metadata").unlink(),
        "position/metadata is missing",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage(saved, kind, capfd):
    damage, what = DAMAGE[kind]
    checkpoints = saved / "checkpoints"
    damage(checkpoints / "6")
    damaged, older = contents(checkpoints / "6"), contents(checkpoints / "3")
    expected = (saved / "metrics.jsonl").read_bytes()

    # The newest alone: the run goes on from the one before, and says so in one line.
    assert call(saved) == 0
    out, err = capfd.readouterr()
    lines = [line for line in out.splitlines() if "damaged" in line]
    assert len(lines) == 1 and err == ""
    assert re.fullmatch(
        rf"checkpoint {checkpoints}/6 is damaged \(.*{what}.*\); it is now .*; 3 is used instead",
        lines[0],
    )
    assert "going on from step 3" in out and (saved / "metrics.jsonl").read_bytes() == expected
    assert contents(checkpoints / "damaged-6") == damaged and contents(checkpoints / "3") == older

    # All of them: an error, and no byte of them changes.
    shutil.rmtree(checkpoints / "damaged-6")
    for step in "36":
        damage(checkpoints / step)
    before = contents(checkpoints)
    for mode in ("train", "eval"):
        assert call(saved, 12, mode) == 4
        assert re.search(
            rf"checkpoint {checkpoints}/6 is damaged \(.*{what}.*\), and so are 3; .* Remedy: "
            r"copy a whole one there",
            error_line(capfd),
        )
        assert (
            contents(checkpoints) == before and (saved / "metrics.jsonl").read_bytes() == expected
        )


# No writing
# ------------------------------------------------------------------------------------------------


@contextmanager
def file_limit(size):
    """Files end after `size` bytes, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def goes_on(workdir, steps=12):
    """With room again, the run comes to its end, with every step and evaluation in its records."""
    assert call(workdir, steps) == 0
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "train"] == list(
        range(1, steps + 1)
    )
    assert [entry["step"] for entry in entries if entry["kind"] == "eval"] == [6, 7, 12]
    assert {"6.json", "7.json", "12.json"} == {path.name for path in (workdir / "evals").iterdir()}


def test_no_room_for_a_checkpoint(saved, capfd):
    assert (
        len((saved / "config.json").read_bytes())
        < 9000
        < array_file(saved / "checkpoints/6").stat().st_size
    )
    before = contents(saved / "checkpoints")
    with file_limit(9000):
        code = call(saved, 12)
    assert code == 4
    line = error_line(capfd)
    assert re.search(
        rf"saving to {saved}/checkpoints failed \(.*File too large.*\), newest complete "
        r"checkpoint: 6; .*make room",
        line,
    )
    after = contents(saved / "checkpoints")
    assert {path: after[path] for path in before} == before
    goes_on(saved)


def test_no_room_for_the_records(saved, capfd):
    path, before = saved / "metrics.jsonl", contents(saved / "checkpoints")
    path.write_text(
        json.dumps({"step": 1, "kind": "note", "text": "x" * 9000}) + "\n" + path.read_text()
    )
    # to write it anew, and to add to it
    for room, what in ((-10, "metrics.jsonl.*"), (10, "metrics.jsonl")):
        with file_limit(path.stat().st_size + room):
            code = call(saved, 12)
        assert code == 4
        assert re.search(
            rf"writing to {saved}/{what} failed \(File too large\); .*make room", error_line(capfd)
        )
        assert contents(saved / "checkpoints") == before
    goes_on(saved)


def test_an_evaluation_that_cannot_be_written_is_made_again(saved, capfd):
    (saved / "evals" / "12.json").mkdir()
    assert call(saved, 12) == 4
    assert re.search(
        rf"writing to {saved}/evals/12.json.* failed \(Is a directory\); ", error_line(capfd)
    )
    assert (saved / "checkpoints" / "12").is_dir()
    (saved / "evals" / "12.json").rmdir()
    goes_on(saved)


def test_a_full_disk_at_the_first_byte(saved, capfd, monkeypatch):
    def no_room(self, data, real=Path.write_bytes):
        if saved in self.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, data)

    before = contents(saved)
    monkeypatch.setattr(Path, "write_bytes", no_room)
    assert call(saved, 12) == 4
    assert f"writing to {saved}/config.json.tmp failed (No space left on device); " in error_line(
        capfd
    )
    assert contents(saved) == before


@contextmanager
def read_only(workdir):
    folders = [workdir, *(path for path in workdir.rglob("*") if path.is_dir())]
    modes, user = [stat.S_IMODE(folder.stat().st_mode) for folder in folders], os.geteuid()
    for folder in folders:
        folder.chmod(0o555)
    try:
        if user == 0:  # who may write everywhere
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


def test_a_read_only_work_directory(saved, capfd):
    with tempfile.TemporaryDirectory() as top:  # one that another user may enter
        Path(top).chmod(0o755)
        workdir = Path(shutil.copytree(saved, Path(top, "run")))
        before = contents(workdir)
        recipe_beside(workdir)
        with read_only(workdir):
            code = call(workdir, 12)
        assert code == 4
        line = error_line(capfd)
        assert (
            f"writing to {workdir}/config.json.tmp failed (Permission denied); expected a "
            "writable --workdir" in line
        )
        assert contents(workdir) == before


# Another config
# ------------------------------------------------------------------------------------------------


def test_a_misspelt_metric_is_refused_before_the_first_step(saved, capfd):
    before = contents(saved / "checkpoints")
    metric = "val/retreival/itm/image_to_text_r@1"
    for mode in ("train", "check"):
        assert call(saved, f"12@@{metric}", mode) == 2
    out, err = capfd.readouterr()
    expected = "did you mean 'val/retrieval/itm/image_to_text_r@1'"
    assert expected in err and re.search(f"evaluation +ERROR .*{expected}", out)
    assert "step 7" not in out and contents(saved / "checkpoints") == before


def test_another_config(saved, capfd):
    before = contents(saved)
    for mode in ("train", "eval"):
        assert call(saved, "12@0.5", mode) == 4
        line = error_line(capfd)
        assert (
            f"{saved} holds a run with another config, (there, here): optimizer.lr (0.001, 0.5); "
            "expected " in line
        )
        assert "Remedy: pass another --workdir, or set these fields back" in line
        assert contents(saved) == before
