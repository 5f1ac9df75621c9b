"""The study: which runs, how they are compared, and that it goes on where it stopped."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.study import page, records
from benchmarks.study.__main__ import Study, main
from benchmarks.study.plan import Choice, Preset, chosen, decisive, jobs, resolved, same_run
from benchmarks.study.presets import PRESETS
from benchmarks.study.running import Running, of_job, places, set_aside
from benchmarks.study.statistics import difference, mean_over_seeds
from benchmarks.study.table import as_text
from nas_jax.utils.errors import ConfigError, DataError

KEY = "val/foils/itm/binding"
PRESET = Preset(
    "A study",
    "configs/demo.py",
    100,
    32,
    {"small": Choice("few shapes"), "large": Choice("many", {"world": "large"})},
    {"albef": Choice("base", {"variant": "albef"}), "nas": Choice("all", {"variant": "nas"})},
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
        flags=job.flags, fields=decisive(resolved(job)), pairs=job.pairs,
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
    assert found[3].config == "configs/demo.py:steps=100,world=large,variant=nas"
    assert found[3].flags == ("--config.seed=0",)
    assert found[0].pairs == 3200
    assert [one.name for one in chosen(found, "large-nas,albef-1")] == [
        "large-nas-0", "small-albef-1", "large-albef-1", "large-nas-1",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--only many.*names are like small-albef-0"):
        chosen(found, "many")


def test_a_run_is_the_same_where_what_decides_its_numbers_is():
    job = jobs(PRESET, 1)[1]
    config = resolved(job)
    assert config["method"]["name"] == "nas" and config["train"]["steps"] == 100

    def same(section, field, value):
        return same_run({**config, section: {**config[section], field: value}}, job)

    assert same_run(config, job) and same_run(decisive(config), job)
    assert not same("optimizer", "lr", 1e-3) and not same("train", "steps", 99)
    assert not same("model", "gone", 1)  # a field that is no more
    assert same("train", "log_every", 7)
    nva = config["method"]["nva"]
    assert not same("method", "nva", {**nva, "neighbours": 5})
    newer = {name: value for name, value in config["model"].items() if name != "remat"}
    assert same_run({**config, "model": newer}, job)  # the field came later
    off = resolved(jobs(replace(PRESET, variants={"vd": Choice("", {"variant": "vd"})}), 1)[0])
    other = {**off["method"]["nva"], "neighbours": 5}
    assert decisive(off) == decisive({**off, "method": {**off["method"], "nva": other}})


def test_every_preset_names_configs_that_exist_and_ends_with_its_negatives():
    for name, preset in PRESETS.items():
        planned = jobs(replace(preset, steps=30), 1)
        assert len({job.name for job in planned}) == len(planned), name
        for job in planned:
            config = resolved(job)
            assert config["data"]["batch_size"] == preset.batch_size, job.name
            assert config["train"]["steps"] == job.steps, job.name
            nva = config["method"].get("nva", {"enabled": False})
            if nva["enabled"] and "pictures" not in job.config and name != "emoji":
                start = nva["start_epoch"] * config["data"]["num_train"] / preset.batch_size
                assert start <= 20.01, job.name  # a third of the steps is left


def test_a_variant_of_another_file_sees_the_same_data_for_as_long():
    """Configs of their own, of which none takes `steps=`."""
    planned = jobs(replace(PRESETS["methods"], steps=30), 1)
    assert [one.name for one in planned][:3] == ["albef-0", "nas-0", "tcl-0"]
    tcl = planned[2]
    assert tcl.config == "configs/tcl.py" and "--config.train.steps=30" in tcl.flags
    assert tcl.pairs == 30 * 32 and planned[0].config == "configs/demo.py:steps=30,variant=albef"
    configs = [resolved(job) for job in planned]
    assert [one["method"]["name"] for one in configs] == list(PRESETS["methods"].variants)
    shared = "num_train", "scene_world", "image_size", "text_length", "vocab_size", "scene_foils"
    for one in configs:
        assert one["model"] == configs[0]["model"] and one["optimizer"] == configs[0]["optimizer"]
        assert [one["data"][name] for name in shared] == [
            configs[0]["data"][name] for name in shared
        ]
        assert one["seed"] == 0 and one["train"]["eval_every"] == 0
    own = Choice("", {"size": "base", "steps": "7"}, config="configs/tcl.py")
    (job,) = jobs(replace(PRESET, variants={"tcl": own}, settings={"": Choice("")}), 1)
    assert (job.config, job.steps) == ("configs/tcl.py:size=base", 7)
    assert job.flags == ("--config.seed=0", "--config.train.steps=7")


def test_a_number_of_a_score_that_the_method_lacks_is_a_dash_and_a_misspelt_one_an_error(tmp_path):
    ours, theirs = "val/foils/itc/macro", "val/foils/itm/macro"
    preset = replace(PRESET, metrics={ours: "ITC", theirs: "ITM"})
    both = {ours: 60.0, theirs: 70.0}
    beside = {"chance": dict.fromkeys(both, 50.0), "count": dict.fromkeys(both, 400)}
    albef = record("albef", 0, 0.7, metrics=both, seconds=1.0, **beside)
    job = next(job for job in jobs(PRESETS["methods"], 1) if job.variant == "fdt")
    twin = {**albef.fields, "method": resolved(job)["method"]}
    dual = replace(albef, variant="nas", fields=twin, metrics={ours: 65.0}, blind={}, hits={})
    assert twin["method"]["name"] == "fdt"
    records.check_keys(dual, preset.metrics)
    records.check_keys(albef, preset.metrics)
    lines = as_text(preset, [albef, dual]).splitlines()
    assert lines[3].split()[:4] == ["ITC", "60.0", "65.0", "+5.0"]
    assert lines[4].split()[:4] == ["ITM", "70.0", "-", "-"]
    text = page.write_page(tmp_path, "study", replace(preset, page="other"), [albef, dual])
    assert text.name == "other.md" and (tmp_path / "other" / "small.png").exists()
    assert "| `nas` | 1 | 3,200 | 3200 | 65.0 | - |" in text.read_text()
    assert "--preset study" in text.read_text() and "(other/small.png)" in text.read_text()
    for key in ("val/foil/itm/macro", "val/foils/itn/macro", "val/foils/itc/makro", "itm"):
        with pytest.raises(DataError, match=f"no {key} in its evaluation"):
            records.check_keys(dual, [ours, key])
    with pytest.raises(DataError, match="itm"):  # one that the method has
        records.check_keys(replace(albef, metrics={ours: 60.0}), [theirs])


def test_an_interval_is_students_and_one_seed_has_none():
    found = mean_over_seeds([70.0, 74.0, 75.0])
    half = 4.303 * np.std([70, 74, 75], ddof=1) / np.sqrt(3)  # two degrees of freedom
    expected = 73, 73 - half, 73 + half
    np.testing.assert_allclose((found.mean, found.low, found.high), expected, rtol=1e-4)
    assert page.number(found) == "73.0 (66.4 to 79.6)"
    assert page.number(mean_over_seeds([2.0, 99.0])) == "50.5 (0.0 to 100.0)"
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


def test_the_page_says_whether_each_term_falls(tmp_path):
    ends = [25, 100, 195, 250]
    train = {"loss": [[9.0, 8.0, 7.0, 6.0], []], "loss/itc": [[3.0, 2.0, 4.0, 1.0], []]}
    run = {"ends": ends, "train": train | {"optim/grad_norm": [[1.0] * 4, []]}}
    (tmp_path / "study/curves").mkdir(parents=True)
    (tmp_path / "study/curves/albef.json").write_text(json.dumps({"runs": [run]}))
    made = [replace(record("albef", 0, 0.7), setting="")]
    plan = replace(PRESET, settings={"": PRESET.settings["small"]})
    assert "9, 7, 6" not in page.write_page(tmp_path, "study", plan, made).read_text()
    text = page.write_page(tmp_path, "study", replace(plan, losses=True), made).read_text()
    assert "| `albef` | 9, 7, 6 | itc 3, 4, 1 |" in text  # a term that rises is seen as it is


def test_records_come_back_whole_and_one_of_another_config_does_not_count(tmp_path):
    made = record("nas", 0, 0.85)
    records.write(tmp_path / "study", made)
    (back,) = records.read(tmp_path / "study")
    assert {**vars(back), "units": None} == {**vars(made), "units": None}

    def known(preset):
        return [one.name for one in Study("study", preset, tmp_path, tmp_path).records()]

    assert known(PRESET) == ["small-nas-0"]
    assert known(replace(PRESET, steps=200)) == []
    emoji = replace(PRESET, config="configs/emoji.py", settings={"small": Choice("")})
    assert known(emoji) == []
    (tmp_path / "study" / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json"):
        records.read(tmp_path / "study")


def test_curves_that_cannot_be_joined_are_told_and_the_record_stays(tmp_path, capsys):
    for seed in (0, 1):
        records.write(tmp_path / "study", record("nas", seed, 0.85))
    study = Study("study", PRESET, tmp_path, tmp_path / "runs")
    job = next(one for one in jobs(PRESET, 1) if one.name == "small-nas-0")
    study.write_curves(job)
    assert capsys.readouterr().out == ""  # no work directories: the file stays as it is
    for seed in (0, 1):
        workdir = tmp_path / "runs" / f"small-nas-{seed}"
        workdir.mkdir(parents=True)
        (workdir / "metrics.jsonl").touch()
    study.write_curves(job)
    assert "small-nas: no new reference curves: " in capsys.readouterr().out
    assert len(study.records()) == 2


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(60)
"""


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


