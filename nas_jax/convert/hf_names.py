"""Where each array of ours stands in an export for Hugging Face, in both directions, and how an
export is read back.

The names follow ours; only the separators, the numbers and the last word change:

    image_encoder/block_0/mlp_in/kernel             image_encoder.blocks.0.mlp_in.weight
    text_encoder/layer_0/attention/qkv/kernel       text_encoder.layers.0.attention.qkv.weight
    text_encoder/word_embedding/embedding           text_encoder.word_embedding.weight
    mlm_head/norm/scale                             mlm_head.norm.weight
    dictionary/codes_KxD                            dictionary.codes

Every change of layout is a pure move of numbers (`LAYOUTS`), so the way there and back gives the
same bits.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nas_jax.checkpoint.stored import Shapes, nest, shapes_of
from nas_jax.methods import METHODS, method_class
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.method import Method, Setting
from nas_jax.methods.nas import Nas
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.typing import Params, Vocabulary
from nas_jax.utils.errors import CheckpointError, ConfigError

MODEL_TYPE = "nas_jax"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SAFETENSORS_DTYPES = {"F32": "float32", "I32": "int32"}  # of our arrays
DICTIONARY = "dictionary/"  # before the arrays of the dictionary, which are state and no parameters

_STACKS = {"block": "blocks", "layer": "layers"}
_STATE = {
    "codes_KxD": "codes",
    "counts_K": "counts",
    "sums_KxD": "sums",
    "last_use_K": "last_use",
    "step": "step",
}


class Layout(NamedTuple):
    """How an array stands in PyTorch; `to_ours` gets our shape too."""

    to_torch: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _conv(kernel: np.ndarray) -> np.ndarray:
    patch = round((kernel.shape[0] // 3) ** 0.5)
    return kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


LAYOUTS: tuple[tuple[str, Layout], ...] = (
    # Dense kernel (p * p * 3, D) on row-major patches <-> nn.Conv2d (D, 3, p, p)
    (
        r"patch_embed/kernel",
        Layout(_conv, lambda tensor, shape: tensor.transpose(2, 3, 1, 0).reshape(shape)),
    ),
    # heads: kernel (D, parts, H, F) <-> nn.Linear (parts * H * F, D),
    #        bias (parts, H, F) <-> (parts * H * F)
    (
        r"attention/(qkv|query|key_value)/kernel",
        Layout(
            lambda kernel: kernel.reshape(kernel.shape[0], -1).T,
            lambda tensor, shape: tensor.T.reshape(shape),
        ),
    ),
    (
        r"attention/(qkv|query|key_value)/bias",
        Layout(lambda bias: bias.reshape(-1), lambda tensor, shape: tensor.reshape(shape)),
    ),
    # kernel (H, F, D) <-> nn.Linear (D, H * F)
    (
        r"attention/out/kernel",
        Layout(
            lambda kernel: kernel.reshape(-1, kernel.shape[-1]).T,
            lambda tensor, shape: tensor.T.reshape(shape),
        ),
    ),
    # Dense kernel (in, out) <-> nn.Linear (out, in)
    (r"kernel", Layout(lambda kernel: kernel.T, lambda tensor, shape: tensor.T)),
    (r"", Layout(lambda array: array, lambda tensor, shape: tensor)),
)
"""End of our name -> layout; the first row that fits holds."""


def layout_of(name: str) -> Layout:
    """The layout of the array with our name."""
    return next(layout for end, layout in LAYOUTS if re.search(rf"{end}$", name))


def hf_name(name: str) -> str:
    """Our name (of an array, or of a module in front of its `/`) -> its name in the export."""
    if name.startswith(DICTIONARY):
        return f"dictionary.{_STATE[name.removeprefix(DICTIONARY)]}"
    parts = re.sub(r"\b(block|layer)_(\d+)\b", lambda m: f"{_STACKS[m[1]]}/{m[2]}", name).split("/")
    if parts[-1] in ("kernel", "scale", "embedding"):
        parts[-1] = "weight"
    return ".".join(parts)


def our_name(name: str) -> str:
    """Name of a tensor in the export -> ours.

    Raises CheckpointError on a name that no export has.
    """
    parts = name.split(".")
    if parts[0] == "dictionary":
        ours = {theirs: f"{DICTIONARY}{mine}" for mine, theirs in _STATE.items()}.get(
            ".".join(parts[1:])
        )
        if ours is None:
            raise CheckpointError(
                f"tensor {name!r}", "a tensor of an export of nas_jax", "export the model anew"
            )
        return ours
    if parts[-1] == "weight":
        owner = parts[-2] if len(parts) > 1 else ""
        kinds = (("norm", "scale"), ("_embedding", "embedding"), ("", "kernel"))
        parts[-1] = next(leaf for end, leaf in kinds if owner.endswith(end))
    return re.sub(r"\b(block|layer)s/(\d+)\b", r"\1_\2", "/".join(parts))


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """The array with our name as a contiguous tensor, as files of others hold wrong numbers."""
    return np.ascontiguousarray(layout_of(name).to_torch(array)).reshape(
        torch_shape(name, array.shape)
    )


def torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor of our array."""
    return layout_of(name).to_torch(np.broadcast_to(np.int8(0), shape)).shape


