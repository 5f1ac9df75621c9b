"""CLIP (Radford et al. 2021), ALIGN (Jia et al. 2021) and SigLIP (Zhai et al. 2023).

    python main.py --config=configs/clip.py:method=siglip --workdir=runs/siglip
    python main.py --config=configs/clip.py:size=base,folder=DIR --workdir=gs://...

method: clip, align or siglip. scenes: the part of a run that all methods share (configs/demo.py).
base: on the pairs of DIR/train.json (ALBEF's list form; none of the papers' pairs are public).

The sizes of clip (ViT-B/32, text encoder of width 512, 77 tokens) and of siglip (ViT-B/16, 64
tokens) are those of the published weights. Batch, rate, warm-up, decay, Adam's numbers and the
length of all three runs, and ALIGN's smoothing, have not been checked against the papers: check
them before you spend a pod on them.

Uncertain. All: the papers' tokenizers are no WordPiece, so that of BERT stands in. clip: pictures
are cropped to at least 0.9 of their area. align: its image encoder is EfficientNet; here it is
ViT-B/16 beside BERT, with AdamW. Expected numbers: unmeasured.
"""

from __future__ import annotations

from dataclasses import replace

from configs.demo import scenes_run
from nas_jax.config import RunConfig, arguments, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.methods.clip import AlignConfig, ClipConfig, SiglipConfig
from nas_jax.models.sizes import ModelConfig, model_config
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError

METHODS = {"clip": ClipConfig(), "align": AlignConfig(), "siglip": SiglipConfig()}
ADAM = OptimizerConfig(schedule="smooth", lr_min=0.0, warmup_lr=0.0, b2=0.98, eps=1e-6)


def get_config(argument: str = ""):
    """method: clip, align or siglip; size: scenes or base; folder: of the json list of base."""
    given = arguments(argument, method="clip", size="scenes", folder="data/pairs")
    name, size = given["method"], given["size"]
    if size not in ("scenes", "base"):
        raise ConfigError(f"size={size!r}", "scenes or base", "name one of them")
    if name not in METHODS:
        raise ConfigError(f"method={name!r}", "clip, align or siglip", "name one of them")
    if size == "scenes":
        return to_config_dict(scenes_run(f"{name}-scenes", METHODS[name]))
    recipe = {"clip": clip_base, "align": align_base, "siglip": siglip_base}[name]
    return to_config_dict(recipe(f"{given['folder'].rstrip('/')}/train.json"))


def model(**sizes) -> ModelConfig:
    """What the three models of base size share."""
    common = dict(dtype="bfloat16", image_size=224, text_layers=12, dropout=0.0)
    return model_config("base", **(common | sizes))


def data(pairs: str, **changes) -> DataConfig:
    """The pairs, with their pictures nearly whole."""
    common = dict(
        image_size=224,
        crop_scale=(0.9, 1.0),
        rand_augment_ops=0,
        tokenizer="bert-base-uncased",
        add_sep=True,
        max_words=77,
        batch_size=32768,
        workers=12,
    )
    return DataConfig(train=(pairs,), **(common | changes))


def clip_base(pairs: str) -> RunConfig:
    """ViT-B/32."""
    sizes = dict(patch_size=32, heads=8, image_heads=12, max_text_length=77, embed_dim=512)
    return RunConfig(
        name="clip-base",
        data=data(pairs, text_length=77),
        model=model(**sizes),
        method=ClipConfig(towers="clip", text_dim=512),
        optimizer=replace(ADAM, lr=5e-4, warmup_steps=2000, weight_decay=0.2),
        train=TrainConfig(epochs=32, log_every=50, checkpoint_every=2000),
    )


def align_base(pairs: str) -> RunConfig:
    """ALIGN's objective and schedule, with encoders that are not its own."""
    return RunConfig(
        name="align-base",
        data=data(pairs, text_length=64, batch_size=16384),
        model=model(max_text_length=64, embed_dim=640),
        method=AlignConfig(),
        optimizer=replace(ADAM, lr=1e-3, warmup_steps=10_000, weight_decay=1e-5),
        train=TrainConfig(steps=1_200_000, log_every=50, checkpoint_every=2000),
    )


def siglip_base(pairs: str) -> RunConfig:
    """ViT-B/16."""
    return RunConfig(
        name="siglip-base",
        data=data(pairs, text_length=64),
        model=model(max_text_length=64, embed_dim=768),
        method=SiglipConfig(towers="siglip"),
        optimizer=replace(ADAM, lr=1e-3, warmup_steps=20_000, weight_decay=1e-4, b2=0.95),
        train=TrainConfig(epochs=32, log_every=50, checkpoint_every=2000),
    )
