"""AutoProcessor and transformers' pipelines from the folder alone; the gate compares them."""

from __future__ import annotations

import json
import os

import exports
import numpy as np
import pytest
import torch
from PIL import Image

from nas_jax.convert import gate_dual, gate_torch, hf_config, to_hf
from nas_jax.convert.gate_rows import TOLERANCE, GateRefused
from nas_jax.data.image_ops import resize
from nas_jax.data.scenes import SceneSource
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.worlds import SMALL
from nas_jax.methods.clip import ClipConfig, SiglipConfig
from nas_jax.models.towers import normalise_image
from nas_jax.train.trained import open_trained

LONG = " ".join(["a red square left of a blue circle"] * 8)
QUIET = {"say": lambda line: None}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return exports.save_nas(tmp_path_factory.mktemp("run"), exports.tokenizer())


@pytest.fixture
def folder(workdir, tmp_path, modules, monkeypatch):
    """An export of NAS, without the gate."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    out = tmp_path / "export"
    out.mkdir()
    trained = open_trained(workdir)
    config = hf_config.export_config(trained, trained.tokenizer)
    to_hf.write_files(out, trained, config, trained.tokenizer)
    to_hf.write_weights(out, trained, lambda line: None)
    return out


def picture() -> np.ndarray:
    """A drawn picture, not square."""
    return SceneSource("val", 3, 0, 64, SMALL)[2].image[:40]


def test_one_processor_gives_the_pixels_and_ids_of_training(folder):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    image = picture()
    given = processor(images=Image.fromarray(image), text=[LONG, "a circle"], return_tensors="pt")
    pixels = np.asarray(normalise_image(resize(image, 16)[None])).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(given["pixel_values"].numpy(), pixels, atol=1e-4)
    texts = [prepare_caption(text, True, 30) for text in (LONG, "a circle")]
    ids, mask = exports.tokenizer().encode(texts, 14)
    np.testing.assert_array_equal(given["input_ids"].numpy(), ids)
    np.testing.assert_array_equal(given["attention_mask"].numpy(), mask)


def test_labels_are_cut_as_in_training_and_pictures_come_in_batches(folder):
    from transformers import AutoModel, AutoProcessor, pipeline

    ours = {"trust_remote_code": True}
    match = pipeline("image-text-matching", model=str(folder), device="cpu", **ours)
    image, other = Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())
    labels = [LONG, "a circle", "a blue star"]
    found = match([image, other], candidate_labels=labels, batch_size=2)
    model = AutoModel.from_pretrained(folder, **ours).eval()
    processor = AutoProcessor.from_pretrained(folder, **ours)
    given = processor(images=[image, other], text=labels, return_tensors="pt")
    pixels = given.pop("pixel_values")
    for number, rows in enumerate(found):
        scores = {row["label"]: row["score"] for row in rows}
        assert [row["score"] for row in rows] == sorted(scores.values(), reverse=True)
        with torch.inference_mode():
            same = pixels[[number] * 3]
            expected = model(same, **given).itm_logits.softmax(-1)[:, 1].tolist()
        assert [scores[label] for label in labels] == pytest.approx(expected, abs=1e-6)


def test_the_gate_compares_pipelines_and_processor(workdir, tmp_path, in_process):
    report = to_hf.export(workdir, tmp_path / "out", **QUIET)
    rows = {row.name: row for row in report.rows}
    for name in ("pipeline_itc", "pipeline_itm", "processor_pixel_values"):
        assert rows[f"real/{name}"].tolerance == TOLERANCE
    assert rows["real/processor_input_ids"].tolerance == 0


@pytest.mark.parametrize(
    ("file", "before", "after", "where"),
    [
        ("pipeline_nas.py", "_, scores = self", "scores, _ = self", "real/pipeline_itm"),
        (
            "pipeline_nas.py",
            '"truncation": True',
            '"add_special_tokens": False',
            "real/pipeline_itc",
        ),
        ("tokenizer_config.json", 'tion": true', 'tion": false', "real/processor_input_ids"),
    ],
)
def test_a_fault_in_what_the_hub_runs_is_refused(
    workdir, tmp_path, in_process, monkeypatch, file, before, after, where
):
    write_files = to_hf.write_files

    def faulty(folder, *arguments):
        write_files(folder, *arguments)
        text = (folder / file).read_text()
        assert before in text
        (folder / file).write_text(text.replace(before, after))

    monkeypatch.setattr(to_hf, "write_files", faulty)
    with pytest.raises(GateRefused, match=where):
        to_hf.export(workdir, tmp_path / "out", **QUIET)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("method", "positions", "works"),
    [
        (ClipConfig(towers="clip", text_dim=8), 20, True),
        (SiglipConfig(towers="siglip"), 64, True),
        (SiglipConfig(towers="siglip"), 20, False),
    ],
)
def test_plain_classes_work_in_the_plain_pipeline(method, positions, works, tmp_path, in_process):
    """Without code that travels; SigLIP's is told 64 tokens by transformers."""
    workdir = exports.save_dual(tmp_path / "run", method, positions=positions)
    report = to_hf.export(workdir, tmp_path / "out", **QUIET)
    names = {row.name for row in report.rows}
    assert ("real/pipeline_itc" in names) == works
    assert {"real/processor_pixel_values", "real/processor_input_ids"} <= names
    card = (tmp_path / "out/README.md").read_text()
    assert ('pipeline("zero-shot-image-classification"' in card) == works
    assert (
        gate_dual.has_pipeline({"kind": method.towers, "max_position_embeddings": positions})
        == works
    )


def test_where_codes_are_ties_the_pipeline_takes_those_of_the_other_side(folder):
    """Else two codes that are equally near would refuse a right export."""
    given = {
        "real/images": np.stack([resize(picture(), 16)]),
        "real/labels": np.asarray(json.dumps(["a dog", "red"])),
    }
    ours, task = {"trust_remote_code": True}, "image-text-matching"
    own = gate_torch._scores(task, str(folder), given, ours, ties=False)
    for code in (0, 1):
        given["real/code_ids"] = np.full((1, 16), code)
        other = gate_torch._scores(task, str(folder), given, ours, ties=True)
        assert np.abs(other - own).max() > 1e-3
