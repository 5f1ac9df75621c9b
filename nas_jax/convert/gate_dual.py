"""The gate of an export as CLIPModel or SiglipModel: the same inputs, tolerance and PyTorch process
as in `gate`, for features and logits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.checkpoint.stored import nest
from nas_jax.convert.gate_apart import run_torch
from nas_jax.convert.gate_inputs import CASES, channels_first, make_inputs
from nas_jax.convert.gate_jax import processed
from nas_jax.convert.gate_rows import GateReport, compare, judge
from nas_jax.data.image_ops import resize
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.methods import make_method
from nas_jax.methods.clip import PUBLISHED
from nas_jax.methods.method import Setting
from nas_jax.models.towers import normalise_image
from nas_jax.train.trained import Trained

SIGLIP_TOKENS = 64


def check(
    export: Path,
    trained: Trained,
    facts: Mapping[str, Any],
    python: str = sys.executable,
    say: Callable[[str], None] = print,
) -> GateReport:
    """Compares an export with its checkpoint. Raises GateRefused where they differ.

    facts: see `hf_dual.facts_of`. python: the interpreter with torch and transformers.
    """
    with tempfile.TemporaryDirectory(prefix="nas_jax-gate-") as folder:
        inputs, theirs = Path(folder, "inputs.npz"), Path(folder, "torch.npz")
        given = dual_inputs(facts, trained.tokenizer)
        say("the gate: JAX")
        ours = run_jax(trained, facts, given)
        sent = {name: x for name, x in given.items() if not name.endswith("/pixels")}
        np.savez(inputs, **sent)  # type: ignore[arg-type]  # stub of allow_pickle
        say("the gate: PyTorch")
        run_torch([str(export), str(inputs), str(theirs)], python)
        with np.load(theirs) as right:
            rows = tuple(compare(ours, right, plain=False))
            found = json.loads(str(right["facts"]))
    report = GateReport(rows, found["transformers"], 0, found["peak_bytes"])
    judge(report, say)
    return report


def dual_inputs(facts: Mapping[str, Any], tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    """Those of `gate.make_inputs`, with the pixels of these towers.

    Random texts end where their mask ends: in CLIP with the end token, which stands nowhere else,
    in SigLIP with padding behind.
    """
    given = make_inputs(facts, tokenizer)
    given["real/pixels"] = np.asarray(_normalised(given["real/images"], facts))
    ids, mask = given["random/input_ids"], given["random/attention_mask"] > 0
    if facts["kind"] == "clip":
        ids = np.where(ids == tokenizer.sep_id, tokenizer.mask_id, ids)
        np.put_along_axis(ids, mask.sum(1, keepdims=True) - 1, tokenizer.sep_id, axis=1)
    given["random/input_ids"] = np.where(mask, ids, tokenizer.pad_id)
    return given if has_pipeline(facts) else _without_labels(given)


def has_pipeline(facts: Mapping[str, Any]) -> bool:
    """Whether transformers' zero-shot pipeline feeds the model as it was trained.

    It pads texts for SigLIP to 64 tokens, whatever the model has positions for.
    """
    return facts["kind"] == "clip" or facts["max_position_embeddings"] == SIGLIP_TOKENS


def _without_labels(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in given.items() if not name.startswith("real/label")}


def _normalised(images: np.ndarray, facts: Mapping[str, Any]) -> jax.Array:
    return normalise_image(images, *PUBLISHED[facts["kind"]].pixels)


def run_jax(
    trained: Trained, facts: Mapping[str, Any], given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Features and logits of both cases, by `case/name`, in float32."""
    model = replace(trained.model, dtype="float32")
    setting = Setting(trained.tokenizer.vocabulary())
    method = make_method(trained.method.config, model, setting)
    results: dict[str, np.ndarray] = {}
    with (
        jax.default_device(jax.local_devices(backend="cpu")[0]),
        jax.default_matmul_precision("highest"),
    ):
        read = (pair for group in trained.groups() for pair in trained.read(group))
        params = nest({name: jnp.asarray(array) for name, array in read})
        scale, bias = jnp.exp(params["logit_scale"]), params.get("logit_bias", 0.0)
        encode_image, encode_text = jax.jit(method.encode_image), jax.jit(method.encode_text)
        for case in CASES:
            pixels = given[f"{case}/pixels"]
            ids, mask = (
                given[f"{case}/{name}"][: len(pixels)] for name in ("input_ids", "attention_mask")
            )
            _, image = encode_image(params, {}, pixels)
            _, text = encode_text(params, ids.astype(np.int32), mask > 0)
            found = {
                "missing": np.zeros(()),
                "image_embeds": image,
                "text_embeds": text,
                "logits_per_image": scale * image @ text.T + bias,
            }
            results |= {f"{case}/{name}": np.asarray(array) for name, array in found.items()}
        if "real/labels" in given:
            ids, mask = given["real/label_ids"], given["real/label_mask"]
            _, text = encode_text(params, ids, mask)
            logits = scale * results["real/image_embeds"] @ text.T + bias
            to_scores = jax.nn.softmax if facts["kind"] == "clip" else jax.nn.sigmoid
            results["real/pipeline_itc"] = np.asarray(to_scores(logits))
    results["real/pixel_values"] = channels_first(given["real/pixels"])
    large = resize(given["real/large"], facts["image_size"])[None]
    results["real/resized"] = channels_first(np.asarray(_normalised(large, facts)))
    texts = ("input_ids", "attention_mask")
    results |= {f"real/{name}": given[f"real/{name}"] for name in texts}
    return results | processed(results, fills=facts["kind"] == "siglip")
