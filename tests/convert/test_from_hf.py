"""Encoders of transformers and timm: the same outputs, the same bits under other names, and clear
refusals.
"""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from nas_jax.checkpoint.surgery import resize_image_positions
from nas_jax.convert import folder, hf_names
from nas_jax.kernels.last_layer import TextRows
from nas_jax.models.bert import BertLayer, MlmHead, TextEncoder
from nas_jax.models.vit import VisionTransformer
from nas_jax.utils.trees import named_leaves

VOCAB = 40
IMAGE = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
)
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**IMAGE, intermediate_size=128, layer_norm_eps=1e-6)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**IMAGE, mlp_ratio=4)),
    "bert": lambda: BertForPreTraining(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=16,
        )
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random models, none of whose parameters has a special value, and their folders."""
    torch.manual_seed(0)
    found = {}
    for name, make in MODELS.items():
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        place = tmp_path_factory.mktemp(name)
        model.save_pretrained(place)
        found[name] = model, place
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(VOCAB - 5))]
    (found["bert"][1] / "vocab.txt").write_text("\n".join(words) + "\n")
    return found


def read(path):
    return folder.read(path)[0]


def close(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_outputs_are_those_of_transformers(kind, models, convert, tmp_path):
    """Both encoders, with another number of heads each; LayerScale where there is one; the BERT in
    two parts.
    """
    image, text = models[kind][0], models["bert"][0]
    code, printed = convert(
        "from-hf",
        "--image",
        models[kind][1],
        "--text",
        models["bert"][1],
        "--text-layers",
        3,
        "--out",
        tmp_path / "w",
    )
    assert code == 0, printed
    weights = read(tmp_path / "w")
    params, model = weights.params, weights.model
    assert (model.heads, model.image_heads, model.text_layers, model.fusion_layers) == (2, 4, 3, 1)
    assert (tmp_path / "w/tokenizer/tokenizer.json").is_file()
    for name in (
        "fusion_encoder/layer_0/cross_attention/...",
        "image_proj/...",
        "itm_head/...",
        "temp",
    ):
        assert f"new     {name}" in printed
    for reason in ("next-sentence prediction", "a pooler"):
        assert reason in printed

    pictures = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    theirs = image(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).last_hidden_state
    with jax.default_matmul_precision("highest"):
        close(
            jax.jit(VisionTransformer(model).apply)({"params": params["image_encoder"]}, pictures),
            theirs,
        )
        if kind == "vit":  # the text is the same in both
            check_text(text, params, model)


def check_text(text, params, model):
    ids = np.random.default_rng(0).integers(0, VOCAB, (3, 9)).astype(np.int32)
    mask = np.arange(9)[None] < np.array([9, 2, 5])[:, None]
    out = text(
        torch.from_numpy(ids).long(), torch.from_numpy(mask).long(), output_hidden_states=True
    )

    @jax.jit
    def ours(params):
        tokens = TextEncoder(model).apply({"params": params["text_encoder"]}, ids, mask)
        layer = {"params": params["fusion_encoder"]["layer_0"]}
        last = BertLayer(model).apply(layer, tokens, 3, TextRows(mask))
        words = params["text_encoder"]["word_embedding"]["embedding"]
        return tokens, last, MlmHead(model).apply({"params": params["mlm_head"]}, last, words)

    tokens, last, logits = ours(params)
    close(np.asarray(tokens)[mask], out.hidden_states[3][mask])
    close(np.asarray(last)[mask], out.hidden_states[4][mask])
    close(np.asarray(logits)[mask], out.prediction_logits[mask])


TIMM = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"encoder\.layer\.(\d+)\.": r"blocks.\1.",
    r"attention\.output\.dense": "attn.proj",
    r"intermediate\.dense": "mlp.fc1",
    r"(?<!attn\.)output\.dense": "mlp.fc2",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"^layernorm\.": "norm.",
}


def timm_names(state):
    """A ViTModel's state dict as DeiT's .pth holds it."""
    renamed = {"head.weight": torch.ones(10, 32), "head.bias": torch.ones(10)}
    for name, tensor in state.items():
        for pattern, replacement in TIMM.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for block in range(2):
        for part in ("weight", "bias"):
            names = [
                f"blocks.{block}.attention.attention.{which}.{part}"
                for which in ("query", "key", "value")
            ]
            renamed[f"blocks.{block}.attn.qkv.{part}"] = torch.cat(
                [renamed.pop(name) for name in names]
            )
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("pooler")}


def test_other_names_and_files_give_the_same_bits(models, convert, tmp_path):
    vit, bert = models["vit"][1], models["bert"][1]
    assert convert("from-hf", "--image", vit, "--text", bert, "--out", tmp_path / "a")[0] == 0
    state = load_file(vit / "model.safetensors")
    torch.save({"model": timm_names(state)}, tmp_path / "deit.pth")
    (tmp_path / "sizes.json").write_text(json.dumps({"image_heads": 4}))
    models["bert"][0].save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    code, printed = convert(
        "from-hf",
        "--image",
        tmp_path / "deit.pth",
        "--sizes",
        tmp_path / "sizes.json",
        "--text",
        tmp_path / "shards",
        "--out",
        tmp_path / "b",
    )
    assert code == 0 and "head.weight  a classifier" in printed, printed
    old = {
        re.sub(
            r"LayerNorm\.(weight|bias)",
            lambda m: f"LayerNorm.{'gamma' if m[1] == 'weight' else 'beta'}",
            name,
        ): t
        for name, t in load_file(bert / "model.safetensors").items()
    }
    words = load_file(bert / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.weight"] = words.clone()  # as older versions saved it: twice
    (tmp_path / "old").mkdir()
    save_file(
        {f"vit.{name}": tensor for name, tensor in state.items()}, tmp_path / "old/vit.safetensors"
    )
    save_file(old, tmp_path / "old/bert.safetensors")
    (tmp_path / "sizes.json").write_text(json.dumps({"image_heads": 4, "heads": 2}))
    code, printed = convert(
        "from-hf",
        "--image",
        tmp_path / "old/vit.safetensors",
        "--text",
        tmp_path / "old/bert.safetensors",
        "--sizes",
        tmp_path / "sizes.json",
        "--out",
        tmp_path / "c",
    )
    assert code == 0 and "1 are copies of these" in printed, printed
    first = named_leaves(read(tmp_path / "a").params)
    for other in ("b", "c"):
        leaves = named_leaves(read(tmp_path / other).params)
        assert leaves.keys() == first.keys()
        assert all(np.array_equal(leaves[name], first[name]) for name in first)


def npz_arrays(state) -> dict[str, np.ndarray]:
    """The tensors of transformers' ViT under the names and in the layouts of the ViT authors."""
    state = {name: tensor.numpy() for name, tensor in state.items()}
    found = {
        "cls": state["embeddings.cls_token"],
        "embedding/kernel": np.einsum(
            "oihw->hwio", state["embeddings.patch_embeddings.projection.weight"]
        ),
        "embedding/bias": state["embeddings.patch_embeddings.projection.bias"],
        "Transformer/posembed_input/pos_embedding": state["embeddings.position_embeddings"],
        "Transformer/encoder_norm/scale": state["layernorm.weight"],
        "Transformer/encoder_norm/bias": state["layernorm.bias"],
        "head/kernel": np.zeros((32, 10), np.float32),
        "head/bias": np.zeros(10, np.float32),
    }
    heads, width = 4, 8
    linear = {
        "attention.output.dense": "MultiHeadDotProductAttention_1/out",
        "intermediate.dense": "MlpBlock_3/Dense_0",
        "output.dense": "MlpBlock_3/Dense_1",
    }
    for k in range(2):
        ours, theirs = f"encoder.layer.{k}.", f"Transformer/encoderblock_{k}/"
        for name, other in (
            ("layernorm_before", "LayerNorm_0"),
            ("layernorm_after", "LayerNorm_2"),
        ):
            found[f"{theirs}{other}/scale"] = state[f"{ours}{name}.weight"]
            found[f"{theirs}{other}/bias"] = state[f"{ours}{name}.bias"]
        for name in ("query", "key", "value"):
            place = f"{theirs}MultiHeadDotProductAttention_1/{name}/"
            weight = state[f"{ours}attention.attention.{name}.weight"]
            found[f"{place}kernel"] = weight.T.reshape(32, heads, width)
            bias = state[f"{ours}attention.attention.{name}.bias"]
            found[f"{place}bias"] = bias.reshape(heads, width)
        for name, other in linear.items():
            kernel = state[f"{ours}{name}.weight"].T
            is_out = other.endswith("/out")
            found[f"{theirs}{other}/kernel"] = (
                kernel.reshape(heads, width, 32) if is_out else kernel
            )
            found[f"{theirs}{other}/bias"] = state[f"{ours}{name}.bias"]
    return found


