"""The image encoder alone of a run of ours, or of an export of one, for another model."""

from __future__ import annotations

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.convert import hf_names
from nas_jax.convert.account import Account
from nas_jax.convert.encoders import EncoderSource, Tower
from nas_jax.models.sizes import ModelConfig
from nas_jax.storage.paths import as_path
from nas_jax.train.trained import open_trained
from nas_jax.train.workdir import CHECKPOINTS
from nas_jax.typing import Params
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves

PART = "image_encoder"
_SIZES = ("dim", "image_layers", "mlp_ratio", "image_size", "patch_size")


def is_run(path: str) -> bool:
    """Whether it is a work directory, or names a checkpoint in one."""
    place = as_path(path)
    return (place / CHECKPOINTS).is_dir() or place.parent.name == CHECKPOINTS


def of_run(path: str) -> Tower:
    """Of the newest checkpoint of a work directory, or of the one that `path` names.

    Raises CheckpointError where there is none, or where the run has CLIP's or SigLIP's encoders.
    """
    trained = open_trained(path)
    with CheckpointManager(trained.workdir / CHECKPOINTS, read_only=True) as manager:
        params = manager.restore_part(f"params/{PART}", step=trained.step)
    return _tower(params, trained.model, str(path))


def of_export(source: EncoderSource) -> Tower:
    """Of a folder that `to-hf` wrote. Raises CheckpointError where it is damaged."""
    params, _ = hf_names.read_export(source.folder)
    return _tower(params[PART], hf_names.model_config(source.config), source.name)


def _tower(params: Params, model: ModelConfig, source: str) -> Tower:
    other = {"pre_norm", "pool"} & params.keys()
    if other:
        raise CheckpointError(
            f"{source} with {PART}/{other.pop()}, of a run with method.towers=clip or siglip",
            "a run with the ViT that the other methods share",
            f"pass {source} as train.weights to a run with the same method.towers",
        )
    arrays = {f"{PART}/{name}": array for name, array in named_leaves(params).items()}
    account = Account(arrays, {}, source)
    for name in arrays:
        account.use(name, name)
    sizes = {name: getattr(model, name) for name in _SIZES} | {"image_heads": model.vit_heads}
    return Tower({PART: params}, sizes, account)
