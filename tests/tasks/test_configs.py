"""The configs of tasks: both sizes are built, and give the paper's numbers."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import pytest

from nas_jax.config import from_config_dict
from nas_jax.methods import make_method
from nas_jax.methods.method import Setting
from nas_jax.tasks import TASKS
from nas_jax.typing import Vocabulary
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.trees import num_params

CONFIGS = Path(__file__).parents[2] / "configs/tasks"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "shared")


def load(name: str, argument: str = ""):
    return from_config_dict(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](argument))


@pytest.mark.parametrize("name", NAMES)
def test_a_config_has_both_sizes(name):
    for size in ("scenes", "base"):
        run = load(name, f"size={size}")
        assert run.method.name == name and run.train.weights
        run.method.check_batch(run.data.batch_size)
        method = make_method(run.method, run.model, Setting(Vocabulary.blank(30522)))
        params, _ = jax.eval_shape(method.init, jax.random.key(0))
        assert (num_params(params) > 1e8) == (size == "base")
    assert run.data.image_size == (256 if name == "nlvr2_ta" else 384)
    # VQA leaves no validation over, text assignment is no task
    assert bool(run.train.best_metric) == (name not in ("vqa", "nlvr2_ta"))
    assert load(name, "weights=none").train.weights == ""
    assert load(name, "size=base,weights=a/b").train.weights == "a/b"
    with pytest.raises(ConfigError, match="scenes or base"):
        load(name, "size=huge")


def test_every_task_has_a_config():
    assert {*NAMES, "retrieval_nas"} == set(TASKS)


def test_retrieval_with_and_without_nva():
    """All captions of a picture are right in ITC, and none of them is a negative of ITM."""
    for argument, name, terms in (
        ("", "retrieval", {"itc", "itm"}),
        ("nva=on", "retrieval_nas", {"itc", "itm"}),
        ("size=base,nva=on", "retrieval_nas", {"itc", "itm"}),
    ):
        run = load("retrieval", argument)
        assert run.method.name == name
        assert run.method.itc.positives_by_id and run.method.itm.exclude_same_id
        method = make_method(run.method, run.model, Setting(Vocabulary.blank(100)))
        assert set(method.terms(method.stage(0))) == terms
        assert name == "retrieval" or method.stage(0).nva
    coco, flickr = (load("retrieval", f"size=base,dataset={one}") for one in ("coco", "flickr"))
    assert (coco.train.epochs, coco.eval.rerank_k) == (5, 256)
    assert (flickr.train.epochs, flickr.eval.rerank_k) == (10, 128)
    assert coco.optimizer.lr == 1e-5 and coco.method.alpha_ramp_epochs == 1
    for wrong in ("dataset=vg", "nva=maybe"):
        with pytest.raises(ConfigError, match="one of coco, flickr|on or off"):
            load("retrieval", wrong)
