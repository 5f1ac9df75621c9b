"""What `to-hf --also` adds: ONNX files and sentence-transformers; what passes, what is refused, and
the use that the documentation shows, without nas_jax.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import exports
import numpy as np
import onnx
import pytest
from PIL import Image
from transformers import AutoModel

from nas_jax.convert import (
    export,
    gate,
    gate_inputs,
    gate_rows,
    onnx_out,
    onnx_run,
    onnx_torch,
    sentence_out,
    sentence_run,
    to_hf,
)
from nas_jax.methods.clip import ClipConfig, SiglipConfig
from nas_jax.utils.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs/conversion_out.md"
BOTH = ("onnx", "sentence-transformers")
DUAL = {"clip": ClipConfig(towers="clip", text_dim=8), "siglip": SiglipConfig(towers="siglip")}
OUTPUTS = ("image_embeds", "image_tokens", "code_ids", "text_embeds", "text_tokens", "itm_logits")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An export of NAS with both, by way of all the processes; and what was said."""
    place, said = tmp_path_factory.mktemp("made"), []
    exports.save_nas(place / "run", exports.tokenizer())
    to_hf.export(place / "run", place / "out", also=BOTH, say=said.append)
    return place, "\n".join(said)


@pytest.fixture(scope="module")
def expected(made):
    """What the gate gives JAX, and what JAX gives."""
    place, _ = made
    return export.jax_side(unchecked(place / "run", place / "out"))


def unchecked(workdir, folder):
    """An export as a writer gets it."""
    trained = to_hf.open_trained(workdir)
    facts = to_hf.export_config(trained, trained.tokenizer)
    return export.Export(folder, trained, "nas", facts, None, "", sys.executable, print)


