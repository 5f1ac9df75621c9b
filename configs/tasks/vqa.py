"""VQA v2 (nas_jax/tasks/vqa.py): questions on scenes, or as ALBEF fine-tunes.

    python main.py --config=configs/tasks/vqa.py --workdir=runs/tasks/vqa
    python main.py --config=configs/tasks/vqa.py:size=base,folder=DIR,weights=RUN
        --workdir=DIR --config.data.image_root=IMAGES

scenes: from the weights of `make demo`; what colour, what shape, what number, is there. base:
ALBEF's recipe: 384 px, questions of 25 tokens, 8 epochs, batch 256, 2e-5 down to 1e-6, alpha
rising over the first epoch, questions of training, validation and Visual Genome, tests by ranking
3,128 answers, of which 128 are scored whole; here not mirrored, as questions say left and right.
DIR holds its lists vqa_train.json, vqa_val.json, vg_qa.json, vqa_test.json and answer_list.json;
IMAGES holds the pictures of both, at the paths of the lists.
There is no validation left over: evals/STEP/vqa_vqa_test.json goes to the official server.
Expected: 76.4 on test-dev from 14 M pictures (LAVIS); unmeasured here.
"""

from __future__ import annotations

from dataclasses import replace

from configs.tasks.shared import base_task, given_size, scenes_task
from nas_jax.config import to_config_dict
from nas_jax.tasks.vqa import VqaConfig

STEPS = 1500


def get_config(argument: str = ""):
    """size: scenes or base; folder: of the lists; weights: a run, or none."""
    given = given_size(argument, "data/vqa", "runs/nas-base-4m")
    if given["size"] == "scenes":
        method = VqaConfig(momentum=0.98, alpha=0.2, max_answers=1, answer_length=4)
        run = scenes_task("vqa-scenes", method, given["weights"], STEPS, text_length=22)
        return to_config_dict(run)
    folder = given["folder"]
    train = tuple(f"{folder}/{name}.json" for name in ("vqa_train", "vqa_val", "vg_qa"))
    method = VqaConfig(answers=f"{folder}/answer_list.json")
    run = base_task("vqa-base", method, (train, (f"{folder}/vqa_test.json",)), given["weights"])
    run = replace(
        run,
        data=replace(run.data, text_length=25, flip=False),
        optimizer=replace(run.optimizer, warmup_units=4),
        train=replace(run.train, epochs=8),
    )
    return to_config_dict(run)
