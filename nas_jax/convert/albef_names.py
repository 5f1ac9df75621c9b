"""ALBEF's and NAS_ALBEF's tensors and their places in our parameter tree, in both directions.

The table is made of `Entry` rows: a path in our tree, the PyTorch names it is made of, and the two
layout changes. It serves weights and gradients alike, because every layout change is linear and
only moves numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nas_jax.models.sizes import ModelConfig
from nas_jax.typing import Params
from nas_jax.utils.errors import CheckpointError

Arrays = list[np.ndarray]


class Entry(NamedTuple):
    """One leaf of our tree and the PyTorch tensors it holds."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    to_ours: Callable[[Arrays], np.ndarray]
    to_torch: Callable[[np.ndarray], Arrays]


def _same(path: tuple[str, ...], name: str) -> Entry:
    return Entry(path, (name,), lambda arrays: arrays[0], lambda array: [array])


def _dense(path: tuple[str, ...], name: str) -> list[Entry]:
    """nn.Linear (out, in) <-> Dense kernel (in, out)."""
    kernel = Entry(
        (*path, "kernel"), (f"{name}.weight",), lambda arrays: arrays[0].T, lambda array: [array.T]
    )
    return [kernel, _same((*path, "bias"), f"{name}.bias")]


def _norm(path: tuple[str, ...], name: str) -> list[Entry]:
    return [_same((*path, "scale"), f"{name}.weight"), _same((*path, "bias"), f"{name}.bias")]


