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

from configs.nas_base_4m import albef_run
from nas_jax.config import to_config_dict
from nas_jax.methods.svco import SvcoConfig


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    run = albef_run(argument, SvcoConfig)
    scenes = "scenes" in run.data.train
    kind = {"scene_variations": True} if scenes else {"flip": False}
    return to_config_dict(replace(run, data=replace(run.data, siblings=2, **kind)))
