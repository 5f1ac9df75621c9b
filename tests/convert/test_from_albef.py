"""ALBEF's state dicts: in with equal numbers, back with equal bits, and nothing that is not
accounted for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import torch

from benchmarks import parity
from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.checkpoint.surgery import resize_image_positions
from nas_jax.convert import folder
from nas_jax.methods import METHODS, make_method
from nas_jax.methods.method import Method
from nas_jax.models.codebook import DictionaryState
from nas_jax.parallel.mesh import MeshConfig, make_mesh
from nas_jax.parallel.rules import state_shardings
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.start import SavedState, with_weights
from nas_jax.train.state import init_state
from nas_jax.utils.errors import ConfigError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "nas_step.npz"


def save(path, tensors, **beside):
    torch.save({"model": tensors} | beside if beside else tensors, path)
    return path


@pytest.fixture(scope="module")
def converted(recorded, sizes, tmp_path_factory):
    """The recorded weights as a folder of ours, and its .pth file."""
    from nas_jax.convert.__main__ import main

    place = tmp_path_factory.mktemp("recorded")
    file = save(
        place / "step.pth", recorded, optimizer={"state": {}}, config={"epochs": 30}, epoch=3
    )
    assert main(["from-albef", str(file), "--sizes", sizes, "--out", str(place / "weights")]) == 0
    return place / "weights", file


def equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), one, two)


def test_the_recorded_outputs_are_reproduced(converted):
    weights, _, _ = folder.read(converted[0])
    recorded = parity.load(FIXTURE)
    method = make_method(weights.method, weights.model, recorded.method.setting)
    state = {"dictionary": DictionaryState(**weights.state["dictionary"])}
    batch = recorded.batch

    @jax.jit
    def outputs(params, state):
        image_tokens, _ = method.encode_image(params, state, batch["image_BxHxWx3"])
        texts = batch["token_ids_BxL"], batch["token_mask_BxL"]
        text_tokens, _ = method.encode_text(params, *texts)
        scores = method.score(params, image_tokens, text_tokens[:, None], texts[1][:, None])
        match, margin = scores["itm_logit"][:, 0], scores["itm"][:, 0]
        return image_tokens, text_tokens, jax.numpy.stack([match - margin, match], axis=1)

    with jax.default_matmul_precision("highest"):
        image_tokens, text_tokens, logits = outputs(weights.params, state)
    out = recorded.arrays
    pairs = len(logits)
    for ours, theirs in (
        (image_tokens[:, 0], out["out/image_tokens"][:, 0]),
        (image_tokens[:, 1:], out["out/dictionary_tokens"]),
        (text_tokens, out["out/text_tokens"]),
        (logits, out["out/itm_logits_pos_nva_negimage_negtext"][:pairs]),
    ):
        assert parity.scaled_error(ours, theirs) < 1e-4
    # And what no forward pass reads: the teacher, the queues, the statistics of the dictionary.
    equal(weights.params, jax.device_get(recorded.params))
    theirs = jax.device_get(recorded.state)
    theirs = {"teacher": theirs["teacher"]} | {
        name: dict(vars(theirs[name])) for name in ("queue", "dictionary")
    }
    assert weights.state["dictionary"].pop("step") == 1  # past its start from data
    assert theirs["dictionary"].pop("step") == 0
    equal(weights.state, theirs)


def pretraining(state):
    return state


def retrieval(state):
    """BERT without a name of its own and without its head, a queue of picture numbers, from several
    devices.
    """
    state = {
        re.sub(r"(text_encoder(_m)?\.)bert\.", r"\1", name): tensor
        for name, tensor in state.items()
    }
    state = {name: tensor for name, tensor in state.items() if ".cls.predictions." not in name}
    state["idx_queue"] = torch.full((1, 36), -100)
    state["text_encoder.embeddings.position_ids"] = torch.arange(32)[None]
    return {f"module.{name}": tensor for name, tensor in state.items()}


def entailment(state):
    """Two encoders and a classifier; no teacher, queue, projection or dictionary."""
    keep = ("visual_encoder.", "text_encoder.")
    state = {
        name: tensor
        for name, tensor in retrieval(state).items()
        if name.removeprefix("module.").startswith(keep)
    }
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state | {"cls_head.0.weight": torch.ones(48, 48), "cls_head.2.bias": torch.ones(3)}


def half(state):
    """Saved in bfloat16, with the tied copies that the network has."""
    state = {
        name: tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
        for name, tensor in state.items()
    }
    state["text_encoder.cls.predictions.decoder.weight"] = state[
        "text_encoder.bert.embeddings.word_embeddings.weight"
    ]
    state["text_encoder.cls.predictions.decoder.bias"] = state["text_encoder.cls.predictions.bias"]
    return state


@pytest.mark.parametrize("kind", [pretraining, retrieval, entailment, half])
def test_there_and_back_are_the_same_bits(kind, recorded, sizes, convert, tmp_path):
    state = kind(recorded)
    file = save(tmp_path / "a.pth", state)
    code, printed = convert("from-albef", file, "--sizes", sizes, "--out", tmp_path / "weights")
    assert code == 0, printed
    assert convert("to-albef", tmp_path / "weights", "--out", tmp_path / "b.pth")[0] == 0
    back = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    rows = json.loads((tmp_path / "weights/conversion.json").read_text())["tensors"]
    assert len(rows) == len(state) and all(
        row["action"] in ("used", "tied", "unused") for row in rows
    )
    assert all(row["to"] for row in rows if row["action"] == "used")
    if kind is entailment:
        assert (
            "new     image_proj/... (2 arrays)" in printed
            and "classifier of a fine-tuned task" in printed
        )
        assert folder.read(tmp_path / "weights")[0].state == {}


def test_a_run_of_ours_goes_out_as_the_authors_load_it(converted, convert, tmp_path):
    """Without conversion.json: the tied copies and counters that their strict loading asks for are
    there.
    """
    for name in ("conversion.json", "unused.npz"):
        os.rename(converted[0] / name, tmp_path / name)
    code, _ = convert("to-albef", converted[0], "--out", tmp_path / "b.pth")
    for name in ("conversion.json", "unused.npz"):
        os.rename(tmp_path / name, converted[0] / name)
    assert code == 0
    state = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    original = torch.load(converted[1], weights_only=True)["model"]
    assert {name.replace("encoder_m.", "encoder.") for name in state.keys() - original.keys()} == {
        "text_encoder.cls.predictions.decoder.weight",
        "text_encoder.cls.predictions.decoder.bias",
        "text_encoder.bert.embeddings.position_ids",
    }
    assert all(
        torch.equal(state[name], original[name]) for name in original if "cluster_sum" not in name
    )
    code, printed = convert("to-albef", converted[0], "--out", tmp_path / "b.pth")
    assert code == 4 and "there already" in printed


def test_a_method_that_albefs_code_does_not_have_is_refused(
    converted, convert, tmp_path, monkeypatch
):
    monkeypatch.setitem(METHODS, "other", Method)
    shutil.copytree(converted[0], tmp_path / "w")
    config = json.loads((tmp_path / "w/config.json").read_text())
    (tmp_path / "w/config.json").write_text(json.dumps(config | {"method": {"name": "other"}}))
    code, printed = convert("to-albef", tmp_path / "w", "--out", tmp_path / "b.pth")
    assert code == 2 and printed.count("\n") == 1 and not (tmp_path / "b.pth").exists()
    assert "the method other; expected albef or nas" in printed


def test_another_size_of_picture(converted, sizes, convert, tmp_path):
    code, printed = convert(
        "from-albef", converted[1], "--sizes", sizes, "--image-size", 96, "--out", tmp_path / "w"
    )
    assert code == 0 and "64 -> 96 pixels" in printed
    large, small = folder.read(tmp_path / "w")[0], folder.read(converted[0])[0]
    assert large.model.image_size == 96
    for ours, theirs in (
        (large.params, small.params),
        (large.state["teacher"], small.state["teacher"]),
    ):
        position_1xTxD = theirs["image_encoder"]["position_embedding"]
        np.testing.assert_array_equal(
            ours["image_encoder"]["position_embedding"], resize_image_positions(position_1xTxD, 37)
        )


def test_a_run_starts_from_the_folder_with_every_array_in_its_place(converted):
    """On a mesh of 2: read sharded; teacher and queues only where they are asked for."""
    weights, _, _ = folder.read(converted[0])
    optimizer, _ = make_optimizer(OptimizerConfig(schedule="smooth"), 100, 10)
    method = make_method(weights.method, weights.model, tiny.setting())
    shapes = jax.eval_shape(lambda: init_state(method, optimizer, 0))
    shardings = state_shardings(shapes, make_mesh(MeshConfig(fsdp=2)))
    fresh = jax.tree.map(
        lambda leaf, sharding: jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding),
        shapes,
        shardings,
    )
    with CheckpointManager(converted[0] / "checkpoints", read_only=True) as manager:
        said = []
        saved = SavedState(manager, shardings, whole=False, say=said.append)
        read = saved.restore("params", fresh.params, shardings.params)
        assert jax.tree.all(
            jax.tree.map(lambda leaf, there: leaf.sharding == there, read, dict(shardings.params))
        )
        for state_too, teacher in ((False, weights.params), (True, weights.state["teacher"])):
            saved = SavedState(manager, shardings, state_too, said.append)
            state = with_weights(fresh, shardings, saved, method.start_from)
            equal(jax.device_get(state.params), weights.params)
            found = jax.device_get(state.method_state)
            equal(found["teacher"]["text_proj"], teacher["text_proj"])
            saved_QxE = weights.state["queue"]["image_QxE"]
            queue_QxE = saved_QxE if state_too else np.zeros((36, 32), np.float32)
            np.testing.assert_array_equal(found["queue"].image_QxE, queue_QxE)
            np.testing.assert_array_equal(
                found["dictionary"].codes_KxD, weights.state["dictionary"]["codes_KxD"]
            )
        assert "new" not in " ".join(said)
    with pytest.raises(ConfigError, match="without train.weights"):
        TrainConfig(weights_state=True).validate()


class Code:
    """Runs when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_a_pickle_with_code_is_refused_and_does_not_run(recorded, convert, tmp_path):
    for legacy in (False, True):
        file = tmp_path / f"bad{legacy}.pth"
        torch.save(
            {"model": recorded, "x": Code(tmp_path / "ran")},
            file,
            _use_new_zipfile_serialization=not legacy,
        )
        code, printed = convert("from-albef", file, "--out", tmp_path / "w")
        assert (
            code == 4
            and "would run code" in printed
            and "system" in printed
            and printed.count("\n") == 1
        )
    assert not (tmp_path / "ran").exists() and not (tmp_path / "w").exists()


