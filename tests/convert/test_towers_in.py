"""Picture encoders of other code bases and of other runs: the same outputs, or one line that says
why not.
"""

from __future__ import annotations

import functools
import shutil

import exports
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.convert import folder, to_hf
from nas_jax.data.config import DataConfig
from nas_jax.methods.clip import ClipConfig, SiglipConfig
from nas_jax.models.clip_towers import (
    CLIP_EPS,
    SIGLIP_EPS,
    ClipImageTower,
    SiglipImageTower,
    quick_gelu,
    tanh_gelu,
)
from nas_jax.models.vit import VisionTransformer
from nas_jax.train.config import TrainConfig
from nas_jax.train.going_on import known_tokenizer
from nas_jax.utils.errors import DataError
from nas_jax.utils.trees import named_leaves

SHARED = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SIZES = SHARED | {"intermediate_size": 128}
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
QUIET = {"say": lambda line: None}


def model(name: str, **changed) -> torch.nn.Module:
    """A small model of a class of transformers, for pictures alone or with texts."""
    kind = getattr(transformers, f"{name}Model", None) or getattr(transformers, name)
    sizes = SHARED | {"mlp_ratio": 4} if name.startswith("Dinov2") else SIZES
    if name == "Siglip2Vision":
        sizes = {n: size for n, size in SIZES.items() if n != "image_size"} | {"num_patches": 16}
    if name in ("CLIP", "BlipForImageTextRetrieval"):
        texts = TEXT if name == "CLIP" else TEXT | {"hidden_size": 32, "encoder_hidden_size": 32}
        return kind(kind.config_class(vision_config=SIZES | changed, text_config=texts))
    return kind(kind.config_class(**sizes | changed))


def save(place, name, **changed):
    """The model with weights none of which is special, and its folder."""
    torch.manual_seed(0)
    made = model(name, **changed).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    made.save_pretrained(place / name)
    return made, place / name


