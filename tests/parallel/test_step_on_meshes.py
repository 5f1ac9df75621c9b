"""The numbers of a step do not depend on how many devices make them, nor in how many pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from step_on_meshes import CASES

PROGRAM = Path(__file__).with_name("step_on_meshes.py")
CONTROL = "without the sum"


@pytest.fixture(scope="module")
def report():
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("one", CONTROL)])
def test_the_step_is_that_of_one_device(report, case):
    """Losses to 1e-5, state after five steps to 1e-4 of each array's largest value."""
    assert report[case]["loss"] < 1e-5
    for part in ("params", "teacher", "queue", "dictionary"):
        error, name = report[case][part]
        assert error < 1e-4, (part, name, error)


def test_statistics_of_a_part_of_the_batch_would_be_seen(report):
    assert report[CONTROL]["dictionary"][0] > 1e-2 and report[CONTROL]["params"][0] > 1e-3
