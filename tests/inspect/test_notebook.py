"""The cells of notebooks/look.ipynb run in their order, as they stand, without Jupyter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "notebooks/look.ipynb"


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_every_cell_runs(workdir, capsys):
    run, folder = workdir
    before = '"../runs/demo"'
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    assert sum(source.count(before) for source in sources) == 1
    names: dict = {"__name__": "notebook"}
    for number, source in enumerate(sources):
        source = source.replace(before, repr(str(folder)))
        exec(compile(source, f"code cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert f"{run.name} at step 4: nas" in said and "itc, itm" in said
    for name in ("words.png", "nva.png"):
        assert min(Image.open(names["OUT"] / name).size) > 100
    # the table is that of two encoders and a fusion encoder, on the caption and picture it names
    scores, text = names["scores"], names["captions"][2]
    again = scores.scores("itm", np.array([0]), scores.text_indices([text]))
    assert names["table"]["itm"][2] == again[0] and text in said
    assert names["similarity_RxC"].shape == (32, 32)


def test_nothing_of_a_run_is_kept():
    """No output, number of execution, or place on a machine."""
    for cell in cells():
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert cell["metadata"] == {}