def close(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def pictures():
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


# ------------------------------------------------------------------------------------------- passes


@pytest.mark.parametrize("name", ["BlipVision", "BlipForImageTextRetrieval"])
def test_blip_is_our_vit(name, convert, tmp_path):
    theirs, place = save(tmp_path, name)
    code, printed = convert("from-hf", "--image", place, "--out", tmp_path / "w")
    assert code == 0 and "layer_norm_eps is 1e-05" in printed, printed
    assert ("unused  text_encoder." in printed) == (name != "BlipVision")
    weights, _, _ = folder.read(tmp_path / "w")
    images, pixels = pictures()
    theirs = getattr(theirs, "vision_model", theirs)(pixels).last_hidden_state
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(VisionTransformer(weights.model).apply)(
            {"params": weights.params["image_encoder"]}, images
        )
    close(ours, theirs)


def test_mae_is_our_vit(convert, tmp_path):
    """Without masking its patches stand in a random order, of which [CLS] does not depend."""
    theirs, place = save(tmp_path, "ViTMAE", mask_ratio=0.0)
    assert convert("from-hf", "--image", place, "--out", tmp_path / "w")[0] == 0
    weights, _, _ = folder.read(tmp_path / "w")
    images, pixels = pictures()
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(VisionTransformer(weights.model).apply)(
            {"params": weights.params["image_encoder"]}, images
        )
    close(ours[:, 0], theirs(pixels).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", ["CLIPVision", "CLIP", "CLIPVisionModelWithProjection"])
def test_clip_becomes_weights_for_its_own_towers(name, convert, tmp_path):
    theirs, place = save(tmp_path, name)
    code, printed = convert("from-hf", "--image", place, "--out", tmp_path / "w")
    assert code == 0 and "method.name=clip, method.towers=clip" in printed, printed
    weights, _, _ = folder.read(tmp_path / "w")
    images, pixels = pictures()
    theirs = getattr(theirs, "vision_model", theirs)
    wanted = theirs.post_layernorm(theirs(pixels).last_hidden_state)
    tower = ClipImageTower(weights.model, 32, weights.model.vit_heads, quick_gelu, CLIP_EPS)
    with jax.default_matmul_precision("highest"):
        close(jax.jit(tower.apply)({"params": weights.params["image_encoder"]}, images), wanted)
    assert set(weights.params) == {"image_encoder"} | (
        set() if name == "CLIPVision" else {"image_proj"}
    )


def test_siglip_becomes_weights_for_its_own_towers(convert, tmp_path):
    theirs, place = save(tmp_path, "SiglipVision")
    assert convert("from-hf", "--image", place, "--out", tmp_path / "w")[0] == 0
    weights, _, _ = folder.read(tmp_path / "w")
    images, pixels = pictures()
    output = theirs(pixels)
    tower = SiglipImageTower(weights.model, 32, 4, tanh_gelu, SIGLIP_EPS)
    with jax.default_matmul_precision("highest"):
        tokens, pooled = jax.jit(tower.apply)({"params": weights.params["image_encoder"]}, images)
    close(tokens, output.last_hidden_state)
    close(pooled, output.pooler_output)


@pytest.mark.parametrize(
    "method",
    [ClipConfig(towers="clip", text_dim=8), SiglipConfig(towers="siglip")],
    ids=["clip", "siglip"],
)
def test_an_export_with_their_towers_comes_back_with_its_bits(
    method, convert, tmp_path, in_process
):
    exports.save_dual(tmp_path / "run", method)
    to_hf.export(tmp_path / "run", tmp_path / "out", **QUIET)
    code, printed = convert("from-hf", tmp_path / "out", "--out", tmp_path / "w")
    assert code == 0, printed
    weights, _, _ = folder.read(tmp_path / "w")
    with CheckpointManager(tmp_path / "run/checkpoints", read_only=True) as manager:
        saved = named_leaves(manager.restore_part("params"))
    found = named_leaves(weights.params)
    assert found.keys() == saved.keys()
    for name, array in saved.items():
        assert found[name].tobytes() == array.tobytes(), name
    assert (weights.method.towers, weights.method.text_dim) == (method.towers, method.text_dim)
    assert (weights.model.heads, weights.model.vit_heads) == (2, 4)


@pytest.mark.parametrize("source", ["run", "run/checkpoints/3", "out"])
def test_the_image_encoder_of_another_run_comes_alone(source, convert, tmp_path, in_process):
    """From its work directory, a checkpoint in it, or its export; pictures of another size."""
    exports.save_nas(tmp_path / "run", exports.tokenizer())
    if source == "out":
        to_hf.export(tmp_path / "run", tmp_path / "out", **QUIET)
    code, printed = convert("from-hf", "--image", tmp_path / source, "--out", tmp_path / "w")
    assert code == 0 and "new     text_encoder/..." in printed, printed
    weights, _, _ = folder.read(tmp_path / "w")
    with CheckpointManager(tmp_path / "run/checkpoints", read_only=True) as manager:
        saved = named_leaves(manager.restore_part("params/image_encoder"))
    found = named_leaves(weights.params)
    assert found.keys() == {f"image_encoder/{name}" for name in saved}
    for name, array in saved.items():
        assert found[f"image_encoder/{name}"].tobytes() == array.tobytes(), name
    assert (weights.model.vit_heads, weights.model.image_size) == (4, 16)
    size = ("--image-size", 24, "--out", tmp_path / "large")
    assert convert("from-hf", "--image", tmp_path / source, *size)[0] == 0
    assert folder.read(tmp_path / "large")[0].model.image_size == 24


def test_a_run_from_pictures_alone_learns_its_own_words(convert, tmp_path):
    """Weights with texts ask for their tokenizer."""
    exports.save_nas(tmp_path / "run", exports.tokenizer())
    assert convert("from-hf", "--image", tmp_path / "run", "--out", tmp_path / "w")[0] == 0
    data = DataConfig()
    begin = functools.partial(known_tokenizer, data, workdir=tmp_path / "new")
    found = begin(TrainConfig(weights=str(tmp_path / "w")))
    assert found == (None, "will be learned from the training captions")
    shutil.rmtree(tmp_path / "run/tokenizer")
    with pytest.raises(DataError, match="run/tokenizer"):
        begin(TrainConfig(weights=str(tmp_path / "run")))


# --------------------------------------------------------------------------------------- is refused


@pytest.mark.parametrize(
    ("name", "changed", "exit_code", "says"),
    [
        ("Dinov2", {"use_swiglu_ffn": True}, 4, "gated feed-forward nets"),
        ("Dinov2WithRegisters", {}, 4, "register tokens"),
        ("DINOv3ViT", {}, 4, "rotary positions"),
        ("DeiT", {}, 4, "without distillation"),
        ("Beit", {}, 4, "BEiT's layers"),
        ("Data2VecVision", {}, 4, "BEiT's layers"),
        ("IJepa", {}, 4, "without [CLS]"),
        ("Siglip2Vision", {}, 4, "model_type clip or siglip"),
        ("CLIPVision", {"hidden_act": "gelu"}, 2, "hidden_act='gelu'; expected quick_gelu"),
        ("SiglipVision", {"intermediate_size": 120}, 2, "a multiple of its width, 32"),
    ],
)
def test_other_vits_are_refused_in_one_line(name, changed, exit_code, says, convert, tmp_path):
    _, place = save(tmp_path, name, **changed)
    got, printed = convert("from-hf", "--image", place, "--out", tmp_path / "w")
    assert got == exit_code and says in printed and printed.count("\n") == 1, printed
    assert not (tmp_path / "w").exists()


def test_clip_with_texts_of_a_foreign_tokenizer_is_refused_with_what_works(convert, tmp_path):
    _, place = save(tmp_path, "CLIP")
    got, printed = convert("from-hf", place, "--out", tmp_path / "w")
    assert got == 3 and printed.count("\n") == 1, printed
    assert f"from-hf --image {place} takes the picture encoder alone" in printed
    assert convert("from-hf", "--image", place, "--out", tmp_path / "w")[0] == 0


def test_what_does_not_go_together_is_one_line(convert, tmp_path):
    _, clip = save(tmp_path, "CLIPVision")
    exports.save_dual(tmp_path / "run", ClipConfig(towers="clip", text_dim=8))
    bare = tmp_path / "bare"  # the tensors alone do not say what model it is
    bare.mkdir()
    save_file(load_file(clip / "model.safetensors"), bare / "model.safetensors")
    for arguments, exit_code, says in (
        (["--image", clip, "--text", clip], 2, "leave --text out"),
        (["--image", clip, "--image-size", 64], 2, "32, its own"),
        (["--image", bare], 4, "model_type clip or siglip"),
        (["--image", tmp_path / "run"], 4, "the same method.towers"),
        (["--image", tmp_path / "run/checkpoints/9"], 4, "no checkpoint 9 in"),
    ):
        got, printed = convert("from-hf", *arguments, "--out", tmp_path / "w")
        assert got == exit_code and says in printed and printed.count("\n") == 1, printed
    assert not (tmp_path / "w").exists()