def snippet(heading: str) -> str:
    """The Python code below a heading of the page."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def use(heading, made, expected, imports, blocked):
    """Runs the code of the page in a process of its own on the gate's pictures; its arrays."""
    place, given = made[0], expected[0]
    for number, picture in enumerate(given["real/images"]):
        Image.fromarray(picture).save(place / f"{number}.png")
    captions = json.loads(str(given["real/captions"]))[:2]
    code = f"""
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
sys.modules.update(dict.fromkeys({blocked!r}))
{imports}
pictures, captions = [Image.open(f"{place}/{{n}}.png") for n in (0, 1)], {captions!r}
{snippet(heading).replace("exports/demo", str(place / "out"))}
known = {{name: np.asarray(value) for name, value in globals().items()
         if name in ("cosines", "logits", "probabilities")}}
np.savez("{place}/used.npz", **known)
"""
    where = {"HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env=where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(place / "used.npz") as file:
        return dict(file)


def close(found, wanted):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


# ------------------------------------------------------------------------------------------- passes


def test_both_pass_and_stand_in_the_card(made):
    place, said = made
    for case in ("random", "real"):
        assert all(f"{case}/onnx {name} " in said for name in OUTPUTS)
    assert all(f"real/sentence {name} " in said for name in ("image_embeds", "scores"))
    card = (place / "out/README.md").read_text()
    assert "(`image.onnx`, `match.onnx`, `text.onnx`)" in card
    assert "as bi-encoder and as cross-encoder" in card
    for path in place.glob("out/onnx/*"):  # no file of the machine that wrote it is named
        assert b".py" not in path.read_bytes() and str(place).encode() not in path.read_bytes()


def test_onnx_files_are_used_as_on_the_page(made, expected):
    imports = "from onnxruntime import InferenceSession\nfrom tokenizers import Tokenizer"
    used = use("ONNX", made, expected, imports, ("nas_jax", "jax", "torch", "transformers"))
    ours = expected[1]
    close(used["cosines"], ours["real/image_embeds"] @ ours["real/text_embeds"].T)
    close(used["logits"], ours["real/itm_logits"])


def test_sentence_transformers_is_used_as_on_the_page(made, expected):
    imports = "from sentence_transformers import CrossEncoder, SentenceTransformer"
    used = use("sentence-transformers", made, expected, imports, ("nas_jax", "jax"))
    ours = expected[1]
    close(used["cosines"], ours["real/image_embeds"] @ ours["real/text_embeds"].T)
    first = ours["real/itm_logits"][0]  # picture 0 with caption 0
    close(used["probabilities"][:1], 1 / (1 + np.exp(first[:1] - first[1:])))


@pytest.mark.parametrize("kind", DUAL)
def test_clip_and_siglip_pass(kind, tmp_path, in_process, monkeypatch):
    def here(script, arguments, *rest):
        """The processes of their own, in this one."""
        place, *files = arguments
        if Path(script).stem == "onnx_torch":
            onnx_torch.write(AutoModel.from_pretrained(place).eval(), Path(files[0]))
            return
        with np.load(files[0]) as given:
            onnx = Path(script).stem == "onnx_run"
            found = onnx_run.run(Path(place), given) if onnx else sentence_run.run(place, given)
        np.savez(files[1], **{"version": "1"} | found)

    monkeypatch.setattr(onnx_out, "run_apart", here)
    monkeypatch.setattr(sentence_out, "run_apart", here)
    said = []
    exports.save_dual(tmp_path / "run", DUAL[kind])
    to_hf.export(tmp_path / "run", tmp_path / "out", also=BOTH, say=said.append)
    said = "\n".join(said)
    for row in ("random/onnx image_embeds", "real/onnx text_embeds", "real/sentence text_embeds"):
        assert f"{row} " in said
    assert not list(tmp_path.glob("out/*nas*.py"))


# --------------------------------------------------------------------------------------- is refused


@pytest.mark.parametrize("part", ["image", "text", "match"])
def test_a_changed_weight_is_refused(part, made, expected, tmp_path, in_process, monkeypatch):
    """One tensor of one ONNX file: exit status, name of the output, nothing left."""
    place, _ = made

    def faulty(made, folder):
        shutil.copytree(place / "out/onnx", folder)
        model = onnx.load(folder / f"{part}.onnx")
        kernels = (tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        kernel = max(kernels, key=lambda tensor: np.prod(tensor.dims))
        values = onnx.numpy_helper.to_array(kernel)
        kernel.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), kernel.name))
        onnx.save(model, folder / f"{part}.onnx")

    monkeypatch.setattr(onnx_out, "make", faulty)
    monkeypatch.setattr(gate, "run_jax", lambda *given: expected[1])
    with pytest.raises(gate_rows.GateRefused, match="first in random/onnx (text|image|itm)_"):
        to_hf.export(place / "run", tmp_path / "out", also=["onnx"], say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_changed_module_is_refused(made, expected, tmp_path, in_process, monkeypatch):
    place, _ = made
    code = sentence_out.CODE.read_text()
    (tmp_path / "code").mkdir()
    changed = tmp_path / "code/nas_sentence.py"
    changed.write_text(code.replace("image_tokens, _ = self.model.look_up(image_tokens)", "pass"))
    assert changed.read_text() != code
    monkeypatch.setattr(sentence_out, "CODE", changed)
    monkeypatch.setattr(gate, "run_jax", lambda *given: expected[1])
    with pytest.raises(gate_rows.GateRefused, match="first in real/sentence scores"):
        to_hf.export(place / "run", tmp_path / "out", also=BOTH[1:], say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["code"]


@pytest.mark.parametrize(("name", "extra"), [("onnx", "onnx"), (BOTH[1], "sentence")])
def test_a_missing_package_is_one_line_before_anything_is_written(
    name, extra, made, tmp_path, monkeypatch
):
    assert export.missing(["numpy", "no_such_package"], sys.executable) == ["no_such_package"]
    monkeypatch.setattr(onnx_out, "missing", lambda packages, python: list(packages[1:]))
    monkeypatch.setattr(sentence_out, "missing", lambda packages, python: packages)
    with pytest.raises(ConfigError, match=rf"--also {name} without .*pip install.*{extra}\]'"):
        to_hf.export(made[0] / "run", tmp_path / "out", also=[name], say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_equally_near_codes_are_ties_and_others_are_not():
    codes_KxD = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]], np.float32)
    features = np.array([[[0.0, 1.0]]], np.float32)
    distances = np.square(features[:, :, None] - codes_KxD).sum(-1)
    tokens = np.ones((1, 2, 3), np.float32)
    ours = {
        f"{case}/{name}": array
        for case in gate_inputs.CASES
        for name, array in {
            "distances": distances,
            "features": features,
            "dictionary_tokens": tokens,
            "image_tokens": tokens,
            "code_ids": np.array([[0]]),
        }.items()
    }
    other = tokens * np.array([1, 9], np.float32)[:, None]  # another code, another token
    for code, wrong, ties in ((0, 0, 0), (1, 0, 2), (2, 1, 0)):
        theirs = {
            f"{case}/{name}": array
            for case in gate_inputs.CASES
            for name, array in {
                "code_ids": np.array([[code]]),
                "image_tokens": other if code else tokens,
            }.items()
        }
        rows, found = onnx_out.compare(ours, theirs, codes_KxD)
        assert (rows[0].error, found) == (wrong, ties)
        assert rows[1].passed == (code != 2)
