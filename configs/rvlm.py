"""RVLM (methods/rvlm.py): on rendered scenes, or at the size of the paper.

    python main.py --config=configs/rvlm.py --workdir=runs/rvlm
    python main.py --config=configs/rvlm.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ALBEF's recipe on the 4 M
pictures for 30 epochs, on which the paper builds. Only the abstract was at hand: weights and the
number of restored words are ours. Sister terms are the other words of a kind on scenes; base takes
them from WordNet, which needs nltk and its data. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.nas_base_4m import albef_run
from nas_jax.config import to_config_dict
from nas_jax.methods.config import NegativeTextConfig
from nas_jax.methods.rvlm import RvlmConfig


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    words = NegativeTextConfig(("sister",), sisters="world:small")
    return to_config_dict(albef_run(argument, RvlmConfig, negatives=words))
