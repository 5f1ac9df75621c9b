"""TCL (methods/tcl.py): on rendered scenes, or as its authors train it.

    python main.py --config=configs/tcl.py --workdir=runs/tcl
    python main.py --config=configs/tcl.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py); the second view is a little
darker, brighter or blurred, as crops would move what captions speak of. base: the 4 M pictures of
ALBEF for 30 epochs, from the authors' code. Uncertain there: their colour jitter and grey pictures
are left out. Expected numbers: unmeasured.
"""

from __future__ import annotations

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.config import ItcConfig, MlmConfig
from nas_jax.methods.tcl import TclConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        method = TclConfig(
            momentum=0.98,
            alpha=0.2,
            itc=ItcConfig(queue_size=512, temp_min=0.05),
            mlm=MlmConfig(probability=0.3, max_masked=6),
            distortion=0.3,
        )
        return to_config_dict(scenes_run("tcl-scenes", method))
    method = TclConfig(mlm=MlmConfig(max_masked=8))
    run = base_run("tcl-base-4m", method, given["folder"].rstrip("/"), epochs=30)
    return to_config_dict(run)
