"""NAS on rendered scenes: the whole method in minutes, on two CPU cores and without a file.

    python main.py --config=configs/demo.py --workdir=runs/demo                    # or: make demo
    python main.py --config=configs/demo.py:variant=albef --workdir=runs/albef

The variants are albef, vd, vd_nva, vd_nta and nas. The expected table is in README.md.
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
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig


def get_config(argument: str = ""):
    """variant: a row of the ablation."""
    variant = arguments(argument, variant="nas")["variant"]
    method = NasConfig(
        momentum=0.98,  # a teacher that keeps up with a run of a thousand steps
        alpha=0.2,
        itc=ItcConfig(queue_size=512, temp_min=0.05),
        mlm=NasMlmConfig(probability=0.3, max_masked=6),
        dictionary=DictionaryConfig(codes=128, revive_every=20),
        # from scratch, the encoders learn from the negatives too
        nta=NtaConfig(top_words=5, stop_gradient=False),
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
            model=model_config("nano", dim=64, dropout=0.0, init_std=0.07),
            method=with_variant(method, variant),
            optimizer=OptimizerConfig(
                schedule="smooth", lr=2e-3, lr_min=1e-5, warmup_steps=100, clip_norm=1.0
            ),
            train=TrainConfig(steps=1500, log_every=25, eval_every=750, checkpoint_every=500),
            eval=EvalConfig(rerank_k=16, batch_size=100, max_images=100),
        )
    )