def test_a_run_whose_data_is_at_fault_stops_those_that_wait(tmp_path):
    planned = jobs(PRESET, 1)
    done, said, failed = run_all(
        tmp_path, shell("import sys; print('no shards'); sys.exit(3)"), planned, places=(None,)
    )
    assert not done and failed == [planned[0].name]
    assert said == [f"{planned[0].name} failed: exit code 3 | no shards"]


def test_at_the_end_of_the_time_runs_are_stopped_and_may_save(tmp_path):
    began = time.monotonic()
    done, _, failed = run_all(tmp_path, shell(SAVES), jobs(PRESET, 1), seconds=2.0)
    assert not done and not failed and time.monotonic() - began < 30
    started = {one.parent.name for one in tmp_path.glob("*/started")}
    assert started and {one.parent.name for one in tmp_path.glob("*/saved")} == started


def test_an_interruption_stops_the_runs_and_is_raised(tmp_path):
    def interrupt():
        if list(tmp_path.glob("*/started")):
            raise KeyboardInterrupt

    running = Running([None], tmp_path, float("inf"), None, print, shell(SAVES))
    with pytest.raises(KeyboardInterrupt):
        running.run(jobs(PRESET, 1), interrupt)
    assert len(list(tmp_path.glob("*/saved"))) == 1


