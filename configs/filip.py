"""FILIP (Yao et al. 2022).

    python main.py --config=configs/filip.py --workdir=runs/filip
    python main.py --config=configs/filip.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py). base: ViT-B/32 at 224 px and
features of 256 numbers, on the pairs of DIR/train.json (ALBEF's list form; the paper's pairs are
not public), with the optimizer of a public re-implementation (DeCLIP's code: b2 0.98, decay 0.5,
learning rate from 1e-4 to 5e-4 in 2500 steps, one cosine to 0, 128000 steps).

Uncertain: the paper's own optimizer and batch, and the share of a quarter of the tokens, have not
been checked against the paper. The text encoder is BERT with BERT's tokenizer. Expected numbers:
unmeasured.
"""

from __future__ import annotations

from configs.demo import scenes_run
from nas_jax.config import RunConfig, arguments, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.methods.filip import FilipConfig
from nas_jax.models.sizes import model_config
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: of the json list of base."""
    given = arguments(argument, size="scenes", folder="data/pairs")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        return to_config_dict(scenes_run("filip-scenes", FilipConfig()))
    return to_config_dict(base(f"{given['folder'].rstrip('/')}/train.json"))


def base(pairs: str) -> RunConfig:
    """ViT-B/32 and a text encoder of 12 layers."""
    sizes = dict(image_size=224, patch_size=32, text_layers=12, max_text_length=77, embed_dim=256)
    return RunConfig(
        name="filip-base",
        data=DataConfig(
            train=(pairs,),
            image_size=224,
            text_length=77,
            max_words=77,
            tokenizer="bert-base-uncased",
            add_sep=True,
            batch_size=4096,
            workers=12,
        ),
        model=model_config("base", dtype="bfloat16", dropout=0.0, **sizes),
        method=FilipConfig(),
        optimizer=OptimizerConfig(
            schedule="smooth",
            lr=5e-4,
            lr_min=0.0,
            warmup_lr=1e-4,
            warmup_steps=2500,
            weight_decay=0.5,
            b2=0.98,
        ),
        train=TrainConfig(steps=128_000, log_every=50, checkpoint_every=2000),
    )
