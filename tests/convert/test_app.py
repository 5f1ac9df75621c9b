"""app.py of an export: its scoring function, without gradio."""

from __future__ import annotations

import importlib.util
import io
import sys

import exports
import numpy as np
import pytest
import torch
from PIL import Image

from nas_jax.convert import to_hf
from nas_jax.methods.clip import ClipConfig

CAPTIONS = ["a circle", "  ", "a red square"]
PICTURE = Image.effect_mandelbrot((24, 16), (-2, -1.5, 1, 1.5), 30)  # grey, not square


def app_of(folder):
    """The module at folder/app.py."""
    spec = importlib.util.spec_from_file_location("app", folder / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["nas", "clip"])
def test_a_page_scores_captions_as_the_model_does(kind, tmp_path, in_process, monkeypatch):
    if kind == "nas":
        run = exports.save_nas(tmp_path / "run", exports.tokenizer())
    else:
        run = exports.save_dual(tmp_path / "run", ClipConfig(towers="clip", text_dim=8))
    to_hf.export(run, tmp_path / "out", say=lambda line: None)
    monkeypatch.setitem(sys.modules, "gradio", None)  # its import fails
    app = app_of(tmp_path / "out")
    model, processor = app.load()
    rows = app.score(model, processor, PICTURE, CAPTIONS)
    assert {row[0] for row in rows} == {"a circle", "a red square"}
    assert rows[0][-1] > rows[1][-1]
    texts = [row[0] for row in rows]
    given = processor(images=[PICTURE.convert("RGB")] * 2, text=texts, return_tensors="pt")
    with torch.inference_mode():
        output = model(**given)
    cosines = (output.image_embeds * output.text_embeds).sum(-1)
    assert [row[1] for row in rows] == pytest.approx(cosines.tolist(), abs=1e-5)
    if kind == "nas":
        matches = output.itm_logits.softmax(-1)[:, 1]
        assert [row[2] for row in rows] == pytest.approx(matches.tolist(), abs=1e-5)
    assert {len(row) for row in rows} == {3 if kind == "nas" else 2}
    assert app.score(model, processor, None, CAPTIONS) == []
    assert app.score(model, processor, PICTURE, [""]) == []
    with pytest.raises(ImportError):
        app.main()


def test_pictures_are_read_as_in_training():
    """A transparent one whose EXIF says that it is turned."""
    from nas_jax.convert.to_hf import FILES
    from nas_jax.data.image_ops import decode

    picture = Image.linear_gradient("L").resize((8, 6)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((8, 6)))
    exif = Image.Exif()
    exif[274] = 6  # orientation: turned by a quarter
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    expected = decode(file.getvalue())
    upright = app_of(FILES).upright(Image.open(file))
    assert expected.shape == (8, 6, 3)
    np.testing.assert_allclose(np.asarray(upright).astype(int), expected.astype(int), atol=1)
