"""NAS as its authors train it: ViT-B/16 at 256 px, BERT-base, 4 M pictures (COCO, VG, CC3M, SBU),
30 + 1 epochs.

    python main.py --config=configs/nas_base_4m.py:folder=DIR --workdir=gs://...
    --config.data.image_root=IMAGES

DIR holds ALBEF's json lists ([{image, caption or captions}]): coco.json, vg.json, cc3m_train.json,
cc3m_val.json and sbu.json. Batch 512 over all devices; the authors used 8 GPUs of 64 pairs. NVA
comes in for the last epoch, with the dictionary frozen and the learning rate at its minimum (1e-5),
as in their second stage. NVA is in the authors' form, as this file is their recipe; nva=whole takes
the form of the smaller configs, whose pictures contradict their captions far more often on scenes,
the only data where that can be measured (docs/results). Expected numbers: unmeasured; the paper's
tables were not available to this project, and nobody has yet run this config to the end.
"""

from __future__ import annotations

from dataclasses import replace

from configs.demo import scenes_run
from nas_jax.config import RunConfig, arguments, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig, MlmConfig, NasMlmConfig
from nas_jax.methods.method import MethodConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.methods.variants import nva_form, with_variant
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import model_config
from nas_jax.negatives.nta import NtaConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError

LISTS = ("coco", "vg", "cc3m_train", "cc3m_val", "sbu")


def get_config(argument: str = ""):
    """folder: where the json lists are; variant: a row of the ablation; nva: the form of NVA
    (methods/variants.py).
    """
    given = arguments(argument, folder="data/4m", variant="nas", nva="authors")
    folder, variant = given["folder"].rstrip("/"), given["variant"]
    method = NasConfig(
        mlm=NasMlmConfig(max_masked=8),  # captions of 25 tokens have more picks in 0.6 % of cases
        nva=replace(nva_form(given["nva"], DictionaryConfig().codes), start_epoch=30.0),
        nta=NtaConfig(start_epoch=30),
    )
    return to_config_dict(base_run(f"nas-base-4m-{variant}", with_variant(method, variant), folder))


def base_run(
    name: str, method: MethodConfig, folder: str = "data/4m", epochs: int = 31
) -> RunConfig:
    """A run of any method of ALBEF's size on the 4 M pictures: what all of them share."""
    return RunConfig(
        name=name,
        seed=42,
        data=DataConfig(
            train=tuple(f"{folder}/{name}.json" for name in LISTS),
            image_size=256,
            flip=True,  # ALBEF's; captions of the 4 M pictures rarely say left or right
            text_length=25,
            tokenizer="bert-base-uncased",
            batch_size=512,
            workers=12,
        ),
        # 256 tokens fill the tiles of a TPU, 257 do not.
        model=model_config("base", dtype="bfloat16", cls_apart=True),
        method=method,
        optimizer=OptimizerConfig(cosine_epochs=30),
        train=TrainConfig(epochs=epochs, log_every=50, checkpoint_every=2000),
    )


def albef_run(argument: str, config: type[AlbefConfig], **scenes) -> RunConfig:
    """A run of a method on ALBEF's skeleton. argument: size=scenes (configs/demo.py) or size=base,
    ALBEF's recipe on the json lists of folder=DIR for 30 epochs; scenes: fields that differ there.
    """
    given = arguments(argument, size="scenes", folder="data/4m")
    name = config().name
    if given["size"] == "base":
        method = config(mlm=MlmConfig(max_masked=8))
        return base_run(f"{name}-base-4m", method, given["folder"].rstrip("/"), epochs=30)
    if given["size"] != "scenes":
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    common = dict(
        momentum=0.98,
        alpha=0.2,
        itc=ItcConfig(queue_size=512, temp_min=0.05),
        mlm=MlmConfig(probability=0.3, max_masked=6),
    )
    return scenes_run(f"{name}-scenes", config(**common, **scenes))
