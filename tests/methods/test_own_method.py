"""One file is a method: it trains, resumes, shards, scores, and is refused where it has no class.

The method and the term are those of `own_method.py`. Nothing in nas_jax knows them but the two
tables that the tests add them to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import own_method
import pytest
import tiny

from nas_jax import runner
from nas_jax.config import RunConfig, from_config_dict, to_dict
from nas_jax.convert import to_hf
from nas_jax.data.config import DataConfig
from nas_jax.evals.__main__ import run as evaluate
from nas_jax.evals.config import EvalConfig
from nas_jax.methods import METHODS
from nas_jax.methods import added as added_terms
from nas_jax.methods.added import TERMS
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.nas import NasConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import UserError

ROOT = Path(__file__).parents[2]
RUN = RunConfig(
    data=DataConfig(
        num_train=60, image_size=16, crop_scale=(), rand_augment_ops=0, text_length=17,
        vocab_size=200, batch_size=8, threads=1,
    ),
    model=tiny.model(vocab_size=0, max_text_length=32),
    method=own_method.OwnConfig(noise=0.2),
    optimizer=OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=1),
    train=TrainConfig(steps=6, log_every=1, checkpoint_every=3),
    eval=EvalConfig(scorers=("itc", "distance"), retrieval=False, quads=False, max_pairs=4),
)  # fmt: skip


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    monkeypatch.setitem(METHODS, "own", own_method.Own)
    monkeypatch.setitem(TERMS, "sharp", own_method.Sharp)


def train(workdir, **changes):
    config = to_dict(replace(RUN, train=replace(RUN.train, **changes)))
    assert runner.main(config, str(workdir), "train") == 0
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_it_trains_resumes_is_evaluated_and_has_no_export(tmp_path):
    whole = train(tmp_path / "whole")
    losses = [entry["loss"] for entry in whole if entry["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert any(key.startswith("val/foils/distance/") for key in whole[-1])
    parts = tmp_path / "parts"
    for kept in ("metrics.jsonl", "timings.jsonl", "starts.jsonl", "config.json", "tokenizer"):
        copy = shutil.copytree if (tmp_path / "whole" / kept).is_dir() else shutil.copy
        parts.mkdir(exist_ok=True)
        copy(tmp_path / "whole" / kept, parts / kept)
    # as if it had been killed after its first checkpoint, at step 3 of 6
    shutil.copytree(tmp_path / "whole/checkpoints/3", parts / "checkpoints/3")
    assert train(parts) == whole  # every bit, state and draws among them

    out = evaluate(["--checkpoint", str(tmp_path / "whole"), "--benchmark", "val",
                    "--scorer", "distance", "--out", str(tmp_path / "out")])  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert "distance" in json.dumps(results)
    with pytest.raises(UserError, match="own"):
        to_hf.export(tmp_path / "whole", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_misspelt_field_and_an_unknown_score_are_refused():
    config = to_dict(RUN)
    config["method"]["nois"] = config["method"].pop("noise")
    with pytest.raises(UserError, match="did you mean method.noise"):
        from_config_dict(config)
    with pytest.raises(UserError, match="distance"):
        from_config_dict(to_dict(replace(RUN, eval=EvalConfig(scorers=("itm",)))))


def test_eight_devices_give_the_same_numbers():
    """In a process of its own, as the number of devices is fixed when jax starts."""
    program = ROOT / "tests/parallel/step_on_meshes.py"
    command = [sys.executable, str(program), "--own", "data8", "mixed"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for case in report.values():
        assert case["loss"] < 1e-5 and case["params"][0] < 1e-4 and case["mean_E"][0] < 1e-5


@pytest.mark.parametrize("variant", ["albef", "nas"])
def test_a_config_adds_terms(variant, monkeypatch):
    """The total grows by weight times value, and nothing else changes.

    One term is the tests' own; the focal loss without its focus is ITC.
    """
    monkeypatch.setattr(added_terms, "FOCUS", 0.0)
    found = {}
    for terms in ((), (("sharp", 0.5), ("focal_itc", 0.1), ("intra_text", 0.2))):
        config = NasConfig(
            itc=ItcConfig(queue_size=24), dictionary=DictionaryConfig(codes=12), terms=terms
        )
        method = tiny.built(config, variant)
        params, state = method.init(jax.random.key(0))
        args = params, state, tiny.batch(), Draws(jax.random.key(1)), jnp.int32(0), method.stage(0)
        found[bool(terms)] = jax.jit(method.loss, static_argnums=5)(*args)[1][1]
    without, added = found[False], found[True]
    new = [added[f"loss/{name}"] for name in ("sharp", "focal_itc", "intra_text")]
    assert all(value != 0 for value in new)
    np.testing.assert_allclose(added["loss/focal_itc"], added["loss/itc"], rtol=1e-5)
    expected = without["loss"] + 0.5 * new[0] + 0.1 * new[1] + 0.2 * new[2]
    np.testing.assert_allclose(added["loss"], expected, rtol=1e-6)
    for name in without.keys() - {"loss"}:
        np.testing.assert_allclose(added[name], without[name], rtol=1e-5, atol=1e-6)
