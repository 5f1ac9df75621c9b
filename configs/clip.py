"""CLIP (Radford et al. 2021), ALIGN (Jia et al. 2021) and SigLIP (Zhai et al. 2023).

    python main.py --config=configs/clip.py:method=siglip --workdir=runs/siglip
    python main.py --config=configs/clip.py:size=base,folder=DIR --workdir=gs://...

method: clip, align or siglip. size=scenes: with the data, encoders and steps of configs/demo.py, to
compare methods by. size=base: the paper's sizes and optimizer, on the pairs of DIR/train.json
(ALBEF's list form; none of the papers' pairs are public).

clip: ViT-B/32, text encoder of width 512, batch 32768, decay 0.2, learning rate 5e-4 with 2000
steps of warm-up and one cosine to 0, 32 epochs (appendix F). align: batch 16384, learning rate 1e-3
with 10000 steps of warm-up, decay 1e-5, 1.2 M steps (section 5). siglip: ViT-B/16, texts of 64
tokens, batch 32768.

Uncertain. All: the papers' tokenizers are no WordPiece, so that of BERT stands in. clip: the paper
takes a random square crop, here one of at least 0.9 of the picture. align: its image encoder is
EfficientNet and its optimizer LAMB with linear decay; here ViT-B/16 of BERT's size and AdamW with a
cosine. siglip: the optimizer's numbers are not those of a published table. Expected numbers:
unmeasured; nobody has yet run size=base to the end.
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
SIZES = ("scenes", "base")
ADAM = OptimizerConfig(schedule="smooth", lr_min=0.0, warmup_lr=0.0, b2=0.98, eps=1e-6)


def get_config(argument: str = ""):
    """method: clip, align or siglip; size: scenes or base; folder: of the json list of base; world:
    of the scenes.
    """
    given = arguments(
        argument, method="clip", size="scenes", folder="data/pairs", world="small"
    )  # fmt: skip
    name, size = given["method"], given["size"]
    for field, known in (("method", tuple(METHODS)), ("size", SIZES)):
        if given[field] not in known:
            got = f"{field}={given[field]!r}"
            raise ConfigError(got, f"one of {', '.join(known)}", "name one of them")
    if size == "scenes":
        return to_config_dict(scenes_run(f"{name}-scenes", METHODS[name], given["world"]))
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
