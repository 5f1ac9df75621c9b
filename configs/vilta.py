"""ViLTA (methods/vilta.py): on rendered scenes, or at the size of the paper.

    python main.py --config=configs/vilta.py --workdir=runs/vilta
    python main.py --config=configs/vilta.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ALBEF's recipe on the 4 M
pictures for 30 epochs, on which the paper builds. Only the abstract was at hand: how words are
chosen and drawn is ours. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.nas_base_4m import albef_run
from nas_jax.config import to_config_dict
from nas_jax.methods.vilta import ViltaConfig
from nas_jax.negatives.nta import GeneratorConfig

START = 2.0  # epochs of the 8 of a run on scenes before its generator can write captions


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    generator = GeneratorConfig(top_words=5, start_epoch=START)
    return to_config_dict(albef_run(argument, ViltaConfig, nta=generator))