def without(name):
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def with_(name, tensor):
    return lambda state: state | {name: tensor}


QUERY = "text_encoder.bert.encoder.layer.2.crossattention.self.query"
CASES = [
    (without(f"{QUERY}.bias"), {}, 4, f"without '{QUERY}.bias'"),
    (without("visual_encoder_m.norm.bias"), {}, 4, "without 'visual_encoder_m.norm.bias'"),
    (
        with_("neck.extra.weight", torch.ones(3)),
        {},
        4,
        "'neck.extra.weight', which this model has no place for",
    ),
    (with_(f"{QUERY}.weight", torch.ones(48, 32)), {}, 4, r"[48, 32] in a.pth; expected [48, 48]"),
    (
        with_("text_encoder.bert.embeddings.word_embeddings.weight", torch.ones(170, 48)),
        {},
        4,
        "expected [170]",
    ),
    (
        with_("text_encoder.cls.predictions.decoder.weight", torch.ones(160, 48)),
        {},
        4,
        "tied to the word",
    ),
    (
        with_("visual_encoder.pos_embed", torch.ones(1, 18, 48)),
        {},
        4,
        "no distillation or register tokens",
    ),
    (without("visual_encoder.cls_token"), {}, 4, "use from-hf"),
    (
        pretraining,
        {"sizes": {"heads": 4, "vocab_size": 30522}},
        2,
        "vocab_size=30522 in the sizes file, and 160 by",
    ),
    (pretraining, {"sizes": {"heads": 5}}, 2, "heads that divide dim"),
    (pretraining, {"sizes": {"head": 4}}, 2, "'head' in"),
    (pretraining, {"sizes": None}, 2, "do not tell the number of heads"),
    (
        pretraining,
        {"flags": ("--tokenizer", "TOKENIZER")},
        3,
        "with 6 words; expected the 160 rows",
    ),
    (pretraining, {"flags": ("--image-size", "70")}, 2, "a multiple of the patch size"),
    (pretraining, {"flags": ("--imagesize", "96")}, 2, "unrecognized arguments"),
]


