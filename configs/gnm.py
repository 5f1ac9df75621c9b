"""Generative Negative Mining (methods/gnm.py): on rendered scenes, or at the size of the paper.

    python main.py --config=configs/gnm.py --workdir=runs/gnm
    python main.py --config=configs/gnm.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py), with scenes in pairs that differ
in one thing. base: 200 pairs a batch, ten epochs, lr 1e-6 and decay 0.1 are those of the authors'
code; set train.weights to a checkpoint of two towers, as it is a fine-tuning. What differs: their
towers are CLIP's ViT-B/32, decay is coupled to the gradient, and a batch has 2 variations of a
source beside 8 random pairs; the files of the folder must have variations, with keys as
data/siblings.py says. Expected numbers: unmeasured.
"""

from __future__ import annotations

from dataclasses import replace

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.gnm import GnmConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        run = scenes_run("gnm-scenes", GnmConfig())
        return to_config_dict(
            replace(run, data=replace(run.data, siblings=2, scene_variations=True))
        )
    run = base_run("gnm-base", GnmConfig(), given["folder"].rstrip("/"), epochs=10)
    return to_config_dict(
        replace(
            run,
            data=replace(run.data, siblings=2, batch_size=200, flip=False),
            optimizer=OptimizerConfig(
                schedule="smooth", lr=1e-6, lr_min=1e-6, weight_decay=0.1, warmup_steps=0
            ),
        )
    )
