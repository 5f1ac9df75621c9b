"""NLVR2 (nas_jax/tasks/nlvr2.py): statements on two pictures, on scenes or as ALBEF fine-tunes.

    python main.py --config=configs/tasks/nlvr2_ta.py --workdir=runs/tasks/nlvr2_ta
    python main.py --config=configs/tasks/nlvr2.py --workdir=runs/tasks/nlvr2
    python main.py --config=configs/tasks/nlvr2.py:size=base,folder=DIR,weights=RUN
        --workdir=DIR --config.data.image_root=IMAGES

scenes: from the weights of text assignment, which are made first (configs/tasks/nlvr2_ta.py). base:
ALBEF's recipe: 384 px, 10 epochs, batch 128, 2e-5 down to 1e-6, alpha rising over the first epoch,
the best epoch by dev. DIR holds the authors' train.json, dev.json and test1.json with the pictures
IDENTIFIER-img0.png and -img1.png in IMAGES, or ALBEF's lists of these names. Mirrored as ALBEF
does, each picture by itself, though sentences say left and right. RUN: weights of text assignment.
Expected: 82.5 on dev, 82.9 on test-P from 14 M pictures (LAVIS); unmeasured here.
"""

from __future__ import annotations

from dataclasses import replace

from configs.tasks.shared import base_task, given_size, scenes_task
from nas_jax.config import to_config_dict
from nas_jax.tasks.nlvr2 import Nlvr2Config

STEPS = 1200
PREPARED = "runs/tasks/nlvr2_ta"


def get_config(argument: str = ""):
    """size: scenes or base; folder: of the lists; weights: a run, or none."""
    given = given_size(argument, "data/nlvr2", "runs/nlvr2-ta-base", PREPARED)
    if given["size"] == "scenes":
        method = Nlvr2Config(momentum=0.98, alpha=0.2)
        run = scenes_task("nlvr2-scenes", method, given["weights"], STEPS, text_length=22)
        return to_config_dict(run)
    lists = [f"{given['folder']}/{name}.json" for name in ("train", "dev", "test1")]
    run = base_task("nlvr2-base", Nlvr2Config(), ((lists[0],), tuple(lists[1:])), given["weights"])
    best = "dev/all/nlvr2/accuracy"
    run = replace(
        run,
        data=replace(run.data, batch_size=128),
        train=replace(run.train, epochs=10, best_metric=best, eval_every=700),
    )
    return to_config_dict(run)
