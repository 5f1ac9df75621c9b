"""C2LIP (methods/c2lip.py): on rendered scenes, or with the recipe of its authors.

    python main.py --config=configs/c2lip.py --workdir=runs/c2lip
    python main.py --config=configs/c2lip.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: the batch of 768, weight
decay and 5 epochs of the authors' script. Uncertain there: they start from a trained SigLIP at a
rate of 1e-5; give such weights by train.weights, or raise optimizer.lr to start from scratch. Noun
phrases come from a list of words and not from a language model. Expected numbers: unmeasured.
"""

from __future__ import annotations

from dataclasses import replace

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.c2lip import C2lipConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        method = C2lipConfig()
        return to_config_dict(scenes_run("c2lip-scenes", method))
    run = base_run("c2lip-base-4m", C2lipConfig(), given["folder"].rstrip("/"), epochs=5)
    optimizer = OptimizerConfig(
        schedule="smooth", lr=1e-5, lr_min=0.0, warmup_lr=0.0, warmup_steps=50, weight_decay=0.1
    )
    run = replace(run, optimizer=optimizer, data=replace(run.data, batch_size=768))
    return to_config_dict(run)
