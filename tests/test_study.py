"""The study: which runs, how they are compared, and that it goes on where it stopped."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study import page, records
from benchmarks.study.__main__ import Study, main
from benchmarks.study.plan import Choice, Preset, chosen, digest, jobs, resolved
from benchmarks.study.presets import PRESETS
from benchmarks.study.running import Running, of_job
from benchmarks.study.statistics import difference, mean_over_seeds
from benchmarks.study.table import as_text
from nas_jax.utils.errors import ConfigError, DataError

KEY = "val/foils/itm/binding"
PRESET = Preset(
    "A study",
    "configs/demo.py",
    100,
    32,
    {"small": Choice("few shapes"), "large": Choice("many", "world=large")},
    {"albef": Choice("base", "variant=albef"), "nas": Choice("all", "variant=nas")},
    {"val/foils/itm/macro": "all foils", KEY: "binding"},
)


def record(variant, seed, right, setting="small", questions=400, **fields):
    """A run that answers each question right with a probability; units of two questions."""
    job = next(one for one in jobs(PRESET, seed + 1) if one.name == f"{setting}-{variant}-{seed}")
    rng = np.random.default_rng((seed, len(variant)))
    hits = "".join("1" if hit else "0" for hit in rng.random(questions) < right)
    value = 100 * hits.count("1") / questions
    made = records.Record(
        name=job.name, setting=setting, variant=variant, seed=seed, config=job.config,
        flags=job.flags, digest=digest(resolved(job)), pairs=job.pairs,
        metrics={KEY: value, "val/foils/itm/macro": value},
        blind={KEY: 50.0}, chance={KEY: 50.0, "val/foils/itm/macro": 50.0},
        count={KEY: questions, "val/foils/itm/macro": questions},
        hits={"val:foils/itm": {"binding": hits}},
        units={"val:foils/itm": {"binding": tuple((np.arange(questions) // 2).tolist())}},
        negatives=(), truth=None, seconds=10.0, hardware="one core", date="2026-01-01", code="abc",
    )  # fmt: skip
    return replace(made, **fields)


def test_runs_differ_in_what_they_are_named_after_and_in_nothing_else():
    found = jobs(PRESET, 2)
    assert [one.name for one in found[:5]] == [
        "small-albef-0", "small-nas-0", "large-albef-0", "large-nas-0", "small-albef-1",
    ]  # fmt: skip
    assert found[3].config == "configs/demo.py:world=large,variant=nas"
    assert found[3].flags == ("--config.seed=0", "--config.train.steps=100")
    assert found[0].pairs == 3200
    assert [one.name for one in chosen(found, "large-nas,albef-1")] == [
        "large-nas-0", "small-albef-1", "large-albef-1", "large-nas-1",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--only many.*names are like small-albef-0"):
        chosen(found, "many")


def test_a_digest_is_of_what_decides_the_numbers():
    config = resolved(jobs(PRESET, 1)[1])
    assert config["method"]["name"] == "nas" and config["train"]["steps"] == 100

    def changed(section, field, value):
        return digest({**config, section: {**config[section], field: value}}) != digest(config)

    assert changed("optimizer", "lr", 1e-3) and changed("train", "steps", 99)
    assert not changed("train", "log_every", 7)
    nva = config["method"]["nva"]
    assert changed("method", "nva", {**nva, "neighbours": 5})
    off = digest({**config, "method": {**config["method"], "nva": {**nva, "enabled": False}}})
    both = {**nva, "enabled": False, "neighbours": 5}
    assert off == digest({**config, "method": {**config["method"], "nva": both}})


def test_every_preset_names_configs_that_exist():
    from ml_collections.config_flags import config_flags  # noqa: F401 (what main.py reads them by)

    for name, preset in PRESETS.items():
        planned = jobs(preset, 1)
        assert len({job.name for job in planned}) == len(planned), name
        for job in planned:
            path, _, argument = job.config.partition(":")
            scope: dict = {}
            exec(compile(Path(path).read_text(), path, "exec"), scope)
            config = scope["get_config"](argument)
            assert config.data.batch_size == preset.batch_size, job.name
            for flag in job.flags:
                field = flag.removeprefix("--config.").partition("=")[0]
                at = config
                for part in field.split("."):
                    at = at[part]


def test_an_interval_is_students_and_one_seed_has_none():
    found = mean_over_seeds([70.0, 74.0, 75.0])
    half = 4.303 * np.std([70, 74, 75], ddof=1) / np.sqrt(3)  # two degrees of freedom
    np.testing.assert_allclose((found.mean, found.low, found.high), (73, 73 - half, 73 + half))
    assert np.isnan(mean_over_seeds([1.0]).low)
    with pytest.raises(DataError):
        mean_over_seeds([])


def test_a_difference_is_found_where_there_is_one_and_not_where_there_is_none():
    def runs(variant, right):
        return {seed: record(variant, seed, right) for seed in range(3)}

    gained = difference(runs("albef", 0.7), runs("nas", 0.85), KEY)
    assert page.is_sure(gained) and 10 < gained.over_seeds.mean < 20
    assert gained.low > 0 and page.signed(gained).startswith("**+")
    none = difference(runs("albef", 0.8), runs("nas", 0.8), KEY)
    assert not page.is_sure(none) and none.low < 0 < none.high
    macro = difference(runs("albef", 0.7), runs("nas", 0.85), "val/foils/itm/macro")
    np.testing.assert_allclose(macro.low, gained.low)  # one category
    one = difference({0: record("albef", 0, 0.7)}, {0: record("nas", 0, 0.9)}, KEY)
    assert one.low > 0 and not page.is_sure(one)  # one seed says nothing of another
    assert difference({0: record("albef", 0, 0.7)}, {1: record("nas", 1, 0.9)}, KEY) is None
    with pytest.raises(DataError, match="400 and 200 questions"):
        difference({0: record("albef", 0, 0.7)}, {0: record("nas", 0, 0.9, questions=200)}, KEY)


def test_the_page_and_the_table_say_what_the_records_say(tmp_path):
    made = [record("albef", 0, 0.7), record("nas", 0, 0.85), record("nas", 0, 0.9, "large")]
    path = page.write_page(tmp_path, "study", PRESET, made)
    text = path.read_text()
    values = [f"{one.metrics[KEY]:.1f}" for one in made]
    assert all(value in text for value in values) and "code abc" in text
    assert "## small" in text and "## large" in text and "Against `albef`" in text
    assert {one.name for one in (tmp_path / "study").iterdir()} == {"small.png", "large.png"}
    lines = as_text(PRESET, made).splitlines()
    assert lines[1].split() == ["metric", "albef", "nas", "nas", "-", "albef", "chance",
                                "text-only", "n"]  # fmt: skip
    assert lines[4].split()[:3] == ["binding", *values[:2]]


def test_records_come_back_whole_and_one_of_another_config_does_not_count(tmp_path, capsys):
    made = record("nas", 0, 0.85)
    records.write(tmp_path / "study", made)
    (back,) = records.read(tmp_path / "study")
    assert {**vars(back), "units": None} == {**vars(made), "units": None}
    study = Study("study", PRESET, tmp_path, tmp_path)
    assert study.done(jobs(PRESET, 1)) == {"small-nas-0"}
    longer = Study("study", replace(PRESET, steps=200), tmp_path, tmp_path)
    assert longer.done(jobs(longer.preset, 1)) == set()
    assert "small-nas-0: the record is of another config" in capsys.readouterr().out
    other = replace(PRESET, config="configs/emoji.py", settings={"small": Choice("")})
    assert Study("study", other, tmp_path, tmp_path).done(jobs(other, 1)) == set()
    (tmp_path / "study" / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json"):
        records.read(tmp_path / "study")


def shell(text):
    return lambda job, workdir: [[sys.executable, "-c", text, str(workdir), job.name]]


def run_all(tmp_path, commands, planned, seconds=60.0, places=(None, None)):
    done, said = [], []
    running = Running(
        places, tmp_path, time.monotonic() + seconds, lambda job, _: done.append(job.name),
        said.append, commands,
    )  # fmt: skip
    running.run(planned, lambda: None)
    return done, said, running.failed


def test_jobs_run_side_by_side_and_a_failure_is_told_and_ends_nothing(tmp_path):
    planned = jobs(PRESET, 1)
    fails = "import sys; sys.exit('no room' if 'large-albef' in sys.argv[2] else 0)"
    done, said, failed = run_all(tmp_path, shell(fails), planned)
    assert set(done) == {"small-albef-0", "small-nas-0", "large-nas-0"}
    assert failed == ["large-albef-0"] and "exit code 1 | no room" in said[0]


def test_at_the_end_of_the_time_runs_are_stopped_and_may_save(tmp_path):
    saves = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(60)
"""
    began = time.monotonic()
    done, _, failed = run_all(tmp_path, shell(saves), jobs(PRESET, 1), seconds=2.0)
    assert not done and not failed and time.monotonic() - began < 30
    started = {one.parent.name for one in tmp_path.glob("*/started")}
    assert started and {one.parent.name for one in tmp_path.glob("*/saved")} == started


def test_what_a_job_runs(tmp_path):
    train, diagnose, report = of_job(jobs(PRESET, 1)[0], tmp_path, report=True)
    assert train[1:3] == ["main.py", "--config=configs/demo.py:variant=albef"]
    assert diagnose[1:] == ["-m", "nas_jax.inspect.negatives", str(tmp_path)]
    assert report[2] == "nas_jax.inspect.run"


def test_wrong_flags_are_one_line(capsys):
    assert main(["--preset", "moons"]) == 2
    assert "--preset moons; expected one of" in capsys.readouterr().err
    assert main(["--preset", next(iter(PRESETS)), "--seeds", "-1"]) == 2