def to_ours(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor as the array with our name and shape."""
    return np.array(layout_of(name).to_ours(tensor, shape), order="C").reshape(shape)


# -------------------------------------------------------------------------------- what an export is


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Our ModelConfig of an export's config.json."""
    return ModelConfig(
        dim=config["hidden_size"],
        heads=config["num_attention_heads"],
        image_heads=config["image_attention_heads"],
        image_layers=config["image_layers"],
        text_layers=config["text_layers"],
        fusion_layers=config["fusion_layers"],
        mlp_ratio=config["mlp_ratio"],
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        vocab_size=config["vocab_size"],
        max_text_length=config["max_position_embeddings"],
        embed_dim=config["projection_dim"],
    )


def hf_class(method: str) -> str:
    """Which class of `hf_files` the method of that name is exported as.

    Raises ConfigError where it has none.
    """
    # Its own: a subclass with other parameters or scores is another network.
    found = vars(method_class(method)).get("hf_class", "")
    if not found:
        known = ", ".join(name for name, other in METHODS.items() if vars(other).get("hf_class"))
        raise ConfigError(
            f"method {method}, which has no Hugging Face class",
            f"a method that has one: {known}",
            "export a run of one of these, or add the class to convert/hf_files and name it in "
            "Method.hf_class",
        )
    return found


def method_of(config: Mapping[str, Any]) -> Method:
    """Our Method of an export's config.json, for evaluation, in float32."""
    kind, codes, vocab = (config[name] for name in ("method", "dictionary_codes", "vocab_size"))
    method = method_class(kind)
    sections: dict[str, Any] = {"itc": ItcConfig(queue_size=0)}
    if issubclass(method, Nas):
        sections["dictionary"] = DictionaryConfig(
            enabled=codes > 0, codes=max(codes, 2), literal=config["literal_gate"]
        )
        sections["nva"] = NvaConfig(enabled=False)
        sections["nta"] = NtaConfig(enabled=config["text_generator"])
    special = (config[f"{role}_token_id"] for role in ("pad", "cls", "sep", "mask"))
    setting = Setting(Vocabulary(vocab, *special, *(np.zeros(vocab, bool) for _ in range(3))))
    return method.build(method.Config(name=kind, **sections), model_config(config), setting)


def shapes_in(config: Mapping[str, Any]) -> Shapes:
    """All arrays that an export with this config.json holds: our name -> shape and dtype."""
    return _shapes_in(json.dumps(config, sort_keys=True))


@functools.lru_cache(maxsize=4)
def _shapes_in(config_text: str) -> Shapes:
    config = json.loads(config_text)
    method = method_of(config)
    params, state = jax.eval_shape(method.init, jax.random.key(0))
    shapes = shapes_of(params)
    for entry in method.scoring_state:
        shapes |= shapes_of(state[entry], f"{entry}/")
    return shapes


# ------------------------------------------------------------------------------------- reading back


def read_export(folder: str | Path) -> tuple[Params, dict[str, dict[str, np.ndarray]]]:
    """The parameters of an export and the entries of the method's state that it has, as nested
    dicts, with the bits that they were exported with.

    Raises CheckpointError where the folder is no export of ours, or a file is damaged, or a tensor
    is missing, unknown or of another shape.
    """
    tree = nest({name: read() for name, read in open_export(folder).items()})
    entries = method_of(read_config(folder)).scoring_state
    return tree, {entry: tree.pop(entry) for entry in entries}


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of an export. Raises CheckpointError if it is not of ours."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: {error}", "the config.json of an export", "name the folder of one"
        ) from error
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{path} of another model", f"model_type {MODEL_TYPE!r}", "name an export of nas_jax"
        )
    return config


def open_export(folder: str | Path) -> dict[str, Callable[[], np.ndarray]]:
    """Our name -> how to read that array of an export. Errors: `read_export`."""
    expected, tensors = shapes_in(read_config(folder)), open_tensors(Path(folder))
    there = {our_name(name) for name in tensors}
    for got, names in (
        ("without", expected.keys() - there),
        ("with the unknown", there - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{folder}: weights {got} {hf_name(min(names))}{more}",
                f"the {len(expected)} tensors that its {CONFIG} asks for",
                "export the model anew",
            )

    def read(name: str) -> np.ndarray:
        (shape, dtype), tensor = expected[name], tensors[hf_name(name)]()
        wanted = torch_shape(name, shape)
        if (tensor.shape, str(tensor.dtype)) != (wanted, dtype):
            raise CheckpointError(
                f"{folder}: {hf_name(name)} is {tensor.dtype}{list(tensor.shape)}",
                f"{dtype}{list(wanted)}",
                "export the model anew",
            )
        return to_ours(name, tensor, shape)

    return {name: functools.partial(read, name) for name in expected}


def open_tensors(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Name of a tensor -> how to read it."""
    index = folder / INDEX
    opened: dict[str, Callable[[], np.ndarray]] = {}
    try:
        files = (
            sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            if index.exists()
            else [WEIGHTS]
        )
        for file in files:
            opened |= _open_file(folder / file)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"weights in {folder}: {str(error).splitlines()[0]}",
            "whole safetensors files",
            "copy them again",
        ) from error
    return opened


def _open_file(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """The tensors of a safetensors file (format: huggingface.co/docs/safetensors); raises on one
    that is not whole.

    Not by the library: it maps the file into memory, where all that was read would stay.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = int.from_bytes(file.read(8), "little") + 8
        header = json.loads(file.read(start - 8) if start <= size else b"")
    header.pop("__metadata__", None)
    if start + max((entry["data_offsets"][1] for entry in header.values()), default=0) != size:
        raise ValueError(f"{path.name} has {size} bytes, which is not what its header says")

    def read(dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
        begin, end = data_offsets
        if dtype not in SAFETENSORS_DTYPES:
            # no array of ours has it: refused by its dtype
            return np.broadcast_to(np.array(None), shape)
        kind = np.dtype(SAFETENSORS_DTYPES[dtype])
        return np.fromfile(
            path, kind, (end - begin) // kind.itemsize, offset=start + begin
        ).reshape(shape)

    return {name: functools.partial(read, **entry) for name, entry in header.items()}
