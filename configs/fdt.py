"""FDT (methods/fdt.py): on rendered scenes, or with the recipe of its authors.

    python main.py --config=configs/fdt.py --workdir=runs/fdt
    python main.py --config=configs/fdt.py:size=base,folder=DIR --workdir=gs://...

scenes: the part of a run that all methods share (configs/demo.py), with fewer tokens and a
lower temperature of the attention. base: the rates, decay, batch of 1024 and 32 epochs of the
authors' code. Uncertain there: they train ViT-B/32 and a causal text encoder on CC3M at 224 px,
which is ViT-B/16 and BERT on the 4 M pictures here. Expected numbers: unmeasured.
"""

from __future__ import annotations

from dataclasses import replace

from configs.demo import scenes_run
from configs.nas_base_4m import base_run
from nas_jax.config import arguments, to_config_dict
from nas_jax.methods.fdt import FdtConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError


def get_config(argument: str = ""):
    """size: scenes or base; folder: where the json lists of base are."""
    given = arguments(argument, size="scenes", folder="data/4m")
    if given["size"] not in ("scenes", "base"):
        raise ConfigError(f"size={given['size']!r}", "scenes or base", "name one of them")
    if given["size"] == "scenes":
        method = FdtConfig(
            tokens=256,
            # at 1 the mix of every picture and caption is a single token at step 25 already, which
            # has no gradient
            attention_temp=20.0,
            temp_max=0.1,
        )
        return to_config_dict(scenes_run("fdt-scenes", method))
    run = base_run("fdt-base-4m", FdtConfig(), given["folder"].rstrip("/"), epochs=32)
    optimizer = OptimizerConfig(
        schedule="smooth", lr=1e-3, lr_min=0.0, warmup_lr=1e-4, warmup_steps=2500, weight_decay=0.1
    )
    run = replace(run, optimizer=optimizer, data=replace(run.data, batch_size=1024))
    return to_config_dict(run)
