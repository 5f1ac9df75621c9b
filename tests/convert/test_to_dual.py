"""Out to transformers' own CLIPModel and SiglipModel: what passes the gate, and what is refused."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import exports
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nas_jax.convert import hf_dual, to_hf
from nas_jax.convert.gate_rows import GateRefused
from nas_jax.methods.clip import ClipConfig, SiglipConfig
from nas_jax.utils.errors import ConfigError

METHODS = {"clip": ClipConfig(towers="clip", text_dim=8), "siglip": SiglipConfig(towers="siglip")}
QUIET = {"say": lambda line: None}


@pytest.mark.parametrize("kind", METHODS)
def test_an_export_is_the_plain_class_with_the_same_numbers(kind, tmp_path, in_process):
    workdir = exports.save_dual(tmp_path / "run", METHODS[kind])
    report = to_hf.export(workdir, tmp_path / "out", **QUIET)
    names = {row.name for row in report.rows}
    assert {"random/image_embeds", "real/text_embeds", "real/logits_per_image"} <= names
    assert {"real/input_ids", "real/pixel_values", "real/resized", "random/missing"} <= names
    out = tmp_path / "out"
    assert [file.name for file in out.glob("*.py")] == ["app.py"]  # which no class reads
    assert "auto_map" not in (out / "config.json").read_text()
    assert f"by the method {kind}" in (out / "README.md").read_text()


PYTHONS = [sys.executable, os.environ.get(exports.OTHER_PYTHON, "")]


@pytest.mark.parametrize("python", PYTHONS, ids=["this", "other"])
def test_it_passes_in_a_process_of_its_own(python, tmp_path):
    """Of another transformers too, whose CLIPProcessor would crop."""
    if not python:
        pytest.skip(f"set {exports.OTHER_PYTHON} to a python with torch and transformers 4.57")
    run = exports.save_dual(tmp_path / "run", METHODS["clip"])
    to_hf.export(run, tmp_path / "out", python=python, **QUIET)
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
        towers = dict(hf_dual.PUBLISHED, siglip=hf_dual.PUBLISHED["clip"])
        monkeypatch.setattr(hf_dual, "PUBLISHED", towers)
    else:
        monkeypatch.setattr(hf_dual, "write_weights", damaged)
    workdir = exports.save_dual(tmp_path / "run", METHODS["siglip"])
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
    workdir = exports.save_dual(tmp_path / "run", method, add_sep)
    with pytest.raises(ConfigError, match=message):
        to_hf.export(workdir, tmp_path / "out", plain=plain, **QUIET)
    assert os.listdir(tmp_path) == ["run"]
