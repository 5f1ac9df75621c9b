"""Out to Hugging Face: what passes the gate, what is refused, and the same bits on the way back."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
from pathlib import Path

import exports
import fake_gcs
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.convert import gate, gate_inputs, gate_rows, gate_torch, hf_config, hf_names, to_hf
from nas_jax.convert.__main__ import main
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.tokenizer import TextTokenizer, learn_wordpiece, load_tokenizer
from nas_jax.methods import METHODS
from nas_jax.methods.method import Method
from nas_jax.train.trained import Trained, open_trained
from nas_jax.utils.errors import CheckpointError, ConfigError
from nas_jax.utils.trees import named_leaves

RECORDED = Path(__file__).parents[1] / "fixtures" / "nas_step.npz"
RUN_TORCH = gate.run_torch


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return learn_wordpiece(exports.CAPTIONS, 120)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tokenizer) -> Path:
    """A run of NAS with every part."""
    return exports.save_nas(tmp_path_factory.mktemp("run"), tokenizer)


@pytest.fixture(scope="module")
def jax_side():
    """`gate.run_jax`, computed once for all exports of a work directory."""
    known, compute = {}, gate.run_jax

    def run_jax(found, config, given):
        if found.workdir not in known:
            known[found.workdir] = compute(found, config, given)
        return known[found.workdir]

    return run_jax


# -------------------------------------------------------------------- what passes, and the way back


def test_an_export_gives_back_its_bits(
    workdir, tokenizer, tmp_path, in_process, jax_side, monkeypatch
):
    """All parts of NAS in three weight files, and the plain dual encoder; what is written, and
    params bit by bit.
    """
    monkeypatch.setattr(gate, "run_jax", jax_side)
    (workdir / "metrics.jsonl").write_text(
        '{"step": 3, "kind": "train", "loss": 1.25, "loss/itc": 0.5}\n'
    )
    (workdir / "evals").mkdir()
    metric = {
        "key": "val/foils/itm/colour",
        "value": 61.5,
        "chance": 50.0,
        "blind": None,
        "count": 26,
    }
    (workdir / "evals/3.json").write_text(json.dumps({"info": {}, "metrics": [metric]}))
    said = []
    report = to_hf.export(
        workdir, tmp_path / "out", plain="blip", shard_bytes=40_000, say=said.append
    )
    assert {row.name.split("/")[1] for row in report.rows} >= {
        "image_embeds",
        "text_embeds",
        "code_ids",
        "dictionary_tokens",
        "distances",
        "itm_logits",
        "mlm_logits",
        "generator_logits",
        "plain_cosine",
        "input_ids",
        "pixel_values",
    }
    assert any("MB written" in line for line in said)
    out = tmp_path / "out"
    assert os.listdir(tmp_path) == ["out"]
    assert len(list(out.glob("model-*.safetensors"))) > 1
    card = (out / "README.md").read_text()
    for text in (
        "---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-classification\ntags:\n- ",
        "\n- image-text-matching\n- nas_jax\n- nas\n---\n",
        "No license is given",
        "loss 1.2500",
        "| val/foils/itm/colour | 61.5 | 50.0 |",
        "scenes (drawn",
        "chance: random",
        "[MASK]",
    ):
        assert text in card
    assert str(tmp_path) not in card + (out / "config.json").read_text()

    params, state = hf_names.read_export(out)
    with CheckpointManager(workdir / "checkpoints", read_only=True) as manager:
        saved = named_leaves(
            {
                "params": manager.restore_part("params"),
                "d": manager.restore_part("method_state/dictionary"),
            }
        )
    exported = named_leaves({"params": params, "d": state["dictionary"]})
    assert exported.keys() == saved.keys()
    for name, array in saved.items():
        assert (exported[name].dtype, exported[name].shape) == (array.dtype, array.shape)
        assert exported[name].tobytes() == array.tobytes(), name
    assert hf_names.model_config(hf_names.read_config(out)).vit_heads == 4


def test_albef_has_no_dictionary(tokenizer, tmp_path, in_process):
    report = to_hf.export(
        exports.save_nas(tmp_path / "run", tokenizer, "albef"),
        tmp_path / "out",
        say=lambda line: None,
    )
    names = {row.name.split("/")[1] for row in report.rows}
    assert "itm_logits" in names and not names & {
        "code_ids",
        "dictionary_tokens",
        "generator_logits",
    }
    assert hf_names.read_export(tmp_path / "out")[1] == {}


@pytest.mark.parametrize("variant", ["albef", "nas"])
def test_the_config_of_an_older_run_gives_the_same_export(tokenizer, variant):
    """When all methods had the fields of NAS, and `plain`."""
    model = tiny.model(vocab_size=tokenizer.vocab_size)

    def exported(method: dict) -> dict:
        config = {"model": dataclasses.asdict(model), "method": method, "data": {}}
        found = Trained(Path("run"), 3, json.loads(json.dumps(config)), {}, {})
        return hf_config.sizes_of(found, tokenizer, tokenizer.vocab_size)

    method = tiny.method(variant).config
    nas = dataclasses.asdict(tiny.method(variant, name="nas").config)
    itm = {field: value for field, value in nas["itm"].items() if "given" not in field}
    older = nas | {"name": method.name, "plain": False, "itm": itm}
    assert exported(older) == exported(dataclasses.asdict(method))
    assert exported(older)["text_generator"] == (variant == "nas")


def test_a_method_without_a_class_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "other", Method)
    config = {"model": dataclasses.asdict(tiny.model()), "method": {"name": "other"}}
    with CheckpointManager(tmp_path / "run/checkpoints") as manager:
        manager.save(3, {"params": {"w": np.ones(2)}}, {"next_step": 3}, {"config": config})
    assert main(["to-hf", "--checkpoint", str(tmp_path / "run"), "--out", f"{tmp_path}/out"]) == 2
    said = capsys.readouterr().err
    assert "method other, which has no Hugging Face class; expected" in said
    flags = ["to-hf", "--checkpoint", "none", "--out", "none", "--shard_mb", "0"]
    assert main(flags) == 2 and "--shard_mb 0; expected 1 or more" in capsys.readouterr().err
    assert "one: albef, nas. " in said and "Method.hf_class" in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == ["run"]


def test_every_name_goes_there_and_back(workdir):
    for name in open_trained(workdir).shapes:
        assert hf_names.our_name(hf_names.hf_name(name)) == name


def test_a_run_in_a_bucket_is_read_there(workdir):
    here = open_trained(workdir)
    with fake_gcs.bucket() as bucket:
        for file in workdir.rglob("*"):
            if file.is_file():
                bucket.put(f"run/{file.relative_to(workdir)}", file.read_bytes())
        there = open_trained(f"{bucket.url}/run")
        assert (there.step, there.shapes, there.verified) == (here.step, here.shapes, True)
        names = here.groups()[0]
        for (name, array), (_, wanted) in zip(there.read(names), here.read(names), strict=True):
            np.testing.assert_array_equal(array, wanted, err_msg=name)
        assert (
            load_tokenizer(f"{bucket.url}/run/tokenizer").tokens()
            == load_tokenizer(f"{workdir}/tokenizer").tokens()
        )
        with pytest.raises(CheckpointError, match="no checkpoint in gs://"):
            open_trained(f"{bucket.url}/other")


@pytest.mark.parametrize(
    ("clean", "max_words", "add_sep"), [(True, 30, False), (True, 4, True), (False, 30, True)]
)
def test_the_tokenizer_files_do_what_ours_does(tokenizer, tmp_path, clean, max_words, add_sep):
    """Through the `tokenizers` library alone, which transformers of any version uses."""
    from tokenizers import Tokenizer

    ours = TextTokenizer(Tokenizer.from_str(tokenizer._tokenizer.to_str()), add_sep)
    to_hf.write_tokenizer(
        tmp_path, ours, {"text_length": 12, "clean_captions": clean, "max_words": max_words}
    )
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for caption in (
        *exports.CAPTIONS,
        *gate_inputs.CAPTIONS,
        "",
        "  Two\n dogs ",
        "a <person>/dog",
    ):
        ids, mask = ours.encode([prepare_caption(caption, clean, max_words)], 12)
        assert theirs.encode(caption).ids == ids[0, mask[0]].tolist(), caption
    again, _ = load_tokenizer(str(tmp_path)).encode(
        [prepare_caption(exports.CAPTIONS[1], clean, max_words)], 12
    )
    np.testing.assert_array_equal(
        again, ours.encode([prepare_caption(exports.CAPTIONS[1], clean, max_words)], 12)[0]
    )


def test_a_cased_tokenizer_keeps_its_capitals(tmp_path):
    from tokenizers import Tokenizer

    from nas_jax.data.tokenizer import SPECIAL_TOKENS

    words = [*SPECIAL_TOKENS, "Ein", "Hund", "hund", "person"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_tokenizer(str(tmp_path))
    rules = {"text_length": 12, "clean_captions": True, "max_words": 30}
    to_hf.write_tokenizer(tmp_path / "out", cased, rules)
    theirs = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    for text in ("Ein Hund, hund!", "Ein <PERSON>"):
        ids, mask = cased.encode([prepare_caption(text, True, 30, cased.cased)], 12)
        assert theirs.encode(text).ids == ids[0, mask[0]].tolist()
    assert cased.unk_id not in ids


PAGE = Path(__file__).parents[2] / "docs/conversion_out.md"


def export_without_gate(workdir: Path, folder: Path) -> None:
    """All files of an export but the card."""
    folder.mkdir()
    trained = open_trained(workdir)
    config = hf_config.export_config(trained, trained.tokenizer)
    to_hf.write_files(folder, trained, config, trained.tokenizer)
    to_hf.write_weights(folder, trained, lambda line: None)


def test_long_texts_are_cut_as_on_the_page_and_words_can_be_added(
    workdir, tokenizer, tmp_path, modules, monkeypatch
):
    """The snippet of docs/conversion_out.md with a caption of 60 words, and a larger vocabulary."""
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    export = tmp_path / "export"
    export_without_gate(workdir, export)
    words = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    model = AutoModel.from_pretrained(export, trust_remote_code=True).eval()
    long = " ".join(["a red square left of a blue circle"] * 8)
    call = re.search(r" tokenizer\(captions, (.*)\)", PAGE.read_text()).group(1)
    given = eval(f"words([long, 'a circle'], {call})")
    ids, _ = tokenizer.encode([prepare_caption(long, True, 30)], 14)
    assert given["input_ids"][0].tolist() == ids[0].tolist()
    pixels = torch.zeros(2, 3, 16, 16)
    with torch.inference_mode():
        before = model(pixels, **given)
        with pytest.raises(ValueError, match=r"positions: call the tokenizer with truncation=True"):
            model(pixels, **words([long, long], return_tensors="pt"))
        rows = model.config.vocab_size
        for count in (rows + 9, rows + 4):
            model.resize_token_embeddings(count, mean_resizing=False)
            after = model(pixels, **given)
            assert after.mlm_logits.shape[-1] == count == model.config.vocab_size
            generated = model.generate_words(after.text_tokens)
            assert generated.shape[-1] == count
            torch.testing.assert_close(after.mlm_logits[..., :rows], before.mlm_logits)
            assert not model.mlm_head.bias[rows:].any() and model.mlm_head.bias[:rows].any()
    assert model.mlm_head.bias.requires_grad
    model.save_pretrained(tmp_path / "resized")
    again = AutoModel.from_pretrained(tmp_path / "resized", trust_remote_code=True)
    torch.testing.assert_close(again.mlm_head.bias, model.mlm_head.bias)


# -------------------------------------------------------------------------------- negative controls


def transpose_one_kernel(weights):
    weights["mlm_head.transform.weight"] = weights["mlm_head.transform.weight"].T.contiguous()


def swap_two_heads(weights):
    query, *rest = weights["image_encoder.blocks.0.attention.qkv.weight"].chunk(3)
    heads = query.chunk(4)
    weights["image_encoder.blocks.0.attention.qkv.weight"] = torch.cat(
        [heads[1], heads[0], *heads[2:], *rest]
    )


def shuffle_positions(weights):
    table = weights["text_encoder.position_embedding.weight"]
    table[[12, 13]] = table[[13, 12]]  # behind the end of any caption


@pytest.mark.parametrize(
    ("disturb", "where"),
    [
        (transpose_one_kernel, "random/mlm_logits"),
        (swap_two_heads, "random/image_encoder.blocks.0.attention"),
        (shuffle_positions, "random/text_encoder.embedding_norm"),
    ],
)
def test_the_gate_refuses(
    workdir, tmp_path, in_process, jax_side, monkeypatch, capsys, disturb, where
):
    """One small fault in the weights: exit status not 0, the layer named, nothing left."""
    write_weights = to_hf.write_weights

    def faulty(folder, *arguments):
        write_weights(folder, *arguments)
        weights = load_file(folder / "model.safetensors")
        disturb(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(to_hf, "write_weights", faulty)
    monkeypatch.setattr(gate, "run_jax", jax_side)
    assert (
        main(["to-hf", "--checkpoint", str(workdir), "--out", str(tmp_path / "out")])
        == gate_rows.GateRefused.exit_code
    )
    printed = capsys.readouterr()
    assert f"first in {where} by" in printed.err
    assert printed.out.split("allowed")[1].split()[0] == where  # the table begins there
    assert not os.listdir(tmp_path)


def test_nan_is_refused():
    for theirs in (np.array([1, np.nan]), np.ones(3)):
        error = gate_rows.difference(np.ones(2), theirs)
        assert not gate_rows.OutputRow("x", error, 1e-4).passed


def test_codes_that_are_equally_near_are_ties_and_others_are_not():
    codes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    features = torch.tensor([[[0.0, 1.0]]])
    distances = torch.cdist(features, codes[None]).square()
    only_ties = functools.partial(gate_torch._only_ties, codes, features, distances)
    assert only_ties(torch.tensor([[0]]), torch.tensor([[1]]))
    assert not only_ties(torch.tensor([[0]]), torch.tensor([[2]]))


# ------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_exported_is_one_line(workdir, tokenizer, tmp_path):
    export = functools.partial(to_hf.export, say=lambda line: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ConfigError, match="which exists"):
        export(workdir, tmp_path / "full")
    with pytest.raises(CheckpointError, match="no checkpoint 9 in"):
        export(workdir / "checkpoints/9", tmp_path / "out")
    with pytest.raises(CheckpointError, match="a tokenizer of .* tokens for a model of"):
        learn_wordpiece([*exports.CAPTIONS, "many other words that are not there"], 200).save(
            tmp_path / "words"
        )
        export(workdir, tmp_path / "out", str(tmp_path / "words"))
    damaged = exports.save_nas(tmp_path / "damaged", tokenizer)
    file = next((damaged / "checkpoints/3/state").rglob("d/*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="checkpoints/3 is damaged"):
        export(damaged, tmp_path / "out")
    other = json.loads(json.dumps(open_trained(workdir).config))
    other["model"]["dim"] = 32
    with pytest.raises(CheckpointError, match="mend the config.json"):
        found = open_trained(workdir)
        hf_config.export_config(dataclasses.replace(found, config=other), tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {"full", "words", "damaged"}


def test_an_export_that_was_altered_is_not_read_back(workdir, tokenizer, tmp_path):
    found = open_trained(workdir)
    config = hf_config.export_config(found, tokenizer)
    (tmp_path / "config.json").write_text(json.dumps(config))
    to_hf.write_weights(tmp_path, found, lambda line: None)
    file, back = (
        tmp_path / "model.safetensors",
        functools.partial(hf_names.read_export, tmp_path),
    )
    back()
    weights, whole = load_file(file), file.read_bytes()
    for change, message in (
        ({"temp": None}, "weights without temp"),
        ({"new.weight": torch.ones(1)}, "with the unknown new.weight"),
        ({"itm_head.bias": torch.ones(3)}, r"itm_head.bias is float32\[3\]; expected float32\[2\]"),
    ):
        changed = {
            name: tensor for name, tensor in (weights | change).items() if tensor is not None
        }
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            back()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="whole safetensors files"):
        back()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="of another model"):
        back()


# ------------------------------------------------------------- recorded weights, a separate process


@pytest.mark.parametrize("python", ["this", "other"])
def test_recorded_weights_give_the_recorded_outputs(
    recorded, sizes, tokenizer, tmp_path, in_process, monkeypatch, python
):
    """ALBEF's names -> ours -> transformers, in a process that cannot import nas_jax."""
    version, python = (
        ("5", sys.executable) if python == "this" else ("4", os.environ.get(exports.OTHER_PYTHON))
    )
    if not python:
        pytest.skip(f"set {exports.OTHER_PYTHON} to a python with torch and transformers 4.57")
    if python != sys.executable:
        monkeypatch.setattr(gate, "run_torch", RUN_TORCH)
    torch.save({"model": recorded}, tmp_path / "step.pth")
    weights, out = tmp_path / "weights", tmp_path / "out"
    assert (
        main(["from-albef", str(tmp_path / "step.pth"), "--sizes", sizes, "--out", str(weights)])
        == 0
    )
    tokenizer.save(tmp_path / "words")
    report = to_hf.export(
        weights, out, str(tmp_path / "words"), python=python, say=lambda line: None
    )
    assert report.transformers[0] == version

    with np.load(RECORDED) as file:
        arrays = {
            name: file[name] for name in file.files if name.startswith(("in/", "out/", "draw/"))
        }
    image, ids, mask = (arrays[f"in/{name}"] for name in ("image", "input_ids", "attention_mask"))
    image_other, text_other = arrays["draw/negative_image"], arrays["draw/negative_text"]
    cases = {
        "positive": (image, ids, mask),
        "image": (image[image_other], ids, mask),
        "text": (image, ids[text_other], mask[text_other]),
        "masked": (image, arrays["draw/mlm_input_ids"], mask),
    }
    given = {"cases": np.asarray(json.dumps(list(cases)))}
    codes = arrays["out/code_ids"]
    for case, inputs in cases.items():
        given |= {
            f"{case}/{name}": a
            for name, a in zip(("pixel_values", *gate_torch._TEXT), inputs, strict=True)
        }
        given[f"{case}/code_ids"] = codes[image_other] if case == "image" else codes
    np.savez(tmp_path / "inputs.npz", **given)
    RUN_TORCH([str(out), str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz")], python)
    with np.load(tmp_path / "outputs.npz") as file:
        theirs = {name: file[name] for name in file.files}
    assert json.loads(str(theirs["facts"]))["transformers"][0] == version

    np.testing.assert_array_equal(theirs["positive/code_ids"], codes)
    positive, _, image_negative, text_negative = np.split(
        arrays["out/itm_logits_pos_nva_negimage_negtext"], 4
    )
    for name, expected in (
        ("positive/image_tokens", arrays["out/image_tokens"]),
        ("positive/text_tokens", arrays["out/text_tokens"]),
        ("positive/itm_logits", positive),
        ("image/itm_logits", image_negative),
        ("text/itm_logits", text_negative),
        ("masked/mlm_logits", arrays["out/mlm_logits"]),
    ):
        assert gate_rows.difference(expected, theirs[name]) < 1e-4, name
    assert (
        gate_rows.difference(
            arrays["out/dictionary_tokens"], theirs["positive/dictionary_tokens"][:, 1:]
        )
        < 1e-4
    )
    for tower in ("vision", "text"):
        tokens = arrays["out/image_tokens" if tower == "vision" else "out/text_tokens"][:, 0]
        feature = (
            tokens @ recorded[f"{tower}_proj.weight"].numpy().T
            + recorded[f"{tower}_proj.bias"].numpy()
        )
        feature /= np.linalg.norm(feature, axis=1, keepdims=True)
        embeds = theirs["positive/image_embeds" if tower == "vision" else "positive/text_embeds"]
        assert gate_rows.difference(feature, embeds) < 1e-4
