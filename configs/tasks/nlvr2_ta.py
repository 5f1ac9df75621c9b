"""Text assignment before NLVR2 (nas_jax/tasks/text_assignment.py), on scenes or as ALBEF.

    python main.py --config=configs/tasks/nlvr2_ta.py --workdir=runs/tasks/nlvr2_ta
    python main.py --config=configs/tasks/nlvr2_ta.py:size=base,folder=DIR,weights=RUN --workdir=DIR

scenes: the pictures and captions of pretraining, from the weights of `make demo`. base: ALBEF's
recipe: the 4 M pictures once more, 256 px, 1 epoch, batch 512, 2e-5. DIR: see
configs/nas_base_4m.py. Uncertain: the schedule inside that epoch, here constant after warm-up.
"""

from __future__ import annotations

from dataclasses import replace

from configs.nas_base_4m import base_run
from configs.tasks.shared import given_size, scenes_task
from nas_jax.config import to_config_dict
from nas_jax.tasks.text_assignment import TextAssignmentConfig

STEPS = 600


def get_config(argument: str = ""):
    """size: scenes or base; folder: of the lists; weights: a run, or none."""
    given = given_size(argument, "data/4m", "runs/nas-base-4m")
    method = TextAssignmentConfig()
    if given["size"] == "scenes":
        run = scenes_task("nlvr2-ta-scenes", method, given["weights"], STEPS)
        return to_config_dict(run)
    run = base_run("nlvr2-ta-base", method, given["folder"], epochs=1)
    run = replace(
        run,
        optimizer=replace(run.optimizer, lr=2e-5, cosine_epochs=0),
        train=replace(run.train, weights=given["weights"]),
    )
    return to_config_dict(run)
