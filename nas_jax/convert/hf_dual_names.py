"""Where each array of CLIP's and SigLIP's towers stands in transformers' CLIPModel and SiglipModel,
in both directions.

    image_encoder/block_0/mlp_in/kernel      vision_model.encoder.layers.0.mlp.fc1.weight
    image_encoder/pool/attention/qkv/kernel  vision_model.head.attention.in_proj_weight
    text_encoder/block_0/attention/qkv/bias  text_model.encoder.layers.0.self_attn.q_proj.bias,
                                             and those of k_proj and v_proj

Layouts are those of `hf_names`, so the way there and back gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nas_jax.convert.hf_names import to_ours, to_torch, torch_shape
from nas_jax.utils.errors import CheckpointError

_BLOCK = {
    "attention_norm": "layer_norm1",
    "attention/out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_OTHERS = {
    "image_encoder/patch_embed": "vision_model.embeddings.patch_embedding",
    "image_encoder/pre_norm": "vision_model.pre_layrnorm",  # spelt so there
    "image_encoder/norm": "vision_model.post_layernorm",
    "image_encoder/pool/attention/out": "vision_model.head.attention.out_proj",
    "image_encoder/pool/norm": "vision_model.head.layernorm",
    "image_encoder/pool/mlp_in": "vision_model.head.mlp.fc1",
    "image_encoder/pool/mlp_out": "vision_model.head.mlp.fc2",
    "text_encoder/word_embedding": "text_model.embeddings.token_embedding",
    "text_encoder/position_embedding": "text_model.embeddings.position_embedding",
    "text_encoder/norm": "text_model.final_layer_norm",
}
_WHOLE = {
    "image_encoder/cls_token": "vision_model.embeddings.class_embedding",
    "image_encoder/position_embedding": "vision_model.embeddings.position_embedding.weight",
    "image_encoder/pool/probe": "vision_model.head.probe",
    "image_encoder/pool/attention/qkv/kernel": "vision_model.head.attention.in_proj_weight",
    "image_encoder/pool/attention/qkv/bias": "vision_model.head.attention.in_proj_bias",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}
_PROJECTIONS = {
    "clip": {"image_proj": "visual_projection", "text_proj": "text_projection"},
    "siglip": {"text_proj": "text_model.head"},
}
_STACKS = {"image_encoder": "vision_model", "text_encoder": "text_model"}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def dual_names(kind: str, name: str) -> tuple[str, ...]:
    """Our name of a parameter -> its names in the class of that kind: one, or three if it is
    stacked.

    kind: clip or siglip. Raises KeyError on a name that these towers do not have.
    """
    if name in _WHOLE:
        return (_WHOLE[name],)
    owner, _, leaf = name.rpartition("/")
    others = _OTHERS | _PROJECTIONS[kind]
    if owner in others:
        return (f"{others[owner]}.{_LEAVES[leaf]}",)
    stack, _, block = owner.partition("/block_")
    number, _, module = block.partition("/")
    layer = f"{_STACKS[stack]}.encoder.layers.{number}"
    if module == "attention/qkv":
        return tuple(f"{layer}.self_attn.{part}_proj.{_LEAVES[leaf]}" for part in "qkv")
    return (f"{layer}.{_BLOCK[module]}.{_LEAVES[leaf]}",)


def dual_shape(kind: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each tensor of our array."""
    rows, *rest = torch_shape(name, shape)
    if name == "logit_scale" and kind == "clip":
        return ()
    if name == "image_encoder/cls_token":
        return shape[2:]
    if name == "image_encoder/position_embedding":
        return shape[1:]
    return (rows // len(dual_names(kind, name)), *rest)


def to_dual(kind: str, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Our array as the tensors of the class."""
    names, shape = dual_names(kind, name), dual_shape(kind, name, array.shape)
    parts = np.split(to_torch(name, array).reshape(len(names), *shape), len(names))
    return {one: part[0] for one, part in zip(names, parts, strict=True)}


def from_dual(
    kind: str, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The parameters, by our names, of a state dict. shapes: of all parameters, by our names.

    Raises CheckpointError where a tensor is missing, unknown or of another shape.
    """
    found, read = {}, set()
    for name, shape in shapes.items():
        names, wanted = dual_names(kind, name), dual_shape(kind, name, shape)
        for one in names:
            got = tensors[one].shape if one in tensors else "absent"
            if got != wanted:
                raise CheckpointError(
                    f"tensor {one}: {got}", f"{wanted}", "use sizes that are those of the file"
                )
        read |= set(names)
        stacked = np.concatenate([tensors[one].reshape(-1, *wanted[1:]) for one in names])
        found[name] = to_ours(name, stacked.reshape(torch_shape(name, shape)), shape)
    unknown = sorted(one for one in tensors.keys() - read if not one.endswith("position_ids"))
    if unknown:
        raise CheckpointError(
            f"tensor {unknown[0]}", f"a tensor of {kind}'s towers", "use a file of that model"
        )
    return found
