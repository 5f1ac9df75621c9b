"""CLIP's and SigLIP's towers and losses against transformers, on the same small random weights."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from transformers import CLIPConfig as HfClipConfig
from transformers import CLIPModel, SiglipModel
from transformers import SiglipConfig as HfSiglipConfig

from nas_jax.checkpoint.stored import nest
from nas_jax.convert.hf_dual_names import from_dual, to_dual
from nas_jax.methods.clip import ClipConfig, SiglipConfig
from nas_jax.methods.draws import Draws
from nas_jax.models import clip_towers
from nas_jax.utils.errors import CheckpointError
from nas_jax.utils.trees import named_leaves

EOS, LENGTH, BATCH = 23, 9, 5
SHARED = {
    "num_hidden_layers": 2, "attention_dropout": 0.0, "initializer_factor": 1.0,
}  # fmt: skip
TEXT = SHARED | {"vocab_size": tiny.VOCAB, "max_position_embeddings": LENGTH}
IMAGE = SHARED | {
    "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
MODEL = tiny.model(
    image_layers=2, text_layers=2, image_heads=4, embed_dim=16, max_text_length=LENGTH
)


def clip():
    """Text and image encoder of different width."""
    text = TEXT | {
        "hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "eos_token_id": EOS,
        "bos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = HfClipConfig(text_config=text, vision_config=IMAGE, projection_dim=16)
    return CLIPModel(config), tiny.built(ClipConfig(towers="clip", text_dim=8), model=MODEL)


def siglip():
    text = TEXT | {
        "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "pad_token_id": 0,
        "projection_size": 16,
    }  # fmt: skip
    config = HfSiglipConfig(text_config=text, vision_config=IMAGE)
    return SiglipModel(config), tiny.built(SiglipConfig(towers="siglip"), model=MODEL)


def given():
    """Pictures, and texts that end with EOS and then padding."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 5, LENGTH, 4, 7])[:, None]
    ids = rng.integers(5, EOS, (BATCH, LENGTH))
    places = np.arange(LENGTH)[None]
    ids = np.where(places == lengths - 1, EOS, np.where(places < lengths, ids, 0))
    pixels = rng.standard_normal((BATCH, 16, 16, 3)).astype(np.float32)
    return pixels, ids, places < lengths


def loaded(model, method, seed=0):
    """Random weights for both, larger than fresh ones, so that each part matters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.randn(tensor.shape) * 0.3 + ("norm" in name and "weight" in name))
        model.logit_scale.fill_(1.2)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-2.0)
    kind = "siglip" if hasattr(model, "logit_bias") else "clip"
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    shapes, _ = jax.eval_shape(method.init, jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in named_leaves(shapes).items()}
    return kind, tensors, shapes


@pytest.mark.parametrize("build", [clip, siglip])
def test_logits_loss_and_gradients_are_those_of_transformers(build):
    model, method = build()
    model.eval()
    kind, tensors, shapes = loaded(model, method)
    arrays = from_dual(kind, tensors, shapes)
    params = jax.tree.map(jnp.asarray, nest(arrays))
    pixels, ids, mask = given()
    inputs = {
        "pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        "input_ids": torch.from_numpy(ids),
    }
    if kind == "clip":  # SigLIP is trained to read its padding
        inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    output = model(**inputs, return_loss=True)
    output.loss.backward()
    batch = {
        "image_BxHxWx3": jnp.asarray(pixels),
        "token_ids_BxL": jnp.asarray(ids, jnp.int32),
        "token_mask_BxL": jnp.asarray(mask),
    }

    @jax.jit
    def ours(params):
        _, image = method.encode_image(params, {}, batch["image_BxHxWx3"])
        _, text = method.encode_text(params, batch["token_ids_BxL"], batch["token_mask_BxL"])
        logits = jnp.exp(params["logit_scale"]) * image @ text.T + params.get("logit_bias", 0.0)
        return image, text, logits

    with jax.default_matmul_precision("highest"):
        found = ours(params)
        value, grads = jax.jit(jax.value_and_grad(lambda params: method.loss(
            params, {}, batch, Draws(jax.random.key(0)), 0, None)[0]))(params)  # fmt: skip
    wanted = output.image_embeds, output.text_embeds, output.logits_per_image
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            one, other.detach().numpy(), atol=1e-4 * float(jnp.abs(one).max())
        )
    np.testing.assert_allclose(value, output.loss.item(), rtol=1e-5)
    theirs = {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}
    seen = set()
    for name, grad in named_leaves(grads).items():
        for one, part in to_dual(kind, name, np.asarray(grad)).items():
            scale = max(np.abs(theirs[one]).max(), 1e-3)  # the bias of keys has none but rounding
            assert np.abs(part - theirs[one]).max() < 1e-4 * scale, one
            seen.add(one)
    assert seen == theirs.keys()


@pytest.mark.parametrize("build", [clip, siglip])
def test_the_way_there_and_back_gives_the_same_bits(build):
    model, method = build()
    kind, tensors, shapes = loaded(model, method)
    there = {}
    for name, array in from_dual(kind, tensors, shapes).items():
        there |= to_dual(kind, name, array)
    assert there.keys() == tensors.keys()
    for name, tensor in there.items():
        assert tensor.shape == tensors[name].shape
        np.testing.assert_array_equal(tensor, tensors[name])
    with pytest.raises(CheckpointError, match="absent"):
        from_dual(kind, {k: v for k, v in tensors.items() if "fc1" not in k}, shapes)
    with pytest.raises(CheckpointError, match="other"):
        from_dual(kind, tensors | {"other": np.zeros(1)}, shapes)


@pytest.mark.parametrize(
    ("build", "wrong"), [(clip, clip_towers.tanh_gelu), (siglip, clip_towers.quick_gelu)]
)
def test_another_activation_would_be_seen(build, wrong, monkeypatch):
    """What is easily taken for the same is another number."""
    _, ids, mask = given()
    model, method = build()
    kind, tensors, shapes = loaded(model, method)
    params = jax.tree.map(jnp.asarray, nest(from_dual(kind, tensors, shapes)))
    _, right_BxE = jax.jit(lambda *x: method.encode_text(*x))(params, ids, mask)
    monkeypatch.setattr(type(method.network), "activation", staticmethod(wrong))
    _, other_BxE = jax.jit(lambda *x: method.encode_text(*x))(params, ids, mask)
    assert jnp.abs(right_BxE - other_BxE).max() > 1e-3


def test_siglip_features_do_not_depend_on_how_a_text_is_padded():
    _, method = siglip()
    method = replace(method, network=method.network.clone(pad=1))
    params, _ = jax.jit(method.init)(jax.random.key(0))
    ids, mask = np.array([[2, 7, 8, 0, 0]]), np.array([[True, True, True, False, False]])
    encode = jax.jit(method.encode_text)
    short_BxE = encode(params, ids[:, :3], mask[:, :3])[1]
    np.testing.assert_allclose(encode(params, ids, mask)[1], short_BxE, atol=1e-6)
