"""The oracle: one training step recorded from the NAS authors' PyTorch code."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import parity

FIXTURE = Path(__file__).parents[1] / "fixtures" / "nas_step.npz"


def test_every_array_of_the_recorded_step_is_reproduced():
    rows = parity.compare(FIXTURE)
    assert {row.group.split(",")[0].split(" ")[0]: row.arrays for row in rows}["gradients"] == 143
    failed = [
        f"{row.group}: {row.error:.2e} > {row.tolerance:.0e} ({row.worst})"
        for row in rows
        if not row.passed
    ]
    assert not failed, failed


def transpose_one_kernel(params):
    head = params["mlm_head"]
    transform = head["transform"] | {"kernel": head["transform"]["kernel"].T}
    return params | {"mlm_head": head | {"transform": transform}}


def nudge_temperature(params):
    return params | {"temp": params["temp"] * 1.001}


@pytest.mark.parametrize(
    ("disturb", "broken"),
    [
        (transpose_one_kernel, {"intermediate", "losses", "gradients"}),
        (nudge_temperature, {"losses", "teacher"}),
    ],
)
def test_a_small_disturbance_is_noticed(disturb, broken):
    """Negative control: a transposed kernel, and a temperature 0.1 % off."""
    failed = {
        row.group.split(" ")[0].rstrip(",")
        for row in parity.compare(FIXTURE, disturb)
        if not row.passed
    }
    assert broken <= failed
