"""A run whose data and work directory are in a bucket: main.py is killed and goes on, and what
users meet there.

The run is a real one, except that its state is small and its step and evaluation do nothing:
compilers take minutes.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import fake_gcs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import main
from benchmarks.faults import RECIPE
from nas_jax import preflight, runner
from nas_jax.inspect import run as report
from nas_jax.methods.albef import Albef
from nas_jax.storage.paths import as_path
from nas_jax.train.config import TrainConfig
from nas_jax.train.state import TrainState
from nas_jax.train.watch import check_trackers
from nas_jax.train.watchdog import Watchdog
from nas_jax.utils.errors import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
WITHOUT_PICTURES = """
from nas_jax.methods.variants import with_variant

whole = get_config


def get_config(argument=""):
    config = whole(argument)
    albef = with_variant(NasConfig(itc=ItcConfig(queue_size=16)), "albef")
    config.method = to_config_dict(albef)
    config.train.checkpoint_every, config.train.eval_every = 2, 1
    config.update_from_flattened_dict({fields!r})
    return config
"""


@dataclass(frozen=True)
class Metric:
    value: float
    key: str = "val/r1"
    chance: float = 0.1
    blind: float | None = None
    count: int = 1


def small_state(parts):
    table = jax.random.normal(jax.random.key(parts.seed), (64, 40))
    params = {"text_encoder": {"word_embedding": {"embedding": table}}, "temp": jnp.float32(0)}
    return TrainState(jnp.int32(0), params, (), {}, jax.random.key_data(jax.random.key(1)))


def make_small_step(*args):
    def step(state, batch, stage):
        # Reads the batch: of another one, all that follows is different.
        seen = batch["token_ids_BxL"].sum() + batch["image_BxHxWx3"].astype(jnp.float32).mean()
        params = state.params | {"temp": state.params["temp"] * 0.5 + seen}
        return state.replace(step=state.step + 1, params=params), {"loss": params["temp"]}

    return step


def evaluate(params, method_state, step):
    if step == int(os.environ.get("KILL_AT", -1)):
        saved = as_path(os.environ["SAVED"])
        while not saved.exists():  # saving goes on in the background
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return [Metric(float(params["temp"]))]


STAND_INS = (
    (runner.Parts, "init_state", small_state),
    (runner, "make_train_step", make_small_step),
    (Albef, "observe", lambda self, params, state: {}),
    (Albef, "start_from", lambda self, params, state, saved: state),
    (runner, "make_evaluator", lambda *args, **options: evaluate),
    (runner, "format_table", lambda metrics: ""),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for stand_in in STAND_INS:
        monkeypatch.setattr(*stand_in)
    cache = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    yield
    jax.config.update("jax_compilation_cache_dir", cache[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cache[1])


@pytest.fixture
def bucket():
    with fake_gcs.bucket() as bucket:
        bucket.put("pairs/0.tar", pairs())
        yield bucket


def pairs(count=40):
    """A tar of small pictures with captions."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index in range(count):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(picture, "png")
            for suffix, data in (
                ("png", picture.getvalue()),
                ("txt", f"a dog with number {index}".encode()),
            ):
                info = tarfile.TarInfo(f"{index:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def words(workdir, data, mode="train", **fields):
    """A command line; fields: of the config, with __ for dots.

    Flags of other fields are not read in this process.
    """
    fields = {name.replace("__", "."): value for name, value in fields.items()} | {
        "data.train": (str(data),)
    }
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as recipe:
        recipe.write(RECIPE + WITHOUT_PICTURES.replace("{fields!r}", repr(fields)))
    return ["main.py", f"--config={recipe.name}:{STEPS}", f"--workdir={workdir}", f"--mode={mode}"]


def error_line(capfd):
    """The one line on stderr that is an error."""
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "; expected " in lines[0] and "Traceback" not in out + err, err
    return lines[0]


def test_a_run_from_a_bucket_into_a_bucket_goes_on_after_a_kill_as_on_the_disk(
    bucket, tmp_path, capfd
):
    (tmp_path / "0.tar").write_bytes(bucket.get("pairs/0.tar"))
    assert main.main(words(tmp_path / "whole", tmp_path / "0.tar")) == 0
    workdir = f"{bucket.url}/runs/small"
    place = workdir, f"{bucket.url}/pairs/*.tar"
    killed = os.environ | {"KILL_AT": "3", "SAVED": f"{workdir}/checkpoints/2/commit_success.txt"}
    # as many as here
    killed["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={jax.device_count()}"
    killed["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    first = subprocess.run(
        [sys.executable, __file__, *words(*place)[1:]], env=killed, capture_output=True, text=True
    )
    assert first.returncode == -signal.SIGKILL, first.stdout + first.stderr
    done = [
        json.loads(line)["step"] for line in bucket.get("runs/small/metrics.jsonl").splitlines()
    ]
    # what came after is not there yet, but nothing before the checkpoint is missing
    assert done[-1] == 2

    capfd.readouterr()
    assert main.main(words(*place, train__profile_steps=(4, 5))) == 0
    out, err = capfd.readouterr()
    assert f"going on from step 2 of {workdir}" in out and f"saved in {workdir}/checkpoints" in out
    assert "WARNING" not in err and "rror" not in err
    assert (
        bucket.get("runs/small/metrics.jsonl")
        == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    )
    assert (
        bucket.get("runs/small/evals/6.json")
        == (tmp_path / "whole" / "evals" / "6.json").read_bytes()
    )
    assert len(bucket.get("runs/small/starts.jsonl").splitlines()) == 2
    boards = [name for name in bucket.names("runs/small/tensorboard/")]
    assert boards and all(b"val/r1" in bucket.get(name) for name in boards[-1:])
    assert any(name.endswith(".xplane.pb") for name in bucket.names("runs/small/profile/"))
    assert "runs/small/checkpoints/6/commit_success.txt" in bucket.names()
    assert not [
        name
        for name in bucket.names()
        if name.endswith((".tmp", ".part", ".partial")) or "cache" in name
    ]
    assert not list(Path().glob("gs:*"))  # what pathlib would make of it
    assert not list(tmp_path.glob("nas_jax-*/*.jsonl"))  # temporary files

    evals = bucket.objects.pop("runs/small/evals/6.json").data
    assert (
        main.main(words(*place, "eval")) == 0
        and "evaluation at step 6 (gs://" in capfd.readouterr().out
    )
    assert bucket.get("runs/small/evals/6.json") == evals
    assert report.main([workdir]) == 0 and "finished at step 6" in capfd.readouterr().out
    page = bucket.get("runs/small/report.html").decode()
    assert "2 starts" in page and "record is whole" in page and "val/r1" in page


def test_weights_of_a_run_in_a_bucket(bucket, tmp_path, capfd):
    data = f"{bucket.url}/pairs/0.tar"
    assert main.main(words(f"{bucket.url}/a", data, train__steps=2)) == 0
    assert (
        main.main(
            words(tmp_path / "b", data, train__steps=4, train__continue_from=f"{bucket.url}/a")
        )
        == 0
    )
    assert f"case 2: going on at step 2, from {bucket.url}/a" in capfd.readouterr().out


# State of the bucket, mode -> exit code, line.
REFUSED = {
    ("gs://no-such-bucket/run", "", "train"): (
        4,
        "there is no bucket no-such-bucket; .* Remedy: create it",
    ),
    ("gs://no-such-bucket/run", "", "eval"): (4, "there is no bucket no-such-bucket"),
    ("gs://no-such-bucket/run", "", "compile"): (4, "there is no bucket no-such-bucket"),
    ("{}/run", "forbidden", "train"): (
        4,
        "access denied: .*; expected a bucket that this account may read and write",
    ),
    ("{}/run", "read_only", "train"): (
        4,
        "writing to gs://.* failed .access denied.*; expected a writable --workdir",
    ),
    ("{}/run", "", "eval"): (4, "no config.json in gs://"),
    ("s3://bucket/run", "", "train"): (
        2,
        "--workdir=s3://bucket/run; expected a directory, or gs://BUCKET/FOLDER",
    ),
}


@pytest.mark.parametrize(("workdir", "state", "mode"), REFUSED)
def test_a_bucket_that_cannot_be_used_is_one_line(
    workdir, state, mode, bucket, tmp_path, monkeypatch, capfd
):
    code, line = REFUSED[workdir, state, mode]
    if state:
        monkeypatch.setattr(bucket, state, True)
    before = bucket.names()
    assert main.main(words(workdir.format(bucket.url), "scenes", mode)) == code
    found = error_line(capfd)
    assert re.search(line, found) and bucket.names() == before


def test_the_check_writes_into_a_bucket_and_takes_it_away_again(bucket, monkeypatch):
    before, workdir = bucket.names(), as_path(f"{bucket.url}/run")
    assert (
        preflight._workdir(workdir) == ("ok", f"{workdir} can be written")
        and bucket.names() == before
    )
    monkeypatch.setattr(bucket, "read_only", True)
    with pytest.raises(
        CheckpointError, match="gs://.*/run: access denied.*; expected a writable --workdir"
    ):
        preflight._workdir(workdir)


def test_a_bucket_that_closes_in_the_middle_ends_the_run_in_one_line_and_loses_nothing(
    bucket, tmp_path, capfd, monkeypatch
):
    command = words(f"{bucket.url}/run", f"{bucket.url}/pairs/0.tar")

    def close(params, method_state, step):
        while step == 3 and "run/checkpoints/2/commit_success.txt" not in bucket.names():
            time.sleep(0.01)
        bucket.read_only = step >= 3
        return [Metric(float(params["temp"]))]

    with monkeypatch.context() as patch:
        patch.setattr(runner, "make_evaluator", lambda *args: close)
        assert main.main(command) == 4
    assert "access denied" in error_line(capfd)
    bucket.read_only = False
    assert main.main(command) == 0 and "going on from step 2" in capfd.readouterr().out
    assert main.main(words(tmp_path / "whole", f"{bucket.url}/pairs/0.tar")) == 0
    assert bucket.get("run/metrics.jsonl") == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_hang_is_reported_in_the_bucket(bucket, capfd):
    with Watchdog(0.2, as_path(f"{bucket.url}/run")) as watchdog:
        watchdog.beat(7)
        last = time.monotonic() + 60
        while "run/hang-0.txt" not in bucket.names() and time.monotonic() < last:
            time.sleep(0.02)
    assert b"after step 7" in bucket.get(
        "run/hang-0.txt"
    ) and b"most recent call first" in bucket.get("run/hang-0.txt")
    assert "after step 7" in capfd.readouterr().err


@pytest.mark.parametrize("fields", ({"wandb": "nas", "wandb_mode": "offline"}, {"mlflow": "nas"}))
def test_trackers_that_write_files_do_not_go_into_a_bucket(fields, monkeypatch, tmp_path):
    for package in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_trackers(TrainConfig(**fields), tmp_path)
    with pytest.raises(ConfigError, match=r"with gs://b/run; expected .* on the disk"):
        check_trackers(TrainConfig(**fields), as_path("gs://b/run"))


if __name__ == "__main__":
    for thing, name, stand_in in STAND_INS:
        setattr(thing, name, stand_in)
    sys.exit(main.main(sys.argv))
