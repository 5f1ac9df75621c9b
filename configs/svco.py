"""S-VCO (methods/svco.py): on rendered scenes, or at the size of the paper.

    python main.py --config=configs/svco.py --workdir=runs/svco
    python main.py --config=configs/svco.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py), with scenes in pairs that differ
in one thing. base: ALBEF's recipe for 30 epochs; the files of the folder must have pairs that
differ in little, with keys as data/siblings.py says. The paper fine-tunes a language model: margins
and weights are ours. Expected numbers: unmeasured.
"""

from __future__ import annotations

from dataclasses import replace

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.config import ItcConfig, MlmConfig
from nas_jax.methods.svco import SvcoConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        run = scenes_run(
            "svco-scenes",
            SvcoConfig(
                momentum=0.98,
                alpha=0.2,
                itc=ItcConfig(queue_size=512, temp_min=0.05),
                mlm=MlmConfig(probability=0.3, max_masked=6),
            ),
        )
        return to_config_dict(
            replace(run, data=replace(run.data, siblings=2, scene_variations=True))
        )
    method = SvcoConfig(mlm=MlmConfig(max_masked=8))
    run = base_run("svco-base-4m", method, given["folder"].rstrip("/"), epochs=30)
    return to_config_dict(replace(run, data=replace(run.data, siblings=2, flip=False)))
