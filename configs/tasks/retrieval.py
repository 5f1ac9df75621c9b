"""Retrieval fine-tuning (nas_jax/tasks/retrieval.py), on scenes or as ALBEF and NAS.

    python main.py --config=configs/tasks/retrieval.py --workdir=runs/tasks/retrieval
    python main.py --config=configs/tasks/retrieval.py:nva=on,weights=runs/demo/nas --workdir=DIR
    python main.py --config=configs/tasks/retrieval.py:size=base,dataset=flickr,folder=DIR
        --workdir=DIR --config.train.weights=RUN --config.data.image_root=FLICKR

nva=on: NAS's dictionary, and NVA from the first step on; weights must be NAS's. scenes: from the
weights of `make demo`. base: ALBEF's recipe: 384 px, positions resized, ITC with all captions of a
picture as positives, batch 256, 1e-5 down to 1e-6, alpha rising over the first epoch; COCO 5
epochs, 256 candidates ranked again; Flickr30k 10 epochs, 128. DIR holds its lists coco_train.json
and coco_val.json, or flickr30k_train.json and flickr30k_val.json. The best checkpoint is that of
the highest validation recall at 1 from text to image, by the logit of "match"; ALBEF takes the mean
of six recalls. Expected: COCO test 77.6 / 61.0 R@1 from 14 M pictures (LAVIS); unmeasured here.
"""

from __future__ import annotations

from dataclasses import replace

from configs.tasks.shared import base_task, given_size, scenes_task
from nas_jax.config import to_config_dict
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.variants import nva_form
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.tasks.retrieval import RetrievalConfig, RetrievalNasConfig
from nas_jax.utils.errors import ConfigError

STEPS = 600
EPOCHS = {"coco": 5, "flickr": 10}
RERANKED = {"coco": 256, "flickr": 128}
FILES = {"coco": "coco", "flickr": "flickr30k"}
BEST = "val/retrieval/itm_logit/text_to_image_r@1"


def get_config(argument: str = ""):
    """size: scenes or base; dataset: coco or flickr; nva: on or off; folder: of the lists; weights:
    a run, or none.
    """
    more = {"dataset": "coco", "nva": "off"}
    given = given_size(argument, "data/retrieval", "runs/nas-base-4m", **more)
    if given["dataset"] not in EPOCHS:
        got = f"dataset={given['dataset']!r}"
        raise ConfigError(got, f"one of {', '.join(EPOCHS)}", "name one of them")
    if given["nva"] not in ("on", "off"):
        raise ConfigError(f"nva={given['nva']!r}", "on or off", "name one of them")
    scenes = given["size"] == "scenes"
    shared = {"itc": ItcConfig(positives_by_id=True)}
    if scenes:
        itc = ItcConfig(queue_size=512, temp_min=0.05, positives_by_id=True)
        shared = {"itc": itc, "momentum": 0.98, "alpha": 0.2}
    method = RetrievalConfig(**shared)
    if given["nva"] == "on":
        dictionary = DictionaryConfig(codes=128) if scenes else DictionaryConfig()
        nva = nva_form("whole" if scenes else "authors", dictionary.codes)
        nva, nta = replace(nva, start_epoch=0.0, stop_gradient=False), NtaConfig(enabled=False)
        method = RetrievalNasConfig(**shared, dictionary=dictionary, nva=nva, nta=nta)
    if scenes:
        run = scenes_task(f"{method.name}-scenes", method, given["weights"], STEPS)
        evals = replace(run.eval, scorers=("itc", "itm", "itm_logit"), rerank_k=16, max_images=100)
        train = replace(run.train, best_metric=BEST)
        return to_config_dict(replace(run, eval=evals, train=train))
    lists = tuple(
        f"{given['folder']}/{FILES[given['dataset']]}_{one}.json" for one in ("train", "val")
    )
    run = base_task(f"{method.name}-base", method, (lists[:1], lists[1:]), given["weights"])
    return to_config_dict(
        replace(
            run,
            optimizer=replace(run.optimizer, lr=1e-5),
            eval=replace(
                run.eval, scorers=("itc", "itm_logit"), rerank_k=RERANKED[given["dataset"]]
            ),
            train=replace(
                run.train,
                epochs=EPOCHS[given["dataset"]],
                best_metric=BEST,
                eval_every=1000,
                weights_state=True,
            ),
        )
    )
