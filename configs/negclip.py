"""NegCLIP on rendered scenes, or at the size of its paper.

    python main.py --config=configs/negclip.py --workdir=runs/negclip
    python main.py --config=configs/negclip.py:size=base,pairs=PAIRS.json --workdir=runs/negclip

size=scenes is the run that all methods share (configs/demo.py). size=base follows the authors'
code: COCO, image size 224, patches of 32 pixels, batch 256, five epochs, lr 1e-6 after 50 steps of
warm-up. It is a fine-tuning: set train.weights to a checkpoint of two towers, as at that learning
rate fresh weights learn nothing. What differs from the authors and is uncertain: they start from
OpenAI's CLIP, whose text encoder and vocabulary are others than ours; they swap phrases too and
only words of one part of speech, and each batch holds a near picture of each pair. Nobody has run
it.
"""

from __future__ import annotations

from configs.demo import scenes_run
from nas_jax.config import RunConfig, arguments, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.methods.config import NegativeTextConfig
from nas_jax.methods.negclip import NegClipConfig
from nas_jax.models.sizes import model_config
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; pairs: ALBEF's json list, for base."""
    swap = NegativeTextConfig(sisters="world:small", swap_sisters=True)
    base = {"batch_size": 256, "lr": 1e-6, "epochs": 5}
    return to_config_dict(coco_run(argument, NegClipConfig, swap, **base))


def coco_run(
    argument: str,
    config: type[NegClipConfig],
    words: NegativeTextConfig,
    batch_size: int,
    lr: float,
    epochs: int,
) -> RunConfig:
    """A run of NegCLIP or of what builds on it. words: the negative captions on scenes; the rest is
    of base.
    """
    given = arguments(argument, size="scenes", pairs="coco_train.json")
    name = config().name
    if given["size"] == "scenes":
        return scenes_run(name, config(negatives=words))
    if given["size"] != "base":
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    return RunConfig(
        name=f"{name}-base",
        data=DataConfig(
            train=(given["pairs"],),
            image_size=224,
            rand_augment_ops=0,
            crop_scale=(0.9, 1.0),
            text_length=30,
            tokenizer="bert-base-uncased",
            batch_size=batch_size,
            workers=12,
        ),
        model=model_config("base", image_size=224, patch_size=32, text_layers=12, dropout=0.0),
        method=config(),
        optimizer=OptimizerConfig(
            schedule="smooth", lr=lr, lr_min=0.0, warmup_steps=50, weight_decay=0.1
        ),
        train=TrainConfig(epochs=epochs, log_every=50, checkpoint_every=500),
    )
