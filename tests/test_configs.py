"""Every recipe is built, reduced in size only, and stepped on data of its own kind; its report
opens in a browser.
"""

from __future__ import annotations

import io
import json
import runpy
import tarfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from browser import look
from PIL import Image, ImageDraw

from nas_jax import runner
from nas_jax.config import from_config_dict
from nas_jax.data.tokenizer import learn_wordpiece
from nas_jax.inspect.run import REPORT
from nas_jax.inspect.run import main as write_report
from nas_jax.methods import make_method
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.method import Setting
from nas_jax.methods.variants import VARIANTS
from nas_jax.parallel.mesh import MeshConfig
from nas_jax.typing import Vocabulary
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.trees import num_params

CONFIGS = Path(__file__).parents[1] / "configs"
ABLATIONS = ("demo", "emoji", "nas_base_4m")  # configs that take variant=
# configs of other methods; these take size=, and tests/methods trains them
METHOD_CONFIGS = sorted({path.stem for path in CONFIGS.glob("*.py")} - set(ABLATIONS))
IN_PAIRS = ("gnm", "svco")  # their scenes come in pairs that differ in one thing
WORDS = ("red", "blue", "cat", "dog", "runs", "sleeps", "left", "right")
STEPS = 4


def load(name: str, argument: str = ""):
    return from_config_dict(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](argument))


def caption(index: int) -> str:
    colour, animal, verb, side = index % 2, 2 + index // 2 % 2, 4 + index // 4 % 2, 6 + index % 2
    return f"a {WORDS[colour]} {WORDS[animal]} {WORDS[verb]} {WORDS[side]} {index}"


