"""SoftMask++ (methods/softmask.py): on rendered scenes, or at the size of the paper.

    python main.py --config=configs/softmask.py --workdir=runs/softmask
    python main.py --config=configs/softmask.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ALBEF's recipe on the 4 M
pictures for 30 epochs, on which the paper builds. No code was published: gamma, the share of masked
words and the distortion of pictures are ours. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.nas_base_4m import albef_run
from nas_jax.config import to_config_dict
from nas_jax.methods.softmask import SoftMaskConfig


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    return to_config_dict(albef_run(argument, SoftMaskConfig, distortion=0.3))
