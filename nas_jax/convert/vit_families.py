"""Which ViTs of other code bases are our image encoder under other names, and why others are no
match.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from nas_jax.convert.albef_names import ALBEF_IMAGE, ImageNames
from nas_jax.convert.torch_files import Tensors
from nas_jax.utils.errors import CheckpointError

_HF_QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_HF_EMBEDDINGS = (
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection",
)


class Family(NamedTuple):
    """A code base's ViT."""

    mark: str  # a tensor by which it is known
    names: ImageNames
    scales: tuple[str, str] = ("", "")  # its two LayerScales


FAMILIES = {
    "timm": Family("blocks.0.norm1.weight", ALBEF_IMAGE, ("ls1.gamma", "ls2.gamma")),
    "dinov2": Family(
        "encoder.layer.0.norm1.weight",
        ImageNames(
            *_HF_EMBEDDINGS,
            "encoder.layer.{}",
            "norm1",
            _HF_QKV,
            "attention.output.dense",
            "norm2",
            "mlp.fc1",
            "mlp.fc2",
            "layernorm",
        ),
        ("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
    "vit": Family(
        "encoder.layer.0.layernorm_before.weight",
        ImageNames(
            *_HF_EMBEDDINGS,
            "encoder.layer.{}",
            "layernorm_before",
            _HF_QKV,
            "attention.output.dense",
            "layernorm_after",
            "intermediate.dense",
            "output.dense",
            "layernorm",
        ),
    ),
    "blip": Family(
        "encoder.layers.0.self_attn.qkv.weight",
        ImageNames(
            "embeddings.class_embedding",
            "embeddings.position_embedding",
            "embeddings.patch_embedding",
            "encoder.layers.{}",
            "layer_norm1",
            ("self_attn.qkv",),
            "self_attn.projection",
            "layer_norm2",
            "mlp.fc1",
            "mlp.fc2",
            "post_layernorm",
        ),
    ),
}
"""Source: the state dicts of timm's VisionTransformer and of transformers' ViTModel, Dinov2Model
and BlipVisionModel, as saved.
"""

_OTHERS = (
    (
        r"(embeddings\.)?(dist_token|distillation_token)",
        "a distillation token",
        "use the model without distillation",
    ),
    (
        r"layer\.0\.attention\.q_proj\.weight",
        "rotary positions (DINOv3)",
        "use a model with learned positions, such as DINOv2",
    ),
    (
        r"(embeddings\.)?(register_tokens|reg_token)",
        "register tokens",
        "use the model without registers; DINOv2 has both",
    ),
    (
        r".*\.0\.mlp\.(weights_in|w12)\.weight",
        "gated feed-forward nets (SwiGLU)",
        "use a smaller size of DINOv2, which has plain ones",
    ),
    (
        r".*\.0\.(lambda_1|gamma_1)|.*relative_position_bias_table",
        "BEiT's layers (keys without a bias, relative positions)",
        "use a ViT, DeiT, DINOv2 or BLIP",
    ),
    (
        r"embeddings\.class_embedding|pre_layrnorm\.weight|head\.probe",
        "CLIP's or SigLIP's picture encoder, by its tensors",
        "name a folder whose config.json has model_type clip or siglip (of SigLIP 2, a model of "
        "one picture size): it becomes weights for runs with method.towers",
    ),
)
"""Pattern of a tensor -> what it is a sign of, and the remedy."""


def family_of(tensors: Tensors, source: str) -> Family:
    """The family that has these names. Raises CheckpointError where none has, with the reason."""
    family = next((of for of in FAMILIES.values() if of.mark in tensors), None)
    for pattern, what, remedy in _OTHERS:
        name = next(filter(re.compile(pattern).fullmatch, tensors), None)
        if name is not None and name != (family and family.names.cls_token):
            raise CheckpointError(
                f"{source} with {what}: {name}",
                "a plain ViT: [CLS] and patches, learned positions, two-layer feed-forward nets",
                remedy,
            )
    if family is None:
        raise CheckpointError(
            f"{source}, with tensors such as {next(iter(tensors), 'none')!r}",
            f"a ViT under the names of {', '.join(FAMILIES)}",
            "pass a plain ViT, DeiT, DINOv2 or BLIP",
        )
    if family.names.cls_token not in tensors:
        raise CheckpointError(
            f"{source} without [CLS] ({family.names.cls_token})",
            "a ViT with [CLS], which ITC reads",
            "use a ViT, DeiT, DINOv2 or BLIP",
        )
    return family
