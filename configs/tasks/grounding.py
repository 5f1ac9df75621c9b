"""Weakly supervised grounding on RefCOCO+ (nas_jax/tasks/grounding.py), on scenes or as ALBEF.

    python -m nas_jax.tasks.ground runs/demo/albef
    python main.py --config=configs/tasks/grounding.py --workdir=runs/tasks/grounding
    python main.py --config=configs/tasks/grounding.py:size=base,folder=DIR,weights=RUN
        --workdir=DIR --config.data.image_root=COCO

A pretrained run can be asked as it is, by the first command. Training is that of retrieval, on
pictures with the names of single things. scenes: from the weights of `make demo`. base: ALBEF's
recipe: 384 px, resized and not cropped, 5 epochs, 1e-5 down to 1e-6, the map of layer 8 of BERT's
12, which is number 2 of the 6 that fuse; here not mirrored, as texts say left and right. DIR holds
refcoco+_train.json, refcoco+_val.json and refcoco+_test.json; beside them for the tests dets.json,
refs(unc).p and instances.json.
Expected: unmeasured.
"""

from __future__ import annotations

from dataclasses import replace

from configs.tasks.shared import base_task, given_size, scenes_task
from nas_jax.config import to_config_dict
from nas_jax.methods.config import ItcConfig
from nas_jax.tasks.grounding import GroundingConfig

STEPS = 300


def get_config(argument: str = ""):
    """size: scenes or base; folder: of the lists; weights: a run, or none."""
    given = given_size(argument, "data/refcoco+", "runs/nas-base-4m")
    if given["size"] == "scenes":
        itc = ItcConfig(queue_size=512, temp_min=0.05, positives_by_id=True)
        method = GroundingConfig(momentum=0.98, alpha=0.2, itc=itc)
        return to_config_dict(scenes_task("grounding-scenes", method, given["weights"], STEPS))
    lists = [f"{given['folder']}/refcoco+_{name}.json" for name in ("train", "val", "test")]
    files, method = ((lists[0],), (lists[1], lists[2])), GroundingConfig(layer=2)
    run = base_task("grounding-base", method, files, given["weights"])
    best = "refcoco+_val/all/grounding/accuracy"
    run = replace(
        run,
        data=replace(run.data, crop_scale=(), flip=False),
        optimizer=replace(run.optimizer, lr=1e-5),
        train=replace(run.train, best_metric=best, eval_every=500, weights_state=True),
    )
    return to_config_dict(run)
