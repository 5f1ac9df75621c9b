"""Grad-CAM of the matching score on the cross-attention of a fusion layer, of any method with a
fusion encoder (Li et al. 2021, section 6.6; ALBEF code, Grounding.py).
"""

from __future__ import annotations

from nas_jax.methods.method import Method
from nas_jax.models.attention_maps import attention_map
from nas_jax.models.towers import AlbefNetwork
from nas_jax.typing import Array, Params
from nas_jax.utils.errors import ConfigError

MIDDLE = -1  # in place of the number of a layer


def match_map(
    method: Method,
    params: Params,
    text: tuple[Array, Array],
    image_tokens_BxTxD: Array,
    layer: int = MIDDLE,
) -> tuple[Array, Array]:
    """The probabilities (B, H, L, T) with which one layer attends to the image tokens, and the
    gradient of ITM's logit of "match" with respect to them.

    text: its tokens (B, L, D) and mask (B, L). layer: of the fusion encoder, from 0; MIDDLE: the
    middle one, of six the third, on which ALBEF's maps are drawn.
    Raises ConfigError where the method has no fusion encoder, or not so many layers.
    """
    check_fusion(method)
    layer, (text_BxLxD, mask_BxL) = fusion_layer(method, layer), text
    net, config = method.apply(params), method.network.config

    def fuse(offset_BxHxLxT: Array) -> tuple[Array, Array]:
        inputs = text_BxLxD, mask_BxL, image_tokens_BxTxD, layer, offset_BxHxLxT
        return net.fusion_encoder.with_map(*inputs)

    def match_logit(fused_BxLxD: Array) -> Array:
        return net.itm_logits(fused_BxLxD)[:, 1]

    shape = len(mask_BxL), config.heads, mask_BxL.shape[1], image_tokens_BxTxD.shape[1]
    return attention_map(match_logit, fuse, shape)


def fusion_layer(method: Method, layer: int = MIDDLE) -> int:
    """The number of the layer that is looked at. Raises ConfigError where there is none of it."""
    layers = method.network.config.fusion_layers
    if layer == MIDDLE:
        return (layers - 1) // 2
    if not 0 <= layer < layers:
        got = f"fusion layer {layer} of a model with {layers}"
        raise ConfigError(got, f"0 to {layers - 1}", f"leave it out for {(layers - 1) // 2}")
    return layer


def check_fusion(method: Method) -> None:
    """Raises ConfigError where the method has no fusion encoder with a matching head."""
    if not isinstance(method.network, AlbefNetwork) or "itm" not in method.pair_scores:
        raise ConfigError(
            f"method {method.config.name} without a fusion encoder and its matching head",
            "a method that has both",
            "look at a run of ALBEF or NAS",
        )
