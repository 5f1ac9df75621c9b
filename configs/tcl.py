"""TCL (methods/tcl.py): on rendered scenes, or as its authors train it.

    python main.py --config=configs/tcl.py --workdir=runs/tcl
    python main.py --config=configs/tcl.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py); the second view is a little
darker, brighter or blurred, as crops would move what captions speak of. base: the 4 M pictures of
ALBEF for 30 epochs, from the authors' code. Uncertain there: their colour jitter and grey pictures
are left out. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.nas_base_4m import albef_run
from nas_jax.config import to_config_dict
from nas_jax.methods.tcl import TclConfig


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    return to_config_dict(albef_run(argument, TclConfig, distortion=0.3))
