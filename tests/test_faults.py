"""A short version of `python -m benchmarks.faults`: the loop with a method of three lines, killed
and continued.
"""

from __future__ import annotations

import functools
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import EVAL_EVERY, SAVE_EVERY, differences, final_arrays, run_whole, torment
from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.stored import nest

STEPS = 36
# The loop of tests/train/test_loop.py, slowed down so that a kill can be aimed at a part of it.
# argv: what a later start does with the data, and the work directory.
RUN = f"""
import sys, time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, {str(Path(__file__).parent / "train")!r})
import test_loop


def evaluator(*args, fast=test_loop.evaluator):
    time.sleep(0.5)
    return fast(*args)


test_loop.evaluator = evaluator
result = test_loop.train(
    Path(sys.argv[2]),
    replace(
        test_loop.CONFIG, steps={STEPS}, checkpoint_every={SAVE_EVERY}, eval_every={EVAL_EVERY}
    ),
    hook=lambda step: time.sleep(0.02),
    batches=lambda start: test_loop.batches(start if sys.argv[1] == "goes on" else 0),
    report=lambda step, metrics: f"evaluation at step {{step}}",
)
sys.exit(result.exit_code)
"""


def program(workdir, data="goes on"):
    return [sys.executable, "-c", RUN, data, str(workdir)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of a run that was never killed, and how long a start takes."""
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    return workdir, run_whole(program, workdir)


@pytest.mark.parametrize(("name", "aims"), [("KILL", ["step", "save"]), ("TERM", ["evaluation"])])
def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path, whole, name, aims):
    outcome = torment(
        program, whole[0], tmp_path / "killed", aims, name, random.Random(1), whole[1]
    )
    assert outcome.wrong == ()
    assert outcome.moments.total() == len(aims) and all(0 < step < STEPS for step in outcome.steps)
    if "save" in aims:
        assert sum("a save in progress" in moment for moment in outcome.moments.elements()) >= 1
        # a checkpoint was there, and the next one not yet
        assert outcome.steps[aims.index("save")] >= 2 * SAVE_EVERY


def test_a_run_that_goes_on_with_the_wrong_data_is_found_out(tmp_path, whole):
    """Negative control: one kill is enough to see it."""
    broken = functools.partial(program, data="begins again")
    outcome = torment(
        broken, whole[0], tmp_path / "killed", ["step"], "TERM", random.Random(1), whole[1]
    )
    assert outcome.moments.total() == 1
    assert "params/w_D differs" in outcome.wrong and "step differs" not in outcome.wrong
    assert any(line.startswith("metrics.jsonl differs in line") for line in outcome.wrong)


def test_every_difference_is_named(tmp_path, whole):
    def damaged(name, damage):
        copy = Path(shutil.copytree(whole[0], tmp_path / name))
        damage(copy)
        return differences(whole[0], copy)

    def alter(workdir):
        arrays = final_arrays(workdir)
        assert {"params/w_D", "method_state/mean", "rng", "step"} < arrays.keys()
        # the last bit
        arrays["params/w_D"] = np.nextafter(arrays["params/w_D"], np.float32(np.inf))
        shutil.rmtree(workdir / "checkpoints")
        with CheckpointManager(workdir / "checkpoints") as manager:
            manager.save(int(arrays.pop("next step")), nest(arrays), {}, {})

    def rewrite(change):
        return lambda workdir: (workdir / "metrics.jsonl").write_text(
            change((workdir / "metrics.jsonl").read_text())
        )

    lines = (whole[0] / "metrics.jsonl").read_text().splitlines()
    assert damaged("same", lambda workdir: None) == []
    assert damaged("bit", alter) == ["params/w_D differs"]
    assert damaged("value", rewrite(lambda text: text.replace('"step": 2,', '"step": 3,'))) == [
        "metrics.jsonl differs in line 2"
    ]
    cut = damaged("cut", rewrite(lambda text: text.replace(lines[-1] + "\n", "")))
    assert cut == [f"metrics.jsonl has {len(lines)} lines there and {len(lines) - 1} here"]
    behind = damaged("behind", lambda workdir: shutil.rmtree(workdir / "checkpoints" / str(STEPS)))
    assert {"next step differs", "step differs", "params/w_D differs"} <= set(behind)


def test_a_start_that_fails_is_told(tmp_path, whole):
    outcome = torment(
        lambda workdir: [sys.executable, "-c", "print('no room'); exit(4)"],
        whole[0], tmp_path, ["step"], "KILL", random.Random(1), whole[1],
    )  # fmt: skip
    assert outcome.wrong == ("exit code 4", "no room")
