"""The ViT authors' own checkpoints (Dosovitskiy et al. 2021): NumPy files of JAX weights.

Their names and layouts become those of timm, which loads the same files; nothing is computed.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert.torch_files import Tensors
from nas_jax.utils.errors import CheckpointError, DataError

_MARK = "Transformer/encoderblock_0/LayerNorm_0/scale"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.*)")
_NAMES = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
    "pre_logits/kernel": "head.pre_logits.weight",
    "pre_logits/bias": "head.pre_logits.bias",
}
_QUERY = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
_QKV = re.compile(r"MultiHeadDotProductAttention_1/(query|key|value)/(kernel|bias)")
_QUERIES = re.compile(r"Transformer/encoderblock_(\d+)/.*/query/(kernel|bias)")
_ATTENTION = "MultiHeadDotProductAttention_1"
_IN_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_2/scale": "norm2.weight",
    "LayerNorm_2/bias": "norm2.bias",
    f"{_ATTENTION}/out/kernel": "attn.proj.weight",
    f"{_ATTENTION}/out/bias": "attn.proj.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}


def read_npz(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors under timm's names, and what config.json would say: the number of heads.

    Raises DataError for no file, CheckpointError for one that is damaged or of other names.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"{path}, which is no file", "an .npz file", "check the path") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(
            f"{path}, a NumPy file, cannot be read ({error})", "a whole .npz", "download it again"
        ) from error
    if _MARK not in arrays or arrays.get(_QUERY, np.zeros(0)).ndim != 3:
        raise CheckpointError(
            f"{path}, a NumPy file without {_MARK!r}",
            "the names of the ViT authors' checkpoints",
            "pass one of these, or the same model as .safetensors",
        )
    tensors: Tensors = {}
    for name, array in arrays.items():
        block = _BLOCK.fullmatch(name)
        if block and block[2] in _IN_BLOCK:
            tensors[f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}"] = _turned(name, array)
        elif not block or not _QKV.fullmatch(block[2]):
            tensors[_NAMES.get(name, name.replace("/", "."))] = _turned(name, array)
    for query in filter(None, map(_QUERIES.fullmatch, arrays)):
        number, part = query.groups()
        names = [query[0].replace("/query/", f"/{which}/") for which in ("query", "key", "value")]
        ours = f"blocks.{number}.attn.qkv.{'weight' if part == 'kernel' else 'bias'}"
        if all(name in arrays for name in names):
            tensors[ours] = np.concatenate([_turned(name, arrays[name]) for name in names])
    return tensors, {"num_attention_heads": arrays[_QUERY].shape[1]}


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    """An array as PyTorch has it: outputs first, heads side by side."""
    if name.endswith("/bias"):
        return array.reshape(-1)
    if not name.endswith("/kernel"):
        return array
    if array.ndim == 4:  # of the patches: height, width, in, out
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 3:  # of attention: in, head, out; or head, in, out
        inputs = array.shape[0] * array.shape[1] if "/out/" in name else array.shape[0]
        array = array.reshape(inputs, -1)
    return array.T
