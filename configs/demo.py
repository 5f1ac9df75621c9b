"""NAS on rendered scenes: the whole method in minutes, on two CPU cores and without a file.

    python main.py --config=configs/demo.py --workdir=runs/nas
    python main.py --config=configs/demo.py:variant=albef --workdir=runs/albef

The variants are albef, vd, vd_nva, vd_nta and nas. nva=authors takes the authors' form of NVA
instead of the one that the diagnosis favours. `make demo` trains albef and nas side by side; the
expected table is in README.md.
"""

from __future__ import annotations

from nas_jax.config import RunConfig, arguments, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import ItcConfig, NasMlmConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.methods.variants import with_variant
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import model_config
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import ConfigError

LAST_STAGE = 5.34  # of the 8 epochs of the run: negatives come in for its last third
# docs/method.md, "NVA": on scenes 4 of 5 such negatives contradict their caption, 1 of 12 of the
# authors' does
NVA = {
    "authors": NvaConfig(start_epoch=LAST_STAGE),
    "whole": NvaConfig(
        start_epoch=LAST_STAGE,
        similarity="attention",
        object_candidates=1,
        replace="whole",
        neighbour_from=12,
        neighbours=12,
    ),
}


def get_config(argument: str = ""):
    """variant: a row of the ablation; nva: the form of NVA, a key of NVA."""
    given = arguments(argument, variant="nas", nva="whole")
    variant = given["variant"]
    if given["nva"] not in NVA:
        raise ConfigError(f"nva={given['nva']}", f"one of {', '.join(NVA)}", "name one of them")
    method = NasConfig(
        momentum=0.98,  # a teacher that keeps up with a run of a thousand steps
        alpha=0.2,
        itc=ItcConfig(queue_size=512, temp_min=0.05),
        mlm=NasMlmConfig(probability=0.3, max_masked=6),
        dictionary=DictionaryConfig(codes=128, revive_every=20),
        nva=NVA[given["nva"]],
        # from scratch, the encoders learn from the negatives too
        nta=NtaConfig(top_words=5, stop_gradient=False, start_epoch=LAST_STAGE, exchange=0.3),
    )
    return to_config_dict(
        RunConfig(
            name=f"demo-{variant}",
            data=DataConfig(
                num_train=12_000,
                image_size=48,
                # places, colours and numbers are the message: nothing may change them
                crop_scale=(),
                rand_augment_ops=0,
                text_length=17,
                vocab_size=256,
                batch_size=32,
                workers=0,
                threads=1,
            ),
            # in a run this short, places are learned only if they weigh as much as colours
            model=model_config("nano", dim=64, dropout=0.0, init_std=0.07, position_std=1.0),
            method=with_variant(method, variant),
            optimizer=OptimizerConfig(
                schedule="smooth", lr=2e-3, lr_min=1e-5, warmup_steps=100, clip_norm=1.0
            ),
            train=TrainConfig(steps=3000, log_every=25, eval_every=1500, checkpoint_every=500),
            eval=EvalConfig(rerank_k=16, batch_size=100, max_images=100),
        )
    )
