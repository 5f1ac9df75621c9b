"""RVLM (methods/rvlm.py): on rendered scenes, or at the size of the paper.

    python main.py --config=configs/rvlm.py --workdir=runs/rvlm
    python main.py --config=configs/rvlm.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ALBEF's recipe on the 4 M
pictures for 30 epochs, on which the paper builds. Only the abstract was at hand: weights and the
number of restored words are ours. Sister terms are the other words of a kind on scenes; base takes
them from WordNet, which needs nltk and its data. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.config import ItcConfig, MlmConfig, NegativeTextConfig
from nas_jax.methods.rvlm import RvlmConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        method = RvlmConfig(
            momentum=0.98,
            alpha=0.2,
            itc=ItcConfig(queue_size=512, temp_min=0.05),
            mlm=MlmConfig(probability=0.3, max_masked=6),
            negatives=NegativeTextConfig(("sister",), sisters="world:small"),
        )
        return to_config_dict(scenes_run("rvlm-scenes", method))
    method = RvlmConfig(mlm=MlmConfig(max_masked=8))
    run = base_run("rvlm-base-4m", method, given["folder"].rstrip("/"), epochs=30)
    return to_config_dict(run)
