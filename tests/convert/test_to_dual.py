"""Out to transformers' own CLIPModel and SiglipModel: what passes the gate, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.stored import nest
from nas_jax.config import RunConfig, to_dict
from nas_jax.convert import gate_dual, gate_torch, hf_dual, to_hf
from nas_jax.convert.gate import GateRefused
from nas_jax.data.config import DataConfig
from nas_jax.data.tokenizer import learn_wordpiece
from nas_jax.methods import make_method
from nas_jax.methods.clip import ClipConfig, SiglipConfig
from nas_jax.methods.method import Setting
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.trees import named_leaves

CAPTIONS = (
    "a red square left of a blue circle, word number 0123456789",
    "there is no small green triangle above two large yellow stars: a man's dog, it's a person",
)
METHODS = {"clip": ClipConfig(towers="clip", text_dim=8), "siglip": SiglipConfig(towers="siglip")}
QUIET = {"say": lambda line: None}


def save_run(workdir, method, add_sep=True):
    """A work directory with a checkpoint of random numbers; nothing is compiled for it."""
    tokenizer = learn_wordpiece(CAPTIONS, 120, add_sep)
    model = tiny.model(
        vocab_size=tokenizer.vocab_size, image_heads=4, max_text_length=20, embed_dim=16
    )
    data = DataConfig(image_size=16, text_length=14, batch_size=8, add_sep=add_sep)
    record = json.loads(json.dumps(to_dict(RunConfig(model=model, method=method, data=data))))
    tokenizer.save(workdir / "tokenizer")
    built = make_method(method, model, Setting(tokenizer.vocabulary()))
    params, _ = jax.eval_shape(built.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(name, leaf):
        if name.startswith("logit_"):
            return np.full(leaf.shape, 1.5, np.float32)
        one = 1.0 if name.endswith("/scale") else 0.0
        return (rng.standard_normal(leaf.shape) * 0.3 + one).astype(np.float32)

    arrays = nest({name: draw(name, leaf) for name, leaf in named_leaves(params).items()})
    with CheckpointManager(workdir / "checkpoints") as manager:
        state = {"params": arrays, "method_state": {}}
        manager.save(3, state, {"next_step": 3}, {"config": record})
    return workdir


@pytest.fixture
def in_process(monkeypatch):
    """The PyTorch side in this process, which spares its start."""

    def run_torch(arguments, python):
        export, inputs, outputs = arguments
        with np.load(inputs) as file:
            given = {name: file[name] for name in file.files}
        facts = np.asarray(json.dumps({"transformers": "5", "peak_bytes": 0}))
        np.savez(outputs, facts=facts, **gate_torch.run(export, given))

    monkeypatch.setattr(gate_dual, "run_torch", run_torch)


@pytest.mark.parametrize("kind", METHODS)
def test_an_export_is_the_plain_class_with_the_same_numbers(kind, tmp_path, in_process):
    workdir = save_run(tmp_path / "run", METHODS[kind])
    report = to_hf.export(workdir, tmp_path / "out", **QUIET)
    names = {row.name for row in report.rows}
    assert {"random/image_embeds", "real/text_embeds", "real/logits_per_image"} <= names
    assert {"real/input_ids", "real/pixel_values", "real/resized", "random/missing"} <= names
    out = tmp_path / "out"
    assert not list(out.glob("*.py")) and "auto_map" not in (out / "config.json").read_text()
    assert f"by the method {kind}" in (out / "README.md").read_text()


def test_it_passes_in_a_process_of_its_own(tmp_path):
    to_hf.export(save_run(tmp_path / "run", METHODS["clip"]), tmp_path / "out", **QUIET)
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize("fault", ["kernel", "pixels", "missing"])
def test_another_number_is_refused(fault, tmp_path, in_process, monkeypatch):
    """One number of a weight, another mean of the pixels, a tensor without its name."""
    write_weights = hf_dual.write_weights

    def damaged(path, trained, kind):
        write_weights(path, trained, kind)
        tensors = dict(load_file(path))
        name = "text_model.encoder.layers.0.mlp.fc1.weight"
        if fault == "kernel":
            tensors[name] = tensors[name] + np.eye(*tensors[name].shape, dtype=np.float32)
        elif fault == "missing":
            tensors["other"] = tensors.pop(name)
        save_file(tensors, path, {"format": "pt"})

    if fault == "pixels":
        towers = dict(hf_dual.TOWERS, siglip=hf_dual.TOWERS["clip"])
        monkeypatch.setattr(hf_dual, "TOWERS", towers)
    else:
        monkeypatch.setattr(hf_dual, "write_weights", damaged)
    workdir = save_run(tmp_path / "run", METHODS["siglip"])
    with pytest.raises(GateRefused):
        to_hf.export(workdir, tmp_path / "out", **QUIET)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("method", "add_sep", "plain", "message"),
    [
        (ClipConfig(), True, "", "method.towers='clip'"),
        (replace(METHODS["clip"], towers="siglip", text_dim=0), True, "", "method.towers='clip'"),
        (METHODS["clip"], False, "", "data.add_sep=True"),
        (METHODS["siglip"], True, "blip", "plain itself"),
    ],
)
def test_what_the_classes_would_read_otherwise_is_refused(
    method, add_sep, plain, message, tmp_path
):
    workdir = save_run(tmp_path / "run", method, add_sep)
    with pytest.raises(ConfigError, match=message):
        to_hf.export(workdir, tmp_path / "out", plain=plain, **QUIET)
    assert os.listdir(tmp_path) == ["run"]
