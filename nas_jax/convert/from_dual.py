"""CLIP and SigLIP of transformers as weights for runs with these encoders (`method.towers`).

The whole model, whose tokenizer the run then has too, or the picture encoder alone, beside which
the run trains a text encoder of its own. The way out is `hf_dual`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nas_jax.checkpoint.stored import nest
from nas_jax.convert import given
from nas_jax.convert.account import Account
from nas_jax.convert.encoders import EncoderSource, heads_of, same_function
from nas_jax.convert.folder import ConvertedWeights
from nas_jax.convert.hf_dual_names import dual_names, from_dual
from nas_jax.convert.torch_files import Tensors
from nas_jax.methods import make_method
from nas_jax.methods.clip import ClipConfig, SiglipConfig
from nas_jax.methods.method import Setting
from nas_jax.models.clip_towers import CLIP_EPS, SIGLIP_EPS
from nas_jax.models.sizes import ModelConfig
from nas_jax.typing import Vocabulary
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.trees import named_leaves

METHODS = {"clip": ClipConfig, "siglip": SiglipConfig}
_EPS = {"clip": CLIP_EPS, "siglip": SIGLIP_EPS}
_ACTIVATION = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
_IMAGE = ("vision_model.", "visual_projection.")
_BLANK = {"vocab_size": 8, "text_layers": 1, "max_text_length": 8}  # of a text encoder nobody reads


def kind_of(config: Mapping[str, Any]) -> str:
    """clip or siglip, by a config.json of transformers; "" for others."""
    kind = str(config.get("model_type", "")).removesuffix("_vision_model")
    return kind if kind in METHODS else ""


def read(
    source: EncoderSource, sizes: Mapping[str, int], image_only: bool
) -> tuple[ConvertedWeights, Account]:
    """Weights for a run with `method.towers` of that kind, and what became of each tensor.

    image_only: the picture encoder, and its projection where there is one. Raises UserError where
    sizes or functions are not ours.
    """
    kind, tensors = kind_of(source.config), _whole_names(source.tensors)
    account = Account(tensors, _whole_names(source.cast), source.name)
    model, text_dim = _sizes(kind, source, tensors, sizes, image_only, account)
    method = METHODS[kind](towers=kind, text_dim=text_dim)
    blank = model if not image_only else ModelConfig(**(vars(model) | _BLANK))
    built = make_method(method, blank, Setting(Vocabulary.blank(blank.vocab_size)))
    params, _ = jax.eval_shape(built.init, jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in named_leaves(params).items()}
    if image_only:
        tensors = {name: x for name, x in tensors.items() if name.startswith(_IMAGE)}
        shapes = {
            name: shape
            for name, shape in shapes.items()
            if dual_names(kind, name)[0].startswith(_IMAGE)
            and (name.startswith("image_encoder/") or "visual_projection.weight" in tensors)
        }
    arrays = from_dual(kind, {name: _float32(x) for name, x in tensors.items()}, shapes)
    for ours in arrays:
        for name in dual_names(kind, ours):
            account.use(name, ours)
    for name in account.named(""):
        other = image_only and not name.startswith(_IMAGE)
        account.leave(
            name, "not of the picture encoder" if other else "numbers 0, 1, 2, ..., no weight"
        )
    return ConvertedWeights(nest(arrays), model, method), account


def _whole_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a picture encoder that was saved alone, as the whole model has them."""
    if any(name.startswith("vision_model.") for name in tensors):
        return dict(tensors)
    return {f"vision_model.{name}": tensor for name, tensor in tensors.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array


def _sizes(
    kind: str,
    source: EncoderSource,
    tensors: Tensors,
    sizes: Mapping[str, int],
    image_only: bool,
    account: Account,
) -> tuple[ModelConfig, int]:
    """The model by shapes and config.json, and method.text_dim."""
    config, name = source.config, source.name
    vision, text = config.get("vision_config", config), config.get("text_config", {})
    same_function(vision, name, account, _EPS[kind], _ACTIVATION[kind])
    dim, _, _, patch = given.shape_of(
        tensors, "vision_model.embeddings.patch_embedding.weight", 4, name
    )
    tokens, _ = given.shape_of(
        tensors, "vision_model.embeddings.position_embedding.weight", 2, name
    )
    side = given.side_of(tokens + (kind == "siglip"), name)  # SigLIP has no [CLS]
    image_heads = heads_of(vision, sizes.get("image_heads"), "image_heads", name, dim)
    found = {
        "dim": dim,
        "heads": image_heads,
        "image_heads": image_heads,
        "image_layers": _layers(tensors, "vision_model", name),
        "mlp_ratio": _ratio(tensors, "vision_model", name),
        "image_size": side * patch,
        "patch_size": patch,
        "embed_dim": dim,
    }
    if kind == "clip" and "visual_projection.weight" in tensors:
        found["embed_dim"], _ = given.shape_of(tensors, "visual_projection.weight", 2, name)
    text_dim = dim
    if not image_only:
        same_function(text, name, account, _EPS[kind], _ACTIVATION[kind])
        words, text_dim = given.shape_of(
            tensors, "text_model.embeddings.token_embedding.weight", 2, name
        )
        longest, _ = given.shape_of(
            tensors, "text_model.embeddings.position_embedding.weight", 2, name
        )
        ratio = _ratio(tensors, "text_model", name)
        given.agree(found, {"mlp_ratio": ratio}, name, "its text encoder")
        found |= {
            "heads": heads_of(text, sizes.get("heads"), "heads", name, text_dim),
            "text_layers": _layers(tensors, "text_model", name),
            "vocab_size": words,
            "max_text_length": longest,
        }
    model = given.model_of(found)
    return model, text_dim if text_dim != dim else 0


def _layers(tensors: Tensors, part: str, source: str) -> int:
    return given.count(tensors, rf"{part}\.encoder\.layers\.(\d+)\.", source)


def _ratio(tensors: Tensors, part: str, source: str) -> int:
    hidden, dim = given.shape_of(tensors, f"{part}.encoder.layers.0.mlp.fc1.weight", 2, source)
    if hidden % dim:
        raise ConfigError(
            f"{source} with feed-forward nets {hidden} wide in {part}",
            f"a multiple of its width, {dim}",
            "use another size of that model",
        )
    return hidden // dim
