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

from configs.negclip import coco_run
from nas_jax.config import to_config_dict
from nas_jax.methods.ceclip import CeClipConfig
from nas_jax.methods.config import NegativeTextConfig


def get_config(argument: str = ""):
    """size: scenes or base; pairs: ALBEF's json list, for base."""
    both = NegativeTextConfig(("swap", "sister"), sisters="world:small", swap_sisters=True)
    base = {"batch_size": 1512, "lr": 5e-6, "epochs": 10}
    return to_config_dict(coco_run(argument, CeClipConfig, both, **base))
