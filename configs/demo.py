"""NAS on rendered scenes: the whole method in minutes, on two CPU cores and without a file.

    python main.py --config=configs/demo.py --workdir=runs/nas
    python main.py --config=configs/demo.py:variant=albef --workdir=runs/albef

The variants are albef, vd, vd_nva, vd_nta and nas. nva=authors takes the authors' form of NVA
instead of the one that the diagnosis favours; world=large has more shapes, colours and fills.
`make demo` trains albef and nas side by side; the expected table is in README.md.
"""

from __future__ import annotations

from dataclasses import replace

from nas_jax.config import RunConfig, arguments, to_config_dict, whole_number
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import ItcConfig, NasMlmConfig
from nas_jax.methods.method import MethodConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.methods.variants import nva_form, with_variant
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import model_config
from nas_jax.negatives.nta import NtaConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError

STEPS, BATCH = 3000, 32
TEXT_LENGTH = {"small": 17, "large": 20}  # of the longest caption of each world, [CLS] included
CODES = 128


def get_config(argument: str = ""):
    """variant: a row of the ablation; nva: the form of NVA (methods/variants.py); world: of the
    scenes; pictures: that are trained on; steps: of the run, in whose last third the negatives are.
    """
    sizes = {"pictures": "12000", "steps": f"{STEPS}"}
    given = arguments(argument, variant="nas", nva="whole", world="small", **sizes)
    variant, world = given["variant"], given["world"]
    pictures, steps = whole_number(given, "pictures", BATCH), whole_number(given, "steps", 1)
    if world not in TEXT_LENGTH:
        known = ", ".join(TEXT_LENGTH)
        raise ConfigError(f"world={world!r}", f"one of {known}", "name one of them")
    last_stage = 2 / 3 * steps * BATCH / pictures  # in epochs
    method = NasConfig(
        momentum=0.98,  # a teacher that keeps up with a run of some thousand steps
        alpha=0.2,
        itc=ItcConfig(queue_size=512, temp_min=0.05),
        mlm=NasMlmConfig(probability=0.3, max_masked=6),
        dictionary=DictionaryConfig(codes=CODES, revive_every=20),
        nva=replace(nva_form(given["nva"], CODES), start_epoch=last_stage),
        # from scratch, the encoders learn from the negatives too
        nta=NtaConfig(top_words=5, stop_gradient=False, start_epoch=last_stage, exchange=0.3),
    )
    run = scenes_run(f"demo-{variant}", with_variant(method, variant), world, pictures, steps)
    return to_config_dict(run)


def scenes_run(
    name: str,
    method: MethodConfig,
    world: str = "small",
    pictures: int = 12_000,
    steps: int = STEPS,
) -> RunConfig:
    """A run of any method on scenes: what all of them share, so that they can be compared."""
    return RunConfig(
        name=name,
        data=DataConfig(
            num_train=pictures,
            scene_world=world,
            image_size=48,
            # places, colours and numbers are the message: nothing may change them
            crop_scale=(),
            rand_augment_ops=0,
            text_length=TEXT_LENGTH[world],
            vocab_size=256,
            batch_size=BATCH,
            workers=0,
            threads=1,
        ),
        # in a run this short, places are learned only if they weigh as much as colours
        model=model_config("nano", dim=64, dropout=0.0, init_std=0.07, position_std=1.0),
        method=method,
        optimizer=OptimizerConfig(
            schedule="smooth", lr=2e-3, lr_min=1e-5, warmup_steps=100, clip_norm=1.0
        ),
        train=TrainConfig(steps=steps, log_every=25, eval_every=1500, checkpoint_every=500),
        eval=EvalConfig(rerank_k=16, batch_size=100, max_images=100),
    )