@pytest.mark.parametrize(
    ("change", "given", "code", "says"), CASES, ids=[case[3] for case in CASES]
)
def test_what_does_not_fit_is_one_line(change, given, code, says, recorded, convert, tmp_path):
    file, sizes = save(tmp_path / "a.pth", change(recorded)), given.get("sizes", {"heads": 4})
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (tmp_path / "s.json").write_text(json.dumps(sizes))
    flags = [
        flag.replace("TOKENIZER", str(tmp_path / "tokenizer")) for flag in given.get("flags", ())
    ]
    flags += ["--sizes", tmp_path / "s.json"] if sizes else []
    got, printed = convert("from-albef", file, "--out", tmp_path / "w", *flags)
    lines = [line for line in printed.splitlines() if line.startswith("error")]
    assert got == code and len(lines) == 1 and says in lines[0], printed
    assert "Traceback" not in printed and not list(tmp_path.glob("w*"))


def test_leftovers_can_be_left_out_and_a_network_for_two_pictures_cannot(
    recorded, sizes, convert, tmp_path
):
    file = save(tmp_path / "a.pth", recorded | {"extra.a": torch.ones(1), "extra.b": torch.ones(1)})
    code, printed = convert(
        "from-albef", file, "--sizes", sizes, "--out", tmp_path / "w", "--ignore", "extra."
    )
    assert code == 0 and printed.count("left out by --ignore") == 2
    key = "text_encoder.bert.encoder.layer.{}.crossattention.self.key.weight"
    file = save(tmp_path / "b.pth", recorded | {key.format(3): recorded[key.format(2)]})
    code, printed = convert("from-albef", file, "--sizes", sizes, "--out", tmp_path / "w2")
    assert code == 4 and "NLVR2" in printed
    code, printed = convert("from-albef", file, "--sizes", sizes, "--out", tmp_path / "w")
    assert code == 4 and "there already" in printed


def test_files_that_are_none(recorded, convert, tmp_path):
    whole = save(tmp_path / "a.pth", recorded).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "junk.pth").write_bytes(b"junk")  # a pickle's opcode, and less than it wants
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    for name, code, says in (
        ("none.pth", 3, "no file"),
        (".", 3, "a folder"),
        ("cut.pth", 4, "cannot be read"),
        ("text.pth", 4, "cannot be read"),
        ("empty.pth", 4, "cannot be read"),
        ("junk.pth", 4, "cannot be read"),
        ("list.pth", 4, "without a state dict (list)"),
        ("epoch.pth", 4, "without a state dict (epoch)"),
    ):
        got, printed = convert("from-albef", tmp_path / name, "--out", tmp_path / "w")
        assert got == code and says in printed and printed.count("\n") == 1, (name, printed)