def test_a_work_directory_of_another_config_is_set_aside_and_lost_nothing(tmp_path):
    job, workdir = jobs(PRESET, 1)[0], tmp_path / "run"
    assert set_aside(workdir, job) is None
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(resolved(job)))
    assert set_aside(workdir, job) is None and workdir.exists()
    for number in (1, 2):
        workdir.mkdir(exist_ok=True)
        (workdir / "config.json").write_text(json.dumps({**resolved(job), "seed": 9}))
        assert set_aside(workdir, job) == tmp_path / f"run.{number}"
        assert not workdir.exists() and (tmp_path / f"run.{number}/config.json").exists()


def test_more_runs_than_cores_are_refused():
    assert set(places(1)) < set(places(0)) or len(places(0)) == 1
    with pytest.raises(ConfigError, match="--jobs 9999; expected at most"):
        places(9999)


def test_what_a_job_runs(tmp_path):
    train, diagnose, report = of_job(jobs(PRESET, 1)[0], tmp_path, report=True)
    assert train[1:3] == ["main.py", "--config=configs/demo.py:steps=100,variant=albef"]
    assert diagnose[1:] == ["-m", "nas_jax.inspect.negatives", str(tmp_path)]
    assert report[2] == "nas_jax.inspect.run"
    fdt = next(job for job in jobs(PRESETS["methods"], 1) if job.variant == "fdt")
    (alone,) = of_job(fdt, tmp_path)  # no match, so no negatives to diagnose
    assert alone[1:3] == ["main.py", "--config=configs/fdt.py"]


def test_wrong_flags_are_one_line(capsys):
    assert main(["--preset", "moons"]) == 2
    assert "--preset moons; expected one of" in capsys.readouterr().err
    assert main(["--preset", next(iter(PRESETS)), "--seeds", "-1"]) == 2
