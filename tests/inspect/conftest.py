"""A trained run to look at."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from nas_jax import runner
from nas_jax.config import from_config_dict
from nas_jax.parallel.mesh import MeshConfig

DEMO = Path(__file__).parents[2] / "configs/demo.py"


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """The demo, reduced in size, after four steps."""
    run = from_config_dict(runpy.run_path(str(DEMO))["get_config"](""))
    method = replace(
        run.method,
        itc=replace(run.method.itc, queue_size=16),
        dictionary=replace(run.method.dictionary, codes=8),
        # from the first step on, and with neighbours among eight codes
        nva=replace(run.method.nva, start_epoch=0.0, neighbour_from=1, neighbours=3),
        nta=replace(run.method.nta, start_epoch=0.0),
    )
    run = replace(
        run,
        data=replace(run.data, image_size=16, batch_size=8, num_train=64),
        model=replace(tiny.model(vocab_size=0, max_text_length=32), dropout=0.0),
        method=method,
        mesh=MeshConfig(data=1),
        train=replace(run.train, steps=4, eval_every=4, checkpoint_every=4, log_every=1),
        eval=replace(run.eval, batch_size=16, max_images=4, max_pairs=4, rerank_k=2),
    )
    folder = tmp_path_factory.mktemp("run")
    assert runner.train(run, folder) == 0
    return run, folder