def png(index: int) -> bytes:
    """A red or blue face or box on white, of the emoji shards' size, but nobody's emoji."""
    picture = Image.new("RGB", (64, 64), "white")
    pen, x, y = ImageDraw.Draw(picture), 4 + index % 5 * 4, 4 + index // 5 % 5 * 4
    (pen.ellipse if index // 2 % 2 else pen.rectangle)(
        (x, y, x + 40, y + 40), WORDS[index % 2], "black", 3
    )
    for eye in (12, 26):
        pen.ellipse((x + eye, y + 12, x + eye + 4, y + 16), "white")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def emoji_folder(folder: Path) -> str:
    """The files of configs/emoji.py (docs/data.md), with pictures that are drawn here."""
    for artist in ("noto", "openmoji"):
        with tarfile.open(folder / f"{artist}.tar", "w") as tar:
            for index in range(60):
                record = json.dumps(
                    {"caption": caption(index), "captions": [caption(index)]}
                ).encode()
                for suffix, data in (("png", png(index)), ("json", record)):
                    info = tarfile.TarInfo(f"k{index}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        foils = [
            {"image": f"k{i}.png", "caption": caption(i), "foil": caption(i + 1), "category": "x"}
            for i in range(59)
        ]
        quads = [
            {
                "image_0": f"k{i}.png",
                "image_1": f"k{i + 1}.png",
                "caption_0": caption(i),
                "caption_1": caption(i + 1),
            }
            for i in range(0, 60, 2)
        ]
        for name, lines in (("foils", foils), ("quads", quads)):
            (folder / f"{artist}-{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def json_folder(folder: Path) -> str:
    for index in range(8):
        (folder / f"{index}.png").write_bytes(png(index))
    entries = [
        {"image": str(folder / f"{i}.png"), "caption": [caption(i), caption(i + 1)]}
        for i in range(8)
    ]
    for name in ("coco", "vg", "cc3m_train", "cc3m_val", "sbu"):
        (folder / f"{name}.json").write_text(json.dumps(entries))
    learn_wordpiece([caption(i) for i in range(9)], 100).save(folder / "tokenizer")
    return str(folder)


def reduced(run, **data):
    """The same recipe for a model of 16 units and batches of 2."""
    method = run.method
    method = replace(
        method,
        itc=replace(method.itc, queue_size=8),
        dictionary=replace(method.dictionary, codes=8),
        nva=replace(method.nva, start_epoch=0.0, neighbour_from=1, neighbours=3),
        nta=replace(method.nta, start_epoch=0.0),
    )
    return replace(
        run,
        data=replace(run.data, image_size=16, batch_size=2, workers=0, **data),
        model=replace(
            tiny.model(vocab_size=0, max_text_length=32),
            dtype=run.model.dtype,
            dropout=run.model.dropout,
        ),
        method=method,
        mesh=MeshConfig(data=1),
        train=replace(run.train, steps=STEPS, eval_every=2, checkpoint_every=2, log_every=1),
        eval=replace(run.eval, batch_size=16, max_images=4, max_pairs=4, rerank_k=2),
    )


@pytest.fixture(scope="module", params=ABLATIONS)
def trained(request, tmp_path_factory):
    """The name of a recipe, and the work directory of a run of it."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    prepare = {
        "demo": lambda: ("", {"num_train": 20}),
        "emoji": lambda: (f"folder={emoji_folder(folder)}", {}),
        "nas_base_4m": lambda: (
            f"folder={json_folder(folder)}",
            {"tokenizer": str(folder / "tokenizer")},
        ),
    }
    argument, data = prepare.get(name, prepare["demo"])()
    assert runner.train(reduced(load(name, argument), **data), folder / "run") == 0
    return name, folder / "run"


def entries(workdir: Path) -> list[dict]:
    """What the run wrote of its steps."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_config_builds_and_steps(trained):
    losses = [entry["loss"] for entry in entries(trained[1])]
    assert len(losses) == STEPS and np.isfinite(losses).all()


def test_the_report_of_the_run_opens_in_a_browser(trained, tmp_path, capsys):
    name, workdir = trained
    assert write_report([str(workdir)]) == 0
    assert capsys.readouterr().out.startswith(f"finished at step {STEPS}\n")
    seen = look((workdir / REPORT).read_text(), tmp_path)
    assert seen["asked"] == seen["requests"] == seen["blocked"] == []
    charts = {chart["title"]: chart for chart in seen["charts"]}
    assert {
        "Losses by part",
        "Temperature",
        "Dictionary: perplexity",
        "Pairs a second",
    } <= charts.keys()
    assert all(chart["lines"] and min(chart["lines"]) > 100 for chart in charts.values())  # pixels
    last = entries(workdir)[-1]
    assert charts["Loss"]["tip"] == [
        f"step {STEPS}",
        f"loss {float(format(last['loss'], '.4g')):g}",
    ]
    assert (
        len(charts["Gradient norm by module"]["lines"])
        == sum(key.startswith("grad_norm/") for key in last)
        > 5
    )
    assert seen["rows"]["checkpoints"] == 1 + 2 and seen["rows"]["summary"] > 8
    if name == "nas_base_4m":  # holds nothing out: neither evaluations nor a picture
        return
    metrics = json.loads((workdir / f"evals/{STEPS}.json").read_text())["metrics"]
    tables = {tuple(metric["key"].split("/")[:2]) for metric in metrics}
    assert seen["rows"]["results"] == len(metrics) + len(tables) > 20
    assert (
        len(charts["val: retrieval, R@1"]["lines"]) == 4
        and charts["val: foils, itm"]["tip"][0] == f"step {STEPS}"
    )
    ((width, height, shown),) = seen["pictures"]
    assert min(width, height) > 500 and shown > 500


@pytest.mark.parametrize("size", ["scenes", "base"])
@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_the_config_of_a_method_has_both_sizes(name, size):
    """Both have parameters, and on scenes all share data, model and optimizer."""
    run = load(name, f"size={size}")
    assert run.method.name == name
    run.method.check_batch(run.data.batch_size)
    method = make_method(run.method, run.model, Setting(Vocabulary.blank(30522)))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    assert (num_params(params) > 1e8) == (size == "base")
    if size == "scenes":
        demo = load("demo")
        if name in IN_PAIRS:
            pairs = {"siblings": 2, "scene_variations": True}
            demo = replace(demo, data=replace(demo.data, **pairs))
        for section in ("data", "model", "optimizer", "train"):
            assert getattr(run, section) == getattr(demo, section)
    with pytest.raises(ConfigError, match="scenes or base"):
        load(name, "size=huge")


@pytest.mark.parametrize("name", ABLATIONS)
def test_variants_differ_in_their_switches_only(name):
    nas = load(name)
    for variant, switches in VARIANTS.items():
        run = load(name, f"variant={variant}")
        for section in ("data", "model", "optimizer", "train"):
            assert getattr(run, section) == getattr(nas, section)
        common = {"momentum", "alpha", "alpha_ramp_epochs", "itc"}
        assert all(getattr(run.method, one) == getattr(nas.method, one) for one in common)
        if variant == "albef":  # the paper itself, without a field of NAS
            assert type(run.method) is AlbefConfig and run.method.name == "albef"
            assert run.method.mlm.max_masked == nas.method.mlm.max_masked
        else:
            assert {part: getattr(run.method, part).enabled for part in switches} == switches
    with pytest.raises(ConfigError, match="variant='nass'; expected one of albef"):
        load(name, "variant=nass")
    whole, authors = (load(name, f"nva={form}").method for form in ("whole", "authors"))
    assert (whole.nva.replace, authors.nva.replace) == ("whole", "code")
    assert replace(whole, nva=authors.nva) == authors
    assert 0 < whole.nva.neighbour_from < whole.dictionary.codes / 4
    with pytest.raises(ConfigError, match="nva='hole'; expected one of whole, authors"):
        load(name, "nva=hole")
    with pytest.raises(ConfigError, match="config argument 'varient=nas'"):
        load(name, "varient=nas")


def test_the_paper_config_is_the_authors_recipe():
    run = load("nas_base_4m")
    model, method, optimizer = run.model, run.method, run.optimizer
    assert (model.dim, model.image_layers, model.text_layers, model.fusion_layers) == (
        768,
        12,
        6,
        6,
    )
    assert (method.dictionary.codes, method.itc.queue_size) == (2048, 65536)
    assert (run.data.batch_size, run.train.epochs) == (512, 31)
    assert (optimizer.lr, optimizer.lr_min, optimizer.weight_decay) == (1e-4, 1e-5, 0.02)
    assert (method.nva.start_epoch, optimizer.cosine_epochs) == (30.0, 30)
    # As many parameters as the authors' model has (211.1 M), the codebook aside; NTA's generator
    # head is ours.
    built = make_method(method, model, Setting(Vocabulary.blank(30522)))
    params, _ = jax.eval_shape(built.init, jax.random.key(0))
    assert round((num_params(params) - num_params(params["generator_head"])) / 1e6, 1) == 211.1
