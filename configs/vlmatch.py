"""VL-Match (methods/vlmatch.py): on rendered scenes, or at the size of the paper.

    python main.py --config=configs/vlmatch.py --workdir=runs/vlmatch
    python main.py --config=configs/vlmatch.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ALBEF's recipe on the 4 M
pictures for 30 epochs, on which the paper builds. No code was published: the weight of the
detector's loss is ours. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.config import ItcConfig, MlmConfig
from nas_jax.methods.vlmatch import VlMatchConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.utils.errors import ConfigError

START = 2.0  # epochs of the 8 of a run on scenes before its generator can write captions


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        method = VlMatchConfig(
            momentum=0.98,
            alpha=0.2,
            itc=ItcConfig(queue_size=512, temp_min=0.05),
            mlm=MlmConfig(probability=0.3, max_masked=6),
            nta=NtaConfig(top_words=5, start_epoch=START, generator_gradient=True),
        )
        return to_config_dict(scenes_run("vlmatch-scenes", method))
    method = VlMatchConfig(mlm=MlmConfig(max_masked=8))
    run = base_run("vlmatch-base-4m", method, given["folder"].rstrip("/"), epochs=30)
    return to_config_dict(run)
