"""--mode=compile: the report, and what it says when a step does not fit; and --mode=check."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.faults import RECIPE
from nas_jax import rehearsal
from nas_jax.config import from_config_dict
from nas_jax.parallel.hlo import Collective, Operation, Program
from nas_jax.preflight import preflight
from nas_jax.train.config import TrainConfig

GIB = 2**30


@pytest.fixture
def run(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    return from_config_dict(runpy.run_path(str(recipe))["get_config"]("12"))


def result(**changes):
    gathered = Collective("all-gather", "bf16[4,8]", ((4, 8),), 64, 48e6, 4, 1, False, "itc")
    program = Program(
        (gathered, replace(gathered, branch=True)),
        (
            Operation("jit(step)/image_encoder/block_3/mlp_in/dot_general", 3e6, "fusion"),
            Operation(
                "jit(step)/transpose(jvp())/image_encoder/block_1/jvp(mlp_in)/dot_general",
                1e6,
                "fusion",
            ),
        ),
        2,
    )
    known = dict(
        topology="v5e:4x4",
        devices=16,
        mesh={"data": 16, "fsdp": 1, "tensor": 1},
        batch=512,
        fits=True,
        state_bytes=3 * GIB,
        capacity_bytes=16 * GIB,
        peak_bytes=10 * GIB,
        flops=32 * 250e9,
        predicted_seconds=0.08,
        predicted_mfu=0.5,
        program=program,
    )
    return rehearsal.Rehearsal(**known | changes)


def test_the_report_has_the_figures_and_calls_predictions_so(run):
    text = rehearsal.report(run, result())
    assert "peak 10.00 GiB of 16.00 GiB: fits" in text and "250 GFLOP a pair" in text
    line = next(line for line in text.splitlines() if line.startswith("PREDICTED"))
    assert "80.0 ms a step, 400 pairs/s a chip, MFU 50.0%" in line and "2 custom calls" in line
    assert "image_encoder/block_*/mlp_in " in text and "75.0%" in text and "mlp_in backward" in text
    assert text.count("not in every step") == 1 and "48.0 MB sent a device" in text


def test_whether_image_tokens_cross_devices_is_read_from_the_compiled_step(run):
    """Hard negatives from the whole batch move them, those of the own device do not (four simulated
    devices).
    """
    method = replace(
        run.method, name="albef", dictionary=replace(run.method.dictionary, enabled=False),
        nva=replace(run.method.nva, enabled=False), nta=replace(run.method.nta, enabled=False),
    )  # fmt: skip
    run = replace(run, data=replace(run.data, batch_size=8))
    for shards, moved in ((4, False), (1, True)):
        itm = replace(method.itm, mining_shards=shards)
        found = rehearsal.rehearse(replace(run, method=replace(method, itm=itm)), "local")
        assert bool(rehearsal.moves_image_tokens(found.program, run.model.num_patches)) == moved
        assert ("none crosses the interconnect" in rehearsal.report(run, found)) != moved


def test_what_does_not_fit_says_what_would_help(run):
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm. "
        "Exceeded by 8.75G."
    )
    assert rehearsal.out_of_memory(message) == (24.5 * GIB, 15.75 * GIB)
    assert rehearsal.out_of_memory("INTERNAL: something else") is None
    text = rehearsal.report(
        run,
        result(
            fits=False,
            program=None,
            peak_bytes=24.5 * GIB,
            capacity_bytes=15.75 * GIB,
            state_bytes=6 * GIB,
        ),
    )
    assert (
        "does not fit: the compiler needs 24.50 GiB of 15.75 GiB, 6.00 GiB of it for the state"
        in text
    )
    for setting in (
        "model.remat=dots",
        "model.remat=full",
        "mesh.fsdp=8",
        "train.accumulate=2",
        "data.batch_size=256",
    ):
        assert f"--config.{setting}" in text
    already = replace(
        run, model=replace(run.model, remat="full"), train=replace(run.train, accumulate=2)
    )
    text = "\n".join(rehearsal.remedy(already, result(state_bytes=GIB)))
    assert "remat" not in text and "fsdp" not in text and "train.accumulate=4" in text


def test_the_preflight_finds_what_would_stop_a_run(run, tmp_path, capsys):
    run = replace(run, data=replace(run.data, batch_size=8))
    assert preflight(run, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert (
        "8 checks: 0 errors" in out
        and "60 records in 1 sources" in out
        and "starts from nothing" in out
    )
    assert "mining_shards=4 keeps them at home" in out  # four simulated devices
    (tmp_path / "list.json").write_text(
        json.dumps([{"image": f"{i}.png", "caption": "a b"} for i in range(9)])
    )
    (tmp_path / "0.png").write_bytes(np.random.default_rng(0).bytes(99))
    broken = replace(
        run,
        data=replace(
            run.data, train=(str(tmp_path / "list.json"),), image_root=str(tmp_path), batch_size=6
        ),
        train=TrainConfig(steps=1, continue_from=""),
    )
    assert preflight(broken, tmp_path / "list.json" / "below") == 4  # the first error decides
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "ERROR" in lines["workdir"] and "a writable --workdir" in lines["workdir"]
    assert "ERROR" in lines["mesh"] and "a multiple of 4" in lines["mesh"]
    assert (
        "warning" in lines["data"] and "0.png" in lines["data"] and "not an image" in lines["data"]
    )
    assert "warning" in lines["evaluation"] and "2 errors" in out
