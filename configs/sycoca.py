"""SyCoCa (methods/sycoca.py): on rendered scenes, or at the size of ALBEF.

    python main.py --config=configs/sycoca.py --workdir=runs/sycoca
    python main.py --config=configs/sycoca.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ALBEF's recipe on the 4 M
pictures for 30 epochs; the paper trains on CC12M. No code was published: the share of masked
patches, the decoder and the targets are ours. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.nas_base_4m import albef_run
from nas_jax.config import to_config_dict
from nas_jax.methods.sycoca import SycocaConfig


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    return to_config_dict(albef_run(argument, SycocaConfig))