def _patch_embed(path: tuple[str, ...], name: str) -> list[Entry]:
    """nn.Conv2d (D, 3, p, p) <-> Dense kernel (p * p * 3, D) on row-major patches."""

    def to_torch(kernel: np.ndarray) -> Arrays:
        patch = round((kernel.shape[0] // 3) ** 0.5)
        return [kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)]

    def to_ours(arrays: Arrays) -> np.ndarray:
        return arrays[0].transpose(2, 3, 1, 0).reshape(-1, arrays[0].shape[0])

    return [
        Entry((*path, "kernel"), (f"{name}.weight",), to_ours, to_torch),
        _same((*path, "bias"), f"{name}.bias"),
    ]


def _heads_in(path: tuple[str, ...], names: tuple[str, ...], heads: int, parts: int) -> list[Entry]:
    """One nn.Linear of `parts` stacked outputs, or `parts` of them <-> kernel (D, parts, H, F),
    bias (parts, H, F).
    """

    def kernel_ours(arrays: Arrays) -> np.ndarray:
        stacked = np.concatenate(arrays, axis=0)  # (parts * D, in)
        return stacked.T.reshape(stacked.shape[1], parts, heads, -1)

    def kernel_torch(kernel: np.ndarray) -> Arrays:
        return list(np.split(kernel.reshape(kernel.shape[0], -1).T, len(names), axis=0))

    def bias_ours(arrays: Arrays) -> np.ndarray:
        return np.concatenate(arrays).reshape(parts, heads, -1)

    def bias_torch(bias: np.ndarray) -> Arrays:
        return list(np.split(bias.reshape(-1), len(names)))

    return [
        Entry(
            (*path, "kernel"), tuple(f"{name}.weight" for name in names), kernel_ours, kernel_torch
        ),
        Entry((*path, "bias"), tuple(f"{name}.bias" for name in names), bias_ours, bias_torch),
    ]


def _heads_out(path: tuple[str, ...], name: str, heads: int) -> list[Entry]:
    """nn.Linear (D, D) after the heads <-> kernel (H, F, D)."""
    kernel = Entry(
        (*path, "kernel"),
        (f"{name}.weight",),
        lambda arrays: arrays[0].T.reshape(heads, -1, arrays[0].shape[0]),
        lambda array: [array.reshape(-1, array.shape[-1]).T],
    )
    return [kernel, _same((*path, "bias"), f"{name}.bias")]


def _bert_attention(path: tuple[str, ...], name: str, heads: int, cross: bool) -> list[Entry]:
    projections: dict[str, tuple[str, ...]] = {"qkv": ("query", "key", "value")}
    if cross:
        projections = {"query": ("query",), "key_value": ("key", "value")}
    entries = []
    for ours, theirs in projections.items():
        names = tuple(f"{name}.self.{part}" for part in theirs)
        entries += _heads_in((*path, ours), names, heads, len(theirs))
    return entries + _heads_out((*path, "out"), f"{name}.output.dense", heads)


def _bert_layer(path: tuple[str, ...], name: str, heads: int, cross: bool) -> list[Entry]:
    entries = _bert_attention((*path, "attention"), f"{name}.attention", heads, False)
    entries += _norm((*path, "attention_norm"), f"{name}.attention.output.LayerNorm")
    if cross:
        entries += _bert_attention(
            (*path, "cross_attention"), f"{name}.crossattention", heads, True
        )
        entries += _norm((*path, "cross_attention_norm"), f"{name}.crossattention.output.LayerNorm")
    entries += _dense((*path, "mlp_in"), f"{name}.intermediate.dense")
    entries += _dense((*path, "mlp_out"), f"{name}.output.dense")
    return entries + _norm((*path, "mlp_norm"), f"{name}.output.LayerNorm")


class ImageNames(NamedTuple):
    """What a code base calls the parts of a ViT."""

    cls_token: str
    position: str
    patch_embed: str
    block: str  # with {} for its number
    attention_norm: str
    qkv: tuple[str, ...]  # one name for three stacked projections, or three names
    attention_out: str
    mlp_norm: str
    mlp_in: str
    mlp_out: str
    norm: str


ALBEF_IMAGE = ImageNames(
    "cls_token",
    "pos_embed",
    "patch_embed.proj",
    "blocks.{}",
    "norm1",
    ("attn.qkv",),
    "attn.proj",
    "norm2",
    "mlp.fc1",
    "mlp.fc2",
    "norm",
)
"""timm's names, which ALBEF and DeiT share."""


def image_entries(
    config: ModelConfig, names: ImageNames = ALBEF_IMAGE, prefix: str = ""
) -> Iterator[Entry]:
    """Entries of the image encoder; `prefix` stands before every name."""
    yield _same(("image_encoder", "cls_token"), prefix + names.cls_token)
    yield _same(("image_encoder", "position_embedding"), prefix + names.position)
    yield from _patch_embed(("image_encoder", "patch_embed"), prefix + names.patch_embed)
    for layer in range(config.image_layers):
        path, name = ("image_encoder", f"block_{layer}"), f"{prefix}{names.block.format(layer)}"
        yield from _norm((*path, "attention_norm"), f"{name}.{names.attention_norm}")
        qkv = tuple(f"{name}.{part}" for part in names.qkv)
        yield from _heads_in((*path, "attention", "qkv"), qkv, config.vit_heads, 3)
        yield from _heads_out(
            (*path, "attention", "out"), f"{name}.{names.attention_out}", config.vit_heads
        )
        yield from _norm((*path, "mlp_norm"), f"{name}.{names.mlp_norm}")
        yield from _dense((*path, "mlp_in"), f"{name}.{names.mlp_in}")
        yield from _dense((*path, "mlp_out"), f"{name}.{names.mlp_out}")
    yield from _norm(("image_encoder", "norm"), prefix + names.norm)


def bert_entries(config: ModelConfig, bert: str, head: str, cross: bool = True) -> Iterator[Entry]:
    """Entries of text encoder, fusion encoder and MLM head; names begin with `bert` or `head`.

    cross: the last layers have cross-attention; a plain BERT has none.
    """
    for ours, theirs in (("word", "word"), ("position", "position"), ("type", "token_type")):
        name = f"{bert}embeddings.{theirs}_embeddings.weight"
        yield _same(("text_encoder", f"{ours}_embedding", "embedding"), name)
    yield from _norm(("text_encoder", "embedding_norm"), f"{bert}embeddings.LayerNorm")
    for layer in range(config.text_layers):
        name = f"{bert}encoder.layer.{layer}"
        yield from _bert_layer(("text_encoder", f"layer_{layer}"), name, config.heads, cross=False)
    for layer in range(config.fusion_layers):
        name = f"{bert}encoder.layer.{config.text_layers + layer}"
        yield from _bert_layer(("fusion_encoder", f"layer_{layer}"), name, config.heads, cross)
    yield from _dense(("mlm_head", "transform"), f"{head}transform.dense")
    yield from _norm(("mlm_head", "norm"), f"{head}transform.LayerNorm")
    yield _same(("mlm_head", "bias"), f"{head}bias")


def tower_entries(config: ModelConfig, suffix: str = "", bert: str = "bert.") -> Iterator[Entry]:
    """Entries of the groups that student (suffix "") and teacher (suffix "_m") share.

    bert: "" for the fine-tuned models, whose BERT has no MLM head and no name of its own.
    """
    image, text = f"visual_encoder{suffix}.", f"text_encoder{suffix}."
    yield from image_entries(config, prefix=image)
    yield from bert_entries(config, text + bert, f"{text}cls.predictions.")
    yield from _dense(("image_proj",), f"vision_proj{suffix}")
    yield from _dense(("text_proj",), f"text_proj{suffix}")


def student_entries(
    config: ModelConfig, *, dictionary: bool, literal_gate: bool = True, bert: str = "bert."
) -> list[Entry]:
    """Entries of everything that is trained by gradient."""
    entries = [
        *tower_entries(config, bert=bert),
        _same(("temp",), "temp"),
        *_dense(("itm_head",), "itm_head"),
    ]
    if dictionary:
        entries += _dense(("neck", "linear"), "neck.linear.0") + _norm(
            ("neck", "linear_norm"), "neck.linear.1"
        )
        entries += _dense(("neck", "align_linear"), "neck.pos_line") + _dense(
            ("neck", "gate"), "neck.gate_fc.0"
        )
        entries += _norm(("neck", "gate_norm"), "neck.gate_fc.1") if literal_gate else []
        entries += _norm(("neck", "norm"), "neck.ln")
    return entries


def state_entries(*, queue: bool, dictionary: bool, image_ids: bool = False) -> list[Entry]:
    """Entries of what changes with every step besides parameters and teacher.

    image_ids: the queue of picture numbers, which only the fine-tuned models have.
    """
    entries = []
    if queue:
        for side in ("image", "text"):
            entries.append(_turned(("queue", f"{side}_QxE"), f"{side}_queue"))
        entries.append(
            Entry(("queue", "pointer"), ("queue_ptr",), _pointer, lambda array: [array.reshape(1)])
        )
    if queue and image_ids:
        entries.append(
            Entry(
                ("queue", "image_id_Q"),
                ("idx_queue",),
                lambda arrays: arrays[0][0],
                lambda array: [array[None]],
            )
        )
    if dictionary:
        for ours, theirs in (
            ("codes_KxD", "embed"),
            ("counts_K", "cluster_size"),
            ("sums_KxD", "embed_avg"),
        ):
            entries.append(_same(("dictionary", ours), f"neck.vq.{theirs}"))
    return entries


def _pointer(arrays: Arrays) -> np.ndarray:
    return arrays[0].reshape(())


def _turned(path: tuple[str, ...], name: str) -> Entry:
    return Entry(path, (name,), lambda arrays: arrays[0].T, lambda array: [array.T])


def to_ours(entries: list[Entry], tensors: Mapping[str, np.ndarray]) -> Params:
    """Our nested tree from PyTorch tensors; a missing name is an error."""
    tree: Params = {}
    for entry in entries:
        missing = [name for name in entry.names if name not in tensors]
        if missing:
            raise CheckpointError(
                f"state dict without {missing[0]!r}",
                "every tensor of the model",
                "check the sizes it was made with",
            )
        node = tree
        for name in entry.path[:-1]:
            node = node.setdefault(name, {})
        array = entry.to_ours([np.asarray(tensors[name]) for name in entry.names])
        node[entry.path[-1]] = np.array(array, order="C")
    return tree


def to_torch(entries: list[Entry], tree: Params) -> dict[str, np.ndarray]:
    """PyTorch tensors by name from our nested tree."""
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        node = tree
        for name in entry.path:
            node = node[name]
        arrays = entry.to_torch(np.asarray(node))
        tensors.update(
            {name: np.array(a, order="C") for name, a in zip(entry.names, arrays, strict=True)}
        )
    return tensors
