"""The smallest method, batch and vocabulary that have every part; for tests only."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from nas_jax.losses.mlm import SpecialTokens
from nas_jax.methods import Method, make_method
from nas_jax.methods.config import VARIANTS, ItcConfig, MethodConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.visual_dictionary import DictionaryConfig
from nas_jax.negatives.nta import NtaConfig, WordTables
from nas_jax.negatives.nva import NvaConfig

# 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP], 4 [MASK], 5-7 function words, 8-19 content words, 20-23
# ##pieces
VOCAB = 24
SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4)
IDS = np.arange(VOCAB)
TABLES = WordTables(
    content_V=(IDS >= 8) & (IDS < 20), fillable_V=(IDS >= 8) & (IDS < 20), continuation_V=IDS >= 20
)


def model(**overrides) -> ModelConfig:
    defaults = dict(
        dim=16,
        heads=2,
        image_layers=1,
        text_layers=1,
        fusion_layers=1,
        image_size=16,
        patch_size=4,
        vocab_size=VOCAB,
        max_text_length=16,
        embed_dim=8,
        dropout=0.1,
    )
    return ModelConfig(**(defaults | overrides))


def method(
    variant: str = "nas",
    *,
    name: str = "nas",
    total_steps: int = 100,
    steps_per_epoch: int = 10,
    **sections,
):
    switches = VARIANTS[variant]
    model_config = sections.pop("model", model())
    sections.setdefault("itc", ItcConfig(queue_size=24))
    pieces = sections.pop("pieces", 1)
    sections.setdefault(
        "dictionary", DictionaryConfig(enabled=switches["dictionary"], codes=12, revive_every=2)
    )
    sections.setdefault("nva", NvaConfig(enabled=switches["nva"]))
    sections.setdefault("nta", NtaConfig(enabled=switches["nta"]))
    config = MethodConfig(name=name, **sections)
    config.validate()
    built: Method = make_method(
        config, model_config, TABLES, SPECIAL, total_steps, steps_per_epoch, pieces
    )
    return built


def batch(size: int = 6, length: int = 8, seed: int = 0) -> dict[str, jnp.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 20, (size, length))
    ids[:, 0] = SPECIAL.cls
    lengths = rng.integers(4, length + 1, size)
    mask = np.arange(length)[None] < lengths[:, None]
    return {
        "image_BxHxWx3": jnp.asarray(rng.integers(0, 256, (size, 16, 16, 3)), jnp.uint8),
        "token_ids_BxL": jnp.asarray(np.where(mask, ids, SPECIAL.pad), jnp.int32),
        "token_mask_BxL": jnp.asarray(mask),
        "image_id_B": jnp.arange(size, dtype=jnp.int32),
    }
