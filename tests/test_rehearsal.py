"""--mode=compile: the report, and what it says when a step does not fit; and --mode=check."""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass, replace

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from benchmarks.faults import RECIPE
from nas_jax.config import from_config_dict
from nas_jax.data.tokenizer import learn_wordpiece
from nas_jax.methods import METHODS
from nas_jax.methods.method import Method, MethodConfig
from nas_jax.methods.variants import with_variant
from nas_jax.models.sizes import ModelConfig
from nas_jax.parallel.hlo import Collective, Operation, Program
from nas_jax.parallel.mesh import MeshConfig
from nas_jax.preflight import preflight
from nas_jax.rehearsal.compiled import Rehearsal, out_of_memory, rehearse
from nas_jax.rehearsal.report import format_report, moves_image_tokens, remedy
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
    return Rehearsal(**known | changes)


def test_the_report_has_the_figures_and_calls_predictions_so(run):
    text = format_report(run, result())
    assert "peak 10.00 GiB of 16.00 GiB: fits" in text and "250 GFLOP a pair" in text
    line = next(line for line in text.splitlines() if line.startswith("PREDICTED"))
    assert "80.0 ms a step, 400 pairs/s a chip, MFU 50.0%" in line and "2 custom calls" in line
    assert "image_encoder/block_*/mlp_in " in text and "75.0%" in text and "mlp_in backward" in text
    assert text.count("not in every step") == 1 and "48.0 MB sent a device" in text


def test_whether_image_tokens_cross_devices_is_read_from_the_compiled_step(run):
    """Hard negatives from the whole batch move them, those of the own device do not (four simulated
    devices).
    """
    method = with_variant(run.method, "albef")
    run = replace(run, data=replace(run.data, batch_size=8))
    for shards, moved in ((4, False), (1, True)):
        itm = replace(method.itm, mining_shards=shards)
        found = rehearse(replace(run, method=replace(method, itm=itm)), "local")
        assert bool(moves_image_tokens(found.program, run.model.num_patches)) == moved
        assert ("none crosses the interconnect" in format_report(run, found)) != moved


@dataclass(frozen=True)
class SquaresConfig(MethodConfig):
    name: str = "squares"


class Squares(nn.Module):
    """One matrix, whatever comes."""

    config: ModelConfig

    @nn.compact
    def __call__(self, image_BxHxWx3, token_ids_BxL, token_mask_BxL):
        return self.param("kernel", nn.initializers.normal(), (16, 16))


@dataclass(frozen=True)
class Staged(Method):
    """A matrix multiplied with itself: once, five times in the second epoch, once, many times."""

    Config, Network = SquaresConfig, Squares
    TIMES = {0: 1, 1: 5, 2: 2, 7: 50}  # from an epoch on

    def init(self, rng):
        return {"encoder": super().init(rng)[0]}, {}

    def stage(self, step):
        return [times for start, times in self.TIMES.items() if start <= self.setting.epoch(step)][
            -1
        ]

    def stage_starts(self):
        return tuple(epoch * self.setting.steps_per_epoch for epoch in self.TIMES)

    def loss(self, params, state, batch, draw, step, stage):
        kernel = params["encoder"]["kernel"]
        for _ in range(stage):
            kernel = kernel @ kernel
        return (loss := kernel.sum()), (state, {"loss": loss})


def test_the_stage_with_most_operations_is_compiled(run, monkeypatch):
    """Neither the last one of the run, which is cheaper, nor one that begins after its end."""
    monkeypatch.setitem(METHODS, "squares", Staged)
    train = TrainConfig(epochs=3)
    run = replace(run, method=SquaresConfig(), train=train, mesh=MeshConfig(data=1))
    found = rehearse(run, "local")
    assert (found.stage, found.stages) == ("5", 3)
    assert "stage              5, the largest of 3\n" in format_report(run, found)
    # so many epochs that all of its stages may come
    assert rehearse(replace(run, train=TrainConfig(steps=9)), "local").stage == "50"


def test_what_does_not_fit_says_what_would_help(run):
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm. "
        "Exceeded by 8.75G."
    )
    assert out_of_memory(message) == (24.5 * GIB, 15.75 * GIB)
    assert out_of_memory("INTERNAL: something else") is None
    text = format_report(
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
    text = "\n".join(remedy(already, result(state_bytes=GIB)))
    assert "remat" not in text and "fsdp" not in text and "train.accumulate=4" in text


def with_best(run, key):
    return replace(run, train=replace(run.train, best_metric=key))


def test_the_preflight_finds_what_would_stop_a_run(run, tmp_path, capsys):
    run = replace(run, data=replace(run.data, batch_size=8))
    assert preflight(run, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert (
        "9 checks: 0 errors" in out
        and "60 records in 1 sources" in out
        and "starts from nothing" in out
    )
    assert "mining_shards=4 keeps them at home" in out  # four simulated devices
    key = "val/retrieval/itm/text_to_image_r@1"
    assert preflight(with_best(run, key), tmp_path / "run") == 0
    assert f"the best is by {key}" in capsys.readouterr().out
    assert preflight(with_best(run, "val/itm/text_to_image_r@1"), tmp_path / "run") == 2
    assert f"metrics of the evaluation. Remedy: did you mean '{key}'." in capsys.readouterr().out
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
    assert "ERROR" in lines["data"] and "looked for 9 of 9 picture files" in lines["data"]
    assert "at most a share of 0.05 missing" in lines["data"]
    assert "warning" in lines["evaluation"] and "3 errors" in out


def test_the_preflight_opens_folders_of_classes(run, tmp_path, capsys):
    for name, grey in {"day": 255, "night": 0}.items():
        picture = tmp_path / "classes" / name / "0.png"
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (5, 5), (grey,) * 3).save(picture)
    learn_wordpiece(["a photo of the day and of the night"], 64).save(tmp_path / "words")
    run = replace(
        run,
        data=replace(run.data, batch_size=8, tokenizer=str(tmp_path / "words")),
        eval=replace(run.eval, benchmarks=("classes",), data=str(tmp_path), text_length=40),
    )
    preflight(run, tmp_path / "run")
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("evaluation"))
    assert "ok" in line and "classes:photo@1" in line
