"""The smallest method, batch and vocabulary that have every part; for tests only."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.readers import batch_spec
from nas_jax.methods import make_method
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.method import Method, Setting
from nas_jax.methods.nas import NasConfig
from nas_jax.methods.variants import VARIANTS, with_variant
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.typing import Vocabulary
from nas_jax.utils.fields import validate_tree

# 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP], 4 [MASK], 5-7 function words, 8-19 content words, 20-23
# ##pieces
VOCAB = 24
IDS = np.arange(VOCAB)
CONTENT = (IDS >= 8) & (IDS < 20)
WORDS = tuple("" if number < 5 or number >= 20 else f"w{number}" for number in range(VOCAB))
VOCABULARY = Vocabulary(VOCAB, 0, 2, 3, 4, CONTENT, CONTENT, IDS >= 20, WORDS)


def sisters(folder: Path) -> str:
    """The path of a new table in which all content words are sister terms of each other."""
    words = [word for word, content in zip(WORDS, CONTENT, strict=True) if content]
    path = Path(folder) / "sisters.json"
    path.write_text(json.dumps({one: [w for w in words if w != one] for one in words}))
    return str(path)


def model(**overrides) -> ModelConfig:
    defaults = dict(
        dim=16, heads=2, image_layers=1, text_layers=1, fusion_layers=1, image_size=16,
        patch_size=4, vocab_size=VOCAB, max_text_length=16, embed_dim=8, dropout=0.1,
    )  # fmt: skip
    return ModelConfig(**(defaults | overrides))


_model = model


def setting(total_steps: int = 100, steps_per_epoch: int = 10, pieces: int = 1) -> Setting:
    return Setting(VOCABULARY, total_steps, steps_per_epoch, pieces)


def method(variant: str = "nas", *, name: str = "", **sections) -> Method:
    """A row of the ablation; name="nas" gives NAS with everything off for the row "albef"."""
    switches = VARIANTS[variant]
    model_config = sections.pop("model", model())
    times = ("total_steps", "steps_per_epoch", "pieces")
    run = setting(**{key: sections.pop(key) for key in times if key in sections})
    sections.setdefault("itc", ItcConfig(queue_size=24))
    sections.setdefault(
        "dictionary", DictionaryConfig(enabled=switches["dictionary"], codes=12, revive_every=2)
    )
    sections.setdefault("nva", NvaConfig(enabled=switches["nva"]))
    sections.setdefault("nta", NtaConfig(enabled=switches["nta"]))
    config = NasConfig(**sections)
    if variant == "albef" and name != "nas":
        config = with_variant(config, "albef")
    return built(config, model=model_config, run=run)


def built(config, variant: str = "", model: ModelConfig | None = None, run=None) -> Method:
    """The method of a config, or of a row of the ablation of it."""
    config = with_variant(config, variant) if variant else config
    validate_tree(config, "method")
    return make_method(config, model or _model(), run or setting())


def batch(
    size: int = 6, length: int = 8, seed: int = 0, wants: tuple = ()
) -> dict[str, jnp.ndarray]:
    """wants: the fields beside those of every batch, of which each array is made up."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 20, (size, length))
    ids[:, 0] = VOCABULARY.cls
    lengths = rng.integers(4, length + 1, size)
    mask = np.arange(length)[None] < lengths[:, None]
    found = {
        "image_BxHxWx3": jnp.asarray(rng.integers(0, 256, (size, 16, 16, 3)), jnp.uint8),
        "token_ids_BxL": jnp.asarray(np.where(mask, ids, VOCABULARY.pad), jnp.int32),
        "token_mask_BxL": jnp.asarray(mask),
        "image_id_B": jnp.arange(size, dtype=jnp.int32),
    }
    config = DataConfig(image_size=16, text_length=length, siblings=2)  # some methods ask for them
    for name, like in batch_spec(config, size, wants).items():
        if name not in found:
            high = 256 if like.dtype == np.uint8 else 2
            array = rng.integers(0, high, like.shape)
            if "mask" in name:
                array[..., 0] = 1  # [CLS]
            found[name] = jnp.asarray(array, like.dtype)
    return found
