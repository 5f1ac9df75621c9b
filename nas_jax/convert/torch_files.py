"""Reads and writes files of tensors: PyTorch's .pth and safetensors.

Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.train.workdir import writing_out
from nas_jax.utils.errors import CheckpointError, DataError

# what torch.load raises of bytes that torch.save did not write
_DAMAGED = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, ValueError,
            LookupError)  # fmt: skip
Tensors = dict[str, np.ndarray]
# where training scripts put the weights beside optimizer and config
STATE_DICTS = ("model", "state_dict")
INDEX = "model.safetensors.index.json"
FLAX = "flax_model.msgpack"


def read_tensors(path: str | Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a .pth or .safetensors file, and the dtypes of those read as float32.

    These are bfloat16, which numpy lacks. Raises DataError for no file, CheckpointError for one
    that holds code, is damaged or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise DataError(f"{path}, which is {what}", "a .pth or .safetensors file", "check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".npz", ".npy"):
        raise _of_jax(path, "NumPy")
    if path.suffix == ".msgpack":
        raise _of_jax(path, "Flax")
    return _plain(_state_dict(_load(path), path), path)


def read_folder(folder: str | Path) -> tuple[Tensors, dict[str, str]]:
    """The weights in a Hugging Face folder: model.safetensors (or shards), or pytorch_model.bin."""
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
    if (folder / FLAX).is_file():
        raise _of_jax(folder / FLAX, "Flax")
    raise DataError(
        f"{folder} without weights",
        "model.safetensors, its index, or pytorch_model.bin in it",
        "check the folder",
    )


def _of_jax(path: Path, kind: str) -> CheckpointError:
    remedies = {
        "NumPy": "pass the ViT authors' .npz to from-hf --image; else save it as .safetensors",
        "Flax": "download model.safetensors of the same model, or, with transformers before "
        f"version 5, load it by from_pretrained({str(path.parent)!r}, from_flax=True) and "
        "save_pretrained",
    }
    return CheckpointError(f"{path}, a {kind} file", "a .pth or .safetensors file", remedies[kind])


def write_state_dict(
    path: Path, tensors: Mapping[str, np.ndarray], dtypes: Mapping[str, str]
) -> None:
    """A .pth file as ALBEF's scripts read it: the state dict under `model`.

    dtypes: where another is wanted.
    """
    import torch

    def tensor(name: str, array: np.ndarray) -> torch.Tensor:
        whole = torch.from_numpy(np.array(array, order="C"))
        return whole.to(getattr(torch, dtypes[name])) if name in dtypes else whole

    part = path.with_name(f"{path.name}.part")
    with writing_out(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": {name: tensor(name, array) for name, array in tensors.items()}}, part)
        part.replace(path)


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise DataError(
            f"{path} and no PyTorch", "torch to read it", "pip install 'nas_jax[convert]'"
        ) from error
    try:
        # Tensors of a zip file stay on the disk until they are looked at: optimizers are never
        # read.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except _DAMAGED as error:
        text = str(error)
        found = re.search(r"(?:GLOBAL|global) `?([\w.]+)`?", text)
        if isinstance(error, pickle.UnpicklingError) and found:
            raise CheckpointError(
                f"{path} would run code when opened ({found[1]}), and was not",
                "tensors and plain values only",
                "save the state dict alone, where you trust the file",
            ) from error
        raise CheckpointError(
            f"{path} cannot be read ({_line(error)})",
            "a whole file of torch.save",
            "download it again",
        ) from error


def _state_dict(loaded: Any, path: Path) -> Mapping[str, Any]:
    if isinstance(loaded, Mapping):
        for key in STATE_DICTS:
            if isinstance(loaded.get(key), Mapping):
                return loaded[key]
        if loaded and all(hasattr(value, "numpy") for value in loaded.values()):
            return loaded
    found = (
        ", ".join(map(str, list(loaded)[:4]))
        if isinstance(loaded, Mapping)
        else type(loaded).__name__
    )
    raise CheckpointError(
        f"{path} without a state dict ({found or 'empty'})",
        "tensors by name, bare or under 'model'",
        "save those",
    )


def _plain(state: Mapping[str, Any], path: Path) -> tuple[Tensors, dict[str, str]]:
    import torch

    tensors, cast = {}, {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{name} in {path} is a {type(tensor).__name__}", "a tensor", "save a state dict"
            )
        if tensor.dtype == torch.bfloat16:
            tensor, cast[name] = tensor.float(), "bfloat16"
        try:
            tensors[str(name)] = tensor.detach().numpy()
        except (TypeError, RuntimeError) as error:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name} in {path} is {kind}", "plain dense tensors", "convert it first"
            ) from error
    return tensors, cast


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    tensors, cast = {}, {}
    try:
        # The header check compares the length of the file with what it should hold: a cut file
        # fails here.
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - no iterator
                kind = file.get_slice(name).get_dtype()
                array = file.get_tensor(name)
                if kind == "BF16":
                    array, cast[name] = array.astype(np.float32), "bfloat16"
                tensors[name] = array
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({_line(error)})",
            "a whole safetensors file",
            "download it again",
        ) from error
    return tensors, cast


def _read_shards(folder: Path) -> tuple[Tensors, dict[str, str]]:
    try:
        shards = json.loads((folder / INDEX).read_text())["weight_map"]
        names = sorted({Path(shard).name for shard in shards.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / INDEX} is no index ({_line(error)})",
            "weight_map: tensor to file",
            "download it again",
        ) from error
    tensors: Tensors = {}
    cast: dict[str, str] = {}
    for name in names:
        more, kinds = read_tensors(folder / name)
        tensors |= more
        cast |= kinds
    missing = sorted(shards.keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"the shards of {folder} without {missing[0]!r}",
            "every tensor of the index",
            "download them again",
        )
    return tensors, cast


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(". ") if lines else type(error).__name__
