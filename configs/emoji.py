"""NAS on real pictures: drawings of emoji by two artists, with Unicode's names as captions.

    python main.py --config=configs/emoji.py:folder=DIR --workdir=runs/emoji-nas
    python main.py --config=configs/emoji.py:folder=DIR,variant=albef --workdir=runs/emoji-albef
    python main.py --config=configs/emoji.py:folder=DIR,weights=WEIGHTS --workdir=runs/emoji-real

DIR holds noto.tar and openmoji.tar (WebDataset: KEY.png and KEY.json with caption and captions)
and, for each, a -foils.jsonl and a -quads.jsonl; docs/data.md says how to make them from the openly
licensed emoji packages. 10 % of the emoji are held out, in both artists' drawings. The measured
table is in docs/notes/emoji.md. WEIGHTS are a DINOv2 ViT-S and MiniLM in our layout:
docs/conversion.md makes them, and the model then has their size and vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

from nas_jax.config import RunConfig, arguments, to_config_dict, whole_number
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import ItcConfig, NasMlmConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.methods.variants import nva_form, with_variant
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import model_config
from nas_jax.negatives.nta import NtaConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig

ARTISTS = ("noto", "openmoji")
CODES = 512


def get_config(argument: str = ""):
    """folder: of the tars; variant: a row of the ablation; nva: the form of NVA
    (methods/variants.py); weights: converted, to start from; steps: instead of 30 epochs.
    """
    known = {"folder": "data/emoji", "variant": "nas", "nva": "whole", "weights": "", "steps": "0"}
    given = arguments(argument, **known)
    folder, variant = given["folder"].rstrip("/"), given["variant"]
    method = NasConfig(
        momentum=0.99,  # a teacher that keeps up with a run of an hour
        alpha=0.2,
        # two artists draw the same emoji
        itc=ItcConfig(queue_size=1024, temp_min=0.05, positives_by_id=True),
        mlm=NasMlmConfig(probability=0.3, max_masked=6),
        dictionary=DictionaryConfig(codes=CODES, revive_every=50),
        nva=nva_form(given["nva"], CODES),
        # from scratch, the encoders learn from the negatives too
        nta=NtaConfig(stop_gradient=False),
    )
    run = RunConfig(
        name=f"emoji-{variant}",
        data=DataConfig(
            train=tuple(f"{folder}/{artist}.tar" for artist in ARTISTS),
            holdout=0.1,
            foils=tuple(f"{folder}/{artist}-foils.jsonl" for artist in ARTISTS),
            quads=tuple(f"{folder}/{artist}-quads.jsonl" for artist in ARTISTS),
            image_size=64,
            crop_scale=(0.7, 1.0),
            flip=False,  # arrows, clocks and the order of persons are in the captions
            rand_augment_ops=1,
            rand_augment_magnitude=5,
            text_length=20,
            vocab_size=2048,
            batch_size=32,
            workers=0,
            threads=1,
        ),
        model=model_config("nano", dim=64, image_size=64, dropout=0.0, init_std=0.07),
        method=with_variant(method, variant),
        optimizer=OptimizerConfig(
            schedule="smooth",
            lr=2e-3,
            lr_min=1e-5,
            warmup_steps=300,
            clip_norm=1.0,
            weight_decay=0.05,
        ),
        train=TrainConfig(
            epochs=30,
            steps=whole_number(given, "steps", 0),
            log_every=50,
            eval_every=2000,
            checkpoint_every=500,
        ),
        eval=EvalConfig(rerank_k=32, batch_size=128),
    )
    return to_config_dict(from_weights(run, given["weights"]) if given["weights"] else run)


def from_weights(run: RunConfig, weights: str) -> RunConfig:
    """The run with real encoders: ViT-S/14 on 5 x 5 patches, and the two halves of MiniLM."""
    model = model_config(
        "small",
        heads=12,
        image_heads=6,
        image_layers=12,
        patch_size=14,
        image_size=70,
        dropout=0.0,
        max_text_length=32,
    )
    return replace(
        run,
        name=f"{run.name}-real",
        model=model,
        data=replace(run.data, image_size=model.image_size),
        optimizer=replace(run.optimizer, lr=1e-4),  # trained weights move less
        train=replace(run.train, weights=weights),
    )
