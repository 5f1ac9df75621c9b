"""CE-CLIP on rendered scenes, or at the size of its paper.

    python main.py --config=configs/ceclip.py --workdir=runs/ceclip
    python main.py --config=configs/ceclip.py:size=base,pairs=PAIRS.json --workdir=runs/ceclip

size=scenes is the run that all methods share (configs/demo.py). size=base follows the authors'
script: COCO 2014, image size 224, patches of 32 pixels, batch 4 x 378, ten epochs, lr 5e-6 after 50
steps of warm-up, weight decay 0.1. It is a fine-tuning: set train.weights to a checkpoint of two
towers. What differs from the authors and is uncertain: they start from OpenAI's CLIP, whose text
encoder and vocabulary are others than ours; their four negative captions (relation, attribute,
object, action) are filled in by a language model beforehand, where here two words change places;
with batches that bring captions, set method.negatives.generators to ('given',). Nobody has run it.
"""

from __future__ import annotations

from configs.demo import scenes_run
from nas_jax.config import RunConfig, arguments, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.methods.ceclip import CeClipConfig
from nas_jax.methods.config import ContrastConfig, NegativeTextConfig
from nas_jax.models.sizes import model_config
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; pairs: ALBEF's json list, for base."""
    given = arguments(argument, size="scenes", pairs="coco_train.json")
    if given["size"] == "scenes":
        itc = ContrastConfig(temp_min=0.05)
        both = NegativeTextConfig(("swap", "sister"), sisters="world:small", swap_sisters=True)
        return to_config_dict(scenes_run("ceclip", CeClipConfig(itc=itc, negatives=both)))
    if given["size"] != "base":
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    return to_config_dict(
        RunConfig(
            name="ceclip-base",
            data=DataConfig(
                train=(given["pairs"],),
                image_size=224,
                rand_augment_ops=0,
                crop_scale=(0.9, 1.0),
                text_length=30,
                tokenizer="bert-base-uncased",
                batch_size=1512,
                workers=12,
            ),
            model=model_config("base", image_size=224, patch_size=32, text_layers=12, dropout=0.0),
            method=CeClipConfig(),
            optimizer=OptimizerConfig(
                schedule="smooth", lr=5e-6, lr_min=0.0, warmup_steps=50, weight_decay=0.1
            ),
            train=TrainConfig(epochs=10, log_every=50, checkpoint_every=500),
        )
    )
