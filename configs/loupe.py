"""LOUPE-style (methods/loupe.py): on rendered scenes, or at the size of its paper.

    python main.py --config=configs/loupe.py --workdir=runs/loupe
    python main.py --config=configs/loupe.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ALBEF's pictures and rates
for 30 epochs. Uncertain there: all but the idea, as the authors gave no code; they train on 240 M
pictures from trained encoders (give such weights by train.weights). Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.loupe import LoupeConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        return to_config_dict(scenes_run("loupe-scenes", LoupeConfig(temp_min=0.05)))
    run = base_run("loupe-base-4m", LoupeConfig(), given["folder"].rstrip("/"), epochs=30)
    return to_config_dict(run)
