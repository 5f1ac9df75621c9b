"""A run against reference runs, on made-up metrics: where it departs, and what is no departure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from nas_jax.inspect.compare import main
from nas_jax.inspect.curves import Entries, read_run_entries, window_ends, windowed
from nas_jax.inspect.departures import compare, first_departure, variance_of_difference
from nas_jax.inspect.references import averaged, from_json, to_json
from nas_jax.train.workdir import Records, open_workdir

CONFIG = {"name": "made up", "seed": 0, "optimizer": {"lr": 1e-3}, "train": {"log_every": 10}}
STEPS = 3000
NOISE = 0.03  # of the value
EVALUATIONS = (1000, 2000, 3000)


def mean_loss(steps_N: np.ndarray) -> np.ndarray:
    return 3 + 8 * np.exp(-steps_N / 300)


def made_up(seed: int, every: int = 10, steps: int = STEPS, lasting: float = 0.0) -> Entries:
    """A run in memory. lasting: how far a seed lies from the mean for all steps, relative."""
    rng = np.random.default_rng(seed)
    steps_N = np.arange(every, steps + 1, every)
    noise_N = 1 + NOISE * rng.normal(size=len(steps_N)) + lasting * rng.normal()
    accuracy_N = np.clip(steps_N / STEPS + 0.1 * rng.normal(size=len(steps_N)), 0, 1)
    train = {"loss": mean_loss(steps_N) * noise_N, "itm_accuracy/positive": accuracy_N}
    return Entries(f"seed {seed}", CONFIG | {"seed": seed}, {}, steps_N, train)


def changed(run: Entries, change) -> Entries:
    """The run with another loss: change(steps, loss)."""
    loss_N = change(run.steps_N, run.train["loss"].copy())
    return Entries(run.name, run.config, {}, run.steps_N, {**run.train, "loss": loss_N})


def departures(run: Entries, others: list[Entries], **options) -> dict[str, int]:
    found = compare(run, [averaged(one) for one in others], **options)
    assert all(one.enough for one in found) and found
    return {one.metric: one.first_step for one in found if one.departure}


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_other_noise_of_the_same_mean_agrees(seeds):
    for trial in range(20):
        others = [made_up(100 * trial + seed) for seed in range(seeds)]
        assert departures(others[0], others) == {}  # with itself, and with itself among others
        assert departures(made_up(100 * trial + 99), others) == {}


@pytest.mark.parametrize(("every", "steps"), [(50, 3000), (3, 3000), (10, 900), (10, 6000)])
def test_another_log_interval_or_length_of_the_same_mean_agrees(every, steps):
    for trial in range(10):
        run = made_up(trial, every, steps)
        assert departures(run, [made_up(77)]) == {}
        assert departures(run, [made_up(77), made_up(78), made_up(79)]) == {}
        (loss, _) = compare(run, [averaged(made_up(77))])
        assert 0.9 * min(steps, STEPS) <= loss.compared_to <= min(steps, STEPS)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("from_step", [200, 1500, 2400])
def test_a_shift_is_found_where_it_begins(seeds, from_step):
    others = [made_up(seed) for seed in range(seeds)]
    ends_K = averaged(others[0]).ends_K
    window = np.diff(ends_K)[np.searchsorted(ends_K, from_step) - 1]
    for factor in (1.4, 0.6):
        shifted = changed(
            made_up(50),
            lambda steps, loss, by=factor: np.where(steps >= from_step, by * loss, loss),
        )
        found = departures(shifted, others)
        assert found.keys() == {"loss"}
        assert from_step - window <= found["loss"] <= from_step + 2 * window


def test_seeds_say_what_one_reference_cannot():
    """8 % for good: within the share of one reference, beyond that of seeds that lie together, and
    within the spread of seeds that lie apart."""
    shifted = changed(made_up(50), lambda steps, loss: 1.08 * loss)
    together, apart = ([made_up(seed, lasting=by) for seed in range(4)] for by in (0, 0.05))
    assert departures(shifted, together[:1]) == {}
    assert departures(shifted, together[:1], share=0.01).keys() == {"loss"}
    assert departures(shifted, together).keys() == {"loss"}
    assert departures(shifted, apart) == {}


def test_the_variance_is_that_of_a_further_seed():
    """Against drawn seeds; wider by the factor that is taken for few of them."""
    rng = np.random.default_rng(0)
    seeds, windows, spread, error = 4, 50_000, 0.5, 0.2

    def drawn(*shape):
        return spread * rng.normal(size=shape) + error * rng.normal(size=shape)

    values_SxP, run_P = drawn(seeds, windows), drawn(windows)
    errors_SxP = np.full((seeds, windows), error)
    wide_P = variance_of_difference(values_SxP, errors_SxP, errors_SxP[0])
    factor = (1 + 1 / (seeds - 1)) ** 2
    noise = error**2 * (1 + 1 / seeds)
    true = np.var(run_P - values_SxP.mean(axis=0))
    assert wide_P.mean() == pytest.approx((true - noise) * factor + noise, rel=0.05)
    one_P = variance_of_difference(values_SxP[:1], errors_SxP[:1], errors_SxP[0])
    np.testing.assert_allclose(one_P, 2 * error**2)


def test_one_reference_tolerates_a_fall_that_comes_a_little_later():
    def falls(at, seed):
        return changed(made_up(seed), lambda steps, loss: 3 + 5 / (1 + np.exp((steps - at) / 20)))

    assert departures(falls(1600, 1), [falls(1500, 2)]) == {}
    assert departures(falls(1900, 1), [falls(1500, 2)]).keys() == {"loss"}
    several = [falls(1500, seed) for seed in range(3)]  # which say that it comes at 1500
    assert departures(falls(1600, 9), several).keys() == {"loss"}


@pytest.mark.parametrize(("every", "other"), [(10, 200), (200, 10), (30, 200)])
def test_a_bend_is_no_departure_of_a_run_with_other_windows(every, other):
    """Without noise, and with no share of the value tolerated."""

    def smooth(interval, seed):
        return changed(made_up(seed, interval), lambda steps, loss: mean_loss(steps))

    others = [smooth(other, seed) for seed in (1, 2)]
    assert departures(smooth(every, 3), others, share=0.0) == {}


def test_one_outlier_is_no_departure_and_three_windows_are():
    run, other = made_up(1), made_up(2)

    def spike(length):
        def change(steps, loss):
            loss[200 : 200 + length] *= 5
            return loss

        return changed(run, change)

    assert departures(spike(1), [other]) == {}
    (found, _) = compare(spike(40), [averaged(other)])
    assert abs(found.first_step - 2000) < 100 and abs(found.last_step - 2400) < 100


def test_values_that_are_not_finite():
    run, other = made_up(1), made_up(2)

    def lost(which):
        def change(steps, loss):
            loss[which] = np.inf  # as the reader marks nan
            return loss

        return changed(run, change)

    assert departures(lost(slice(100, 101)), [other]) == {}  # others are in the window
    assert abs(departures(lost(slice(-8, None)), [other])["loss"] - 2930) < 100
    assert departures(run, [lost(slice(100, 101))]) == {}
    assert departures(run, [lost(slice(100, 160))]) == {}  # on a line over the gap


@pytest.mark.parametrize(
    ("excess", "needed", "alone", "expected"),
    [
        ([0, 2, 2, 0, 2, 2, 2, 0], 3, math.inf, (4, 6)),
        ([0, 2, -2, 2, -2, 2], 3, math.inf, None),  # both sides: noise
        ([0, 2, 2], 3, math.inf, None),
        ([0, 0, math.inf], 3, math.inf, (2, 2)),
        ([0, math.inf, 0], 3, math.inf, None),
        ([0, -2, math.inf, -2], 3, math.inf, (1, 3)),
        ([1.4], 2, 1.5, None),
        ([1.6], 2, 1.5, (0, 0)),
        ([1.6, 0], 2, 1.5, None),
    ],
)
def test_what_lasts(excess, needed, alone, expected):
    assert first_departure(np.array(excess, float), needed, alone) == expected


def test_the_noise_of_an_average_is_that_of_its_entries():
    """The trimmed deviation is right for normal noise on a slope, outlier or not."""
    rng = np.random.default_rng(0)
    steps_N = np.arange(20_000)
    values_N = 0.01 * steps_N + rng.normal(size=20_000)
    values_N[::500] += 50
    curve = windowed(steps_N, values_N, np.arange(99, 20_000, 100))
    assert np.sqrt(np.mean((10 * curve.errors_P) ** 2)) == pytest.approx(1, abs=0.1)
    ends_K = window_ends(np.arange(10, 30_001, 10))
    assert len(ends_K) <= 64 and ends_K[-1] == 30_000 and np.diff(ends_K)[0] < np.diff(ends_K)[-1]


# ----------------------------------------------------------------------------------- files, command


def write_run(workdir: Path, seed: int = 0, every: int = 10, change=None, **config) -> Path:
    """A work directory as a run leaves it. change(steps, loss): the loss."""
    run = made_up(seed, every, config.pop("steps", STEPS))
    run = changed(run, change) if change else run
    open_workdir(workdir, CONFIG | {"seed": seed} | config)
    records = Records(workdir, 0)
    records.add_start(
        {"devices": 1, "device": "made up", "nas_jax": "0.1", "time": "2026-01-02 03"}
    )
    fields = {"data/skipped": 0, "optim/lr": 1e-3, "dictionary/decay": 1.0}
    for place, step in enumerate(run.steps_N):
        row = {name: float(column[place]) for name, column in run.train.items()}
        records.add(int(step), "train", row | fields)
        if step in EVALUATIONS:
            records.add(int(step), "eval", {"val/foils/itm/all": 50 + 0.01 * step})
    records.close()
    return workdir


def call(capsys, *words) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_a_reference_of_seeds_is_small_and_read_as_written(tmp_path, capsys):
    runs = [write_run(tmp_path / str(seed), seed) for seed in range(3)]
    file = tmp_path / "made/reference.json"
    code, out, _ = call(capsys, "--write", file, *runs, "--command", "main.py --x", "--code", "abc")
    assert code == 0 and "3 runs" in out
    tree = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert [run["seed"] for run in tree["runs"]] == [0, 1, 2] and tree["config"] == CONFIG
    about = tree["runs"][1]
    assert about["command"] == "main.py --x" and about["code"] == "nas_jax 0.1, abc"
    assert about["hardware"] == "1 x made up" and about["date"] == "2026-01-02"
    read = from_json(file.read_text(), "x")
    for one, workdir in zip(read, runs, strict=True):
        whole = averaged(read_run_entries(str(workdir)))
        assert one.config == whole.config
        for name, curve in whole.train.items():
            for field, digits in (("steps_P", 1e-6), ("values_P", 1e-3), ("errors_P", 0.06)):
                close = np.testing.assert_allclose
                close(getattr(one.train[name], field), getattr(curve, field), rtol=digits)
    assert call(capsys, runs[0], file)[0] == 0
    long = {f"loss/{k}": np.random.default_rng(k).normal(size=9000) for k in range(4)}
    long |= {f"itm_accuracy/{k}": np.random.default_rng(k).random(9000) for k in range(5)}
    evaluated = read_run_entries(str(runs[0])).evaluations["val/foils/itm/all"]
    evaluations = {f"val/foils/itm/category_{k}": evaluated for k in range(90)}
    entries = Entries("long", CONFIG, {}, np.arange(50, 450_001, 50), long, evaluations)
    assert len(to_json([averaged(entries)])) < 30_000


def test_the_table_says_where_and_the_config_why(tmp_path, capsys):
    reference = write_run(tmp_path / "reference")
    run = write_run(
        tmp_path / "run",
        1,
        change=lambda steps, loss: np.where(steps >= 1500, 2 * loss, loss),
        optimizer={"lr": 2e-3},
    )
    picture = tmp_path / "made/curves.png"
    code, out, err = call(capsys, run, reference, "--picture", picture)
    assert code == 1 and not err
    lines = out.splitlines()
    assert "  optimizer.lr (0.001, 0.002)" in lines and "  seed (0, 1)" in lines
    (row,) = (line.split() for line in lines if line.startswith("loss "))
    assert row[1] == "above" and abs(int(row[2]) - 1500) < 150 and row[-2:] == ["the", "end"]
    assert float(row[3]) == pytest.approx(6, rel=0.05) and float(row[4]) == pytest.approx(
        3, rel=0.05
    )
    assert any(line.split()[:3] == ["itm_accuracy/positive", "agrees", "to"] for line in lines)
    assert "1 evaluations" in out and lines[-1] == f"departs at step {row[2]}: loss"
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(capsys, run, run)
    assert code == 0 and out.splitlines()[-1] == "agrees to step 3000" and "config: the same" in out
    code, out, _ = call(capsys, tmp_path / "reference/metrics.jsonl", reference)
    assert code == 0


def test_a_config_from_before_a_field_is_that_with_its_default(tmp_path, capsys):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", 1, data={"sentences": 0})
    file = tmp_path / "reference.json"
    assert call(capsys, "--write", file, old, new)[0] == 0
    assert "data.sentences" not in call(capsys, new, old)[1]
    other = write_run(tmp_path / "other", 2, data={"sentences": 2})
    code, _, err = call(capsys, "--write", file, old, other)
    assert code == 3 and "differ in data.sentences (0, 2);" in err


def test_a_resumed_or_growing_file_and_metrics_of_one_side(tmp_path, capsys):
    reference = write_run(tmp_path / "reference", 1)
    whole = write_run(tmp_path / "whole").joinpath("metrics.jsonl").read_text().splitlines()
    lines = whole[:100] + whole[60:]  # steps that were done twice
    lines[20] = "{broken"
    lines = [line.replace('"itm_accuracy/positive"', '"loss/other"') for line in lines]
    lines[30] = lines[30].replace('"loss": ', '"loss": NaN, "was": ')
    alone = tmp_path / "alone/metrics.jsonl"
    alone.parent.mkdir()
    alone.write_text("\n".join(lines) + '\n{"step": 3010, "kind": "tr')
    code, out, _ = call(capsys, alone, reference)
    assert code == 0
    for said in (
        "config: not known",
        "metrics.jsonl, line 21, is not an entry",
        "only in the run: loss/other",
        "only in the reference: itm_accuracy/positive",
        "agrees to step 3000",
    ):
        assert said in out


def test_what_cannot_be_compared_is_one_line(tmp_path, capsys):
    reference = write_run(tmp_path / "reference")
    other = write_run(tmp_path / "other", 1, optimizer={"lr": 1.0})
    short = write_run(tmp_path / "short", steps=20)
    empty = tmp_path / "empty/metrics.jsonl"
    empty.parent.mkdir()
    empty.write_text("")
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"format": 1, "runs": []}')
    for words, code, part in (
        ([reference], 2, "no REFERENCE"),
        ([reference, reference, "--share", "-1"], 2, "--share"),
        ([empty, reference], 3, "without an entry"),
        ([tmp_path / "nothing", reference], 4, "no config.json"),
        ([tmp_path / "empty/none.jsonl", reference], 3, "none.jsonl"),
        ([reference, tmp_path / "none.json"], 3, "none.json"),
        ([reference, wrong], 3, "wrong.json"),
        ([reference, reference / "config.json"], 3, "config.json"),
        ([short, reference], 3, "too little in common"),
        ([reference, reference, other], 3, "optimizer.lr (0.001, 1.0)"),
        (["--write", tmp_path / "x.json", reference, other], 3, "optimizer.lr"),
        (["--write", wrong / "x.json", reference], 4, "wrong.json"),
    ):
        found, out, err = call(capsys, *words)
        assert found == code and not out and part in err and err.count("\n") == 1, (words, err)
    assert not (tmp_path / "x.json").exists()