def test_the_vit_authors_files_give_the_same_bits(models, convert, tmp_path):
    """And the number of heads is that of the file: no config.json, no sizes."""
    vit = models["vit"][1]
    assert convert("from-hf", "--image", vit, "--out", tmp_path / "a")[0] == 0
    np.savez(tmp_path / "vit.npz", **npz_arrays(load_file(vit / "model.safetensors")))
    code, printed = convert("from-hf", "--image", tmp_path / "vit.npz", "--out", tmp_path / "b")
    assert code == 0 and "head.weight  a classifier" in printed, printed
    first, second = (named_leaves(read(tmp_path / name).params) for name in "ab")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert read(tmp_path / "b").model == read(tmp_path / "a").model


def test_files_of_jax_are_called_by_their_name(convert, tmp_path):
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "flax_model.msgpack").write_bytes(b"x")
    np.savez(tmp_path / "other.npz", cls=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:50])
    for flag, name, says in (
        ("--image", "flax", "a Flax file.*from_flax=True"),
        ("--text", "flax/flax_model.msgpack", "a Flax file.*model.safetensors of the same"),
        ("--image", "other.npz", "a NumPy file without 'Transformer/encoderblock_0"),
        ("--image", "cut.npz", "a NumPy file, cannot be read"),
    ):
        code, printed = convert("from-hf", flag, tmp_path / name, "--out", tmp_path / "w")
        assert code == 4 and re.search(says, printed) and printed.count("\n") == 1, printed


def test_positions_are_resized_as_pytorch_does(models, convert, tmp_path):
    """ALBEF's `interpolate_pos_embed` is this call of PyTorch."""
    for size in (48, 24):
        out = tmp_path / str(size)
        code, printed = convert(
            "from-hf", "--image", models["vit"][1], "--image-size", size, "--out", out
        )
        assert code == 0 and "new     text_encoder/... (" in printed
        before = models["vit"][0].embeddings.position_embeddings.detach()
        grid = before[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(
            grid, size=(size // 8,) * 2, mode="bicubic", align_corners=False
        )
        wanted = torch.cat([before[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1).numpy()
        position_1xTxD = read(out).params["image_encoder"]["position_embedding"]
        np.testing.assert_allclose(position_1xTxD, wanted, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(
            position_1xTxD, resize_image_positions(before.numpy(), (size // 8) ** 2 + 1)
        )


def edited(place, out, config=None, **changes):
    """A copy of a model's folder with other tensors (None: left out) or fields of config.json."""
    out.mkdir()
    tensors = load_file(place / "model.safetensors") | {
        name.replace("__", "."): t for name, t in changes.items()
    }
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        out / "model.safetensors",
    )
    (out / "config.json").write_text(
        json.dumps(json.loads((place / "config.json").read_text()) | (config or {}))
    )
    return out


WORDS = "bert__embeddings__word_embeddings__weight"
BAD = [
    ("vit", {"layernorm__bias": None}, {}, 4, "without 'layernorm.bias'"),
    (
        "vit",
        {"layernorm__gain": torch.ones(3)},
        {},
        4,
        "'layernorm.gain', which this model has no place for",
    ),
    ("vit", {"layernorm__bias": torch.ones(16)}, {}, 4, "[16] in IMAGE; expected [32]"),
    (
        "vit",
        {"embeddings__distillation_token": torch.ones(1, 1, 32)},
        {},
        4,
        "without distillation",
    ),
    ("vit", {}, {"hidden_act": "quick_gelu"}, 2, "hidden_act='quick_gelu'"),
    ("vit", {}, {"num_hidden_layers": 3}, 2, "image_layers=3 in config.json, and 2 by the tensors"),
    (
        "dinov2",
        {"encoder__layer__0__layer_scale1__lambda1": torch.ones(3)},
        {},
        4,
        "one scale an output",
    ),
    (
        "bert",
        {},
        {"vocab_size": 30522},
        2,
        "vocab_size=30522 in config.json, and 40 by the tensors",
    ),
    ("bert", {WORDS: torch.ones(50, 32)}, {"vocab_size": 50}, 4, "expected [50]"),
    ("bert", {}, {"model_type": "roberta"}, 2, "of type 'roberta'"),
    ("bert", {}, {"position_embedding_type": "relative_key"}, 2, "absolute positions"),
    (
        "bert",
        {"bert__encoder__layer__1__output__dense__bias": None},
        {},
        4,
        "layer.1.output.dense.bias'",
    ),
    (
        "bert",
        {"cls__predictions__decoder__bias": torch.ones(40)},
        {},
        4,
        "tied to the word embeddings",
    ),
]


@pytest.mark.parametrize(
    ("kind", "changes", "config", "code", "says"), BAD, ids=[case[4] for case in BAD]
)
def test_what_does_not_fit_is_one_line(
    kind, changes, config, code, says, models, convert, tmp_path
):
    place = edited(models[kind][1], tmp_path / "IMAGE", config, **changes)
    got, printed = convert(
        "from-hf", "--text" if kind == "bert" else "--image", place, "--out", tmp_path / "w"
    )
    assert got == code and says in printed and printed.count("\n") == 1, printed
    assert not list(tmp_path.glob("w*"))


def test_files_and_flags_that_do_not_go_together(models, convert, tmp_path, monkeypatch):
    vit, bert, out = models["vit"][1], models["bert"][1], tmp_path / "w"
    cut = edited(vit, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    shards = tmp_path / "shards"
    models["bert"][0].save_pretrained(shards, max_shard_size="30KB")
    (tmp_path / "s.json").write_text(json.dumps({"image_heads": 8}))
    (tmp_path / "a.safetensors").write_bytes(whole)
    sorted(shards.glob("model-*.safetensors"))[0].unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").mkdir()
    (tmp_path / "list/config.json").write_text("[]")
    wide = tmp_path / "wide"
    ViTModel(
        ViTConfig(**IMAGE | {"hidden_size": 64}, intermediate_size=256), add_pooling_layer=False
    ).save_pretrained(wide)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    for arguments, code, says in (
        (["--image", cut], 4, "model.safetensors cannot be read"),
        (["--text", shards], 3, "no file"),
        (["--image", tmp_path / "empty"], 3, "without weights"),
        (["--image", bert], 4, "a ViT under the names of timm, dinov2, vit"),
        (["--text", vit], 2, "pass a BERT"),
        (["--image", wide, "--text", bert], 2, "dim=32 in the text encoder, and 64 by"),
        # nothing is downloaded unasked
        (["--image", "google/vit"], 3, "google/vit, which is no file"),
        (["--image", "hub:google/vit"], 3, "did not give (no network)"),
        (
            ["--image", vit, "--sizes", tmp_path / "s.json"],
            2,
            "image_heads=8 in the sizes file, and 4 in config.json",
        ),
        (["--image", cut.with_name("a.safetensors")], 2, "shapes do not tell the number of heads"),
        (["--text", bert, "--text-layers", "4"], 2, "1 to 3 of 4 layers"),
        ([], 2, "name one or the other"),
        ([vit], 4, "config.json of another model"),
        ([tmp_path / "list"], 3, "config.json with a list"),
    ):
        got, printed = convert("from-hf", *arguments, "--out", out)
        assert got == code and says in printed and printed.count("\n") == 1, printed
    assert not out.exists()


def test_an_export_of_ours_comes_back_with_its_bits(convert, tmp_path):
    config = {
        "model_type": hf_names.MODEL_TYPE,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "image_attention_heads": 0,
        "image_layers": 1,
        "text_layers": 1,
        "fusion_layers": 1,
        "mlp_ratio": 2,
        "image_size": 16,
        "patch_size": 8,
        "vocab_size": 12,
        "max_position_embeddings": 8,
        "projection_dim": 4,
        "dictionary_codes": 6,
        "method": "nas",
        "literal_gate": False,
        "text_generator": True,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "mask_token_id": 4,
    }
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(dtype)
        for name, (shape, dtype) in hf_names.shapes_in(config).items()
    }
    tensors = {
        hf_names.hf_name(name): torch.from_numpy(hf_names.to_torch(name, a))
        for name, a in arrays.items()
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]) + "\n"
    )
    save_file(tensors, tmp_path / "model.safetensors")
    code, printed = convert("from-hf", tmp_path, "--out", tmp_path / "w")
    assert code == 0, printed
    back = read(tmp_path / "w")
    leaves = named_leaves(back.params) | named_leaves(back.state)
    assert leaves.keys() == arrays.keys() and all(
        np.array_equal(leaves[name], arrays[name]) for name in arrays
    )
    assert back.method.dictionary.codes == 6 and back.method.nta.enabled
