"""Replays a training step recorded from the NAS authors' PyTorch code, and compares every array.

    python -m benchmarks.parity tests/fixtures/nas_step.npz

The file holds weights, batch, random draws, intermediate arrays, losses and gradients of one step
at any size (see docs/parity.md for its keys). Prints the largest error of each group of arrays
beside its tolerance, and exits 1 when one is above it. Imports jax, flax, optax and numpy only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.convert.albef_names import student_entries, to_ours, to_torch, tower_entries
from nas_jax.kernels.image_tokens import ImageTokens
from nas_jax.losses.itc import QueueState
from nas_jax.losses.mlm import MaskedText
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.method import MethodState, Setting
from nas_jax.methods.nas import Fgitm, Nas, NasConfig, Stage
from nas_jax.methods.terms import Seen, further_texts
from nas_jax.models.codebook import (
    DictionaryConfig,
    DictionaryState,
    ema_update,
    nearest_code,
    squared_distances,
)
from nas_jax.models.sizes import ModelConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig, neighbour_codes
from nas_jax.typing import Array, Batch, Params, Vocabulary

STAGE = Stage(nva=True, nta=False, dictionary_frozen=True)


class Row(NamedTuple):
    """The worst array of a group."""

    group: str
    arrays: int
    worst: str
    error: float  # in the unit that the tolerance is stated in
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.error <= self.tolerance


class Recorded(NamedTuple):
    """A recorded file in this project's terms."""

    arrays: Mapping[str, np.ndarray]
    method: Nas
    model: ModelConfig
    params: Params
    state: MethodState
    batch: Batch
    draw: Draws


def load(path: str) -> Recorded:
    """Reads sizes, weights, batch and draws of a recorded file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    sizes = json.loads(bytes(arrays["config"]))
    weights = {
        name.removeprefix("weights/"): array
        for name, array in arrays.items()
        if name.startswith("weights/")
    }
    model = ModelConfig(
        dim=sizes["dim"],
        heads=sizes["heads"],
        image_layers=sizes["depth"],
        text_layers=sizes["fusion"],
        fusion_layers=sizes["layers"] - sizes["fusion"],
        image_size=sizes["image_res"],
        patch_size=weights["visual_encoder.patch_embed.proj.weight"].shape[-1],
        vocab_size=sizes["vocab"],
        max_text_length=weights["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0],
        embed_dim=sizes["embed_dim"],
        dropout=0.0,
    )
    neighbours = arrays["out/neighbour_ids"].shape[-1]
    config = NasConfig(
        momentum=sizes["momentum"],
        alpha=float(arrays["in/alpha"]),
        alpha_ramp_epochs=0.0,
        itc=ItcConfig(queue_size=sizes["queue"]),
        dictionary=DictionaryConfig(codes=sizes["codes"], literal=True),
        nva=NvaConfig(
            neighbours=neighbours, object_candidates=arrays["out/object_candidates"].shape[-1]
        ),
        nta=NtaConfig(enabled=False),
    )
    nothing_V = np.zeros(sizes["vocab"], bool)
    vocabulary = Vocabulary(sizes["vocab"], 0, 101, 102, 103, nothing_V, nothing_V, nothing_V)
    method = Nas.build(config, model, Setting(vocabulary))

    params = to_ours(student_entries(model, dictionary=True), weights)
    teacher = to_ours(list(tower_entries(model, "_m")), weights)
    queue = QueueState(
        weights["image_queue"].T,
        weights["text_queue"].T,
        np.full(sizes["queue"], -1, np.int32),
        np.int32(weights["queue_ptr"][0]),
    )
    codes = weights["neck.vq.embed"]
    dictionary = DictionaryState(
        codes_KxD=codes,
        counts_K=weights["neck.vq.cluster_size"],
        sums_KxD=weights["neck.vq.embed_avg"],
        last_use_K=np.full(len(codes), -1, np.int32),
        step=np.int32(0),
    )
    state = {"teacher": teacher, "queue": queue, "dictionary": dictionary}
    state = jax.tree.map(jnp.asarray, state)

    batch_size = len(arrays["in/image"])
    batch = {
        "image_BxHxWx3": jnp.asarray(arrays["in/image"].transpose(0, 2, 3, 1)),
        "token_ids_BxL": jnp.asarray(arrays["in/input_ids"], jnp.int32),
        "token_mask_BxL": jnp.asarray(arrays["in/attention_mask"] > 0),
        "image_id_B": jnp.arange(batch_size, dtype=jnp.int32),
    }
    rows, object_B = np.arange(batch_size), arrays["draw/object_patch_BxU"][:, 0]
    labels = arrays["draw/mlm_labels"]
    recorded = {
        "object_patch_B": jnp.asarray(object_B[:, None], jnp.int32),
        "code_B": jnp.asarray(
            arrays["out/neighbour_ids"][
                rows, object_B, arrays["draw/neighbour_choice"][rows, object_B]
            ],
            jnp.int32,
        ),
        "negative_image_B": jnp.asarray(arrays["draw/negative_image"], jnp.int32),
        "negative_text_B": jnp.asarray(arrays["draw/negative_text"], jnp.int32),
        "masked": MaskedText(
            jnp.asarray(arrays["draw/mlm_input_ids"], jnp.int32),
            jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape),
            jnp.asarray(np.maximum(labels, 0), jnp.int32),
            jnp.asarray(labels >= 0, jnp.float32),
        ),
    }
    draw, params = Draws(jax.random.key(0), recorded), jax.tree.map(jnp.asarray, params)
    return Recorded(arrays, method, model, params, state, batch, draw)


def intermediates(recorded: Recorded, params: Params) -> dict[str, Array]:
    """The arrays between input and loss, by the functions that the loss itself calls."""
    method, state, batch, draw = recorded.method, recorded.state, recorded.batch, recorded.draw
    teacher = method.moved_teacher(state["teacher"], params)
    texts = further_texts(method.terms(STAGE), batch, draw)
    encoded, taught = (
        method.encode(weights, batch, read, draw, "")
        for weights, read in zip((params, teacher), texts, strict=True)
    )
    seen = Seen(params, teacher, state, batch, draw, jnp.float32(0), STAGE, encoded, taught)
    seen = seen._replace(itc=method.contrast(seen))
    words, _ = method.look_up(params, state["dictionary"], encoded.image_tokens_BxTxD)
    seen = seen._replace(extra=words)
    nva = method.negative_images(params, encoded, words, batch, draw)
    batch_size, patches, dim = words.features_BxNxD.shape
    distances = squared_distances(words.features_BxNxD.reshape(-1, dim), words.state.codes_KxD)
    every_code = jnp.ones((1, len(words.state.codes_KxD)), bool)
    codes, log_weights = neighbour_codes(distances, every_code, method.config.nva.neighbours)
    rows = {"itm": Fgitm(method).rows(seen)}
    fused = method.fuse(params, words.tokens_BxTxD, rows, draw)
    itm = {
        kind: method.match_logits(params, fused_BxMxD[:, 0]) for kind, fused_BxMxD in fused.items()
    }

    def mlm_logits(params: Params, text_tokens_BxLxD: Array, image_tokens_BxTxD: Array) -> Array:
        net, image = method.apply(params), (ImageTokens((image_tokens_BxTxD,)),)
        fused_BxLxD = net.fuse(text_tokens_BxLxD, batch["token_mask_BxL"], image)
        return net.mlm_logits(fused_BxLxD)

    return {
        "image_tokens": encoded.image_tokens_BxTxD,
        "teacher_image_tokens": taught.image_tokens_BxTxD,
        "text_tokens": encoded.text_tokens_BxLxD,
        "teacher_text_tokens": taught.text_tokens_BxLxD,
        "dictionary_tokens": words.tokens_BxTxD[:, 1:],
        "negative_dictionary_tokens": nva.tokens_BxTxD[:, 1:],
        "object_similarity": nva.similarity_BxN,
        "neighbour_weights": jnp.exp(log_weights).reshape(batch_size, patches, -1),
        "itm_logits_pos_nva_negimage_negtext": jnp.concatenate(
            [itm[kind] for kind in ("positive", "nva", "hard_image", "hard_text")]
        ),
        "mlm_logits": mlm_logits(params, encoded.others["masked"], encoded.image_tokens_BxTxD),
        "teacher_mlm_logits": mlm_logits(
            teacher, taught.others["masked"], taught.image_tokens_BxTxD
        ),
        "code_ids": words.code_ids_BxN,
        "neighbour_ids": codes.reshape(batch_size, patches, -1),
        "object_candidates": jax.lax.top_k(nva.similarity_BxN, method.config.nva.object_candidates)[
            1
        ],
    }


def scaled_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference as a share of the recorded array's largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape} differ")
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def norm_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference as a share of the larger of the recorded norm and 1e-2."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-2))


def worst(group: str, errors: dict[str, float], tolerance: float) -> Row:
    """The row of a group of arrays; NaN counts as the worst."""
    name = max(errors, key=lambda name: np.inf if np.isnan(errors[name]) else errors[name])
    return Row(group, len(errors), name, errors[name], tolerance)


def ema_errors(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Replays the recorded updates of the dictionary from zero statistics."""
    codes = jnp.asarray(arrays["ema/embed_0"])
    state = DictionaryState(
        codes,
        jnp.zeros(len(codes)),
        jnp.zeros_like(codes),
        jnp.full(len(codes), -1, jnp.int32),
        jnp.int32(0),
    )
    errors, index = {}, 0
    while f"ema/features_{index}" in arrays:
        features = jnp.asarray(arrays[f"ema/features_{index}"])[None]
        code_ids, _ = nearest_code(features, state.codes_KxD)
        state = ema_update(
            state, features, code_ids, float(arrays[f"ema/decay_{index}"]), literal=True
        )
        index += 1
        errors[f"embed_{index}"] = scaled_error(state.codes_KxD, arrays[f"ema/embed_{index}"])
        errors[f"cluster_size_{index}"] = scaled_error(
            state.counts_K, arrays[f"ema/cluster_size_{index}"]
        )
    return errors


def compare(path: str, params_hook=lambda params: params) -> list[Row]:
    """All groups of a recorded file.

    `params_hook` may disturb our parameters first (negative controls).
    """
    recorded = load(path)
    arrays, method = recorded.arrays, recorded.method
    params = params_hook(recorded.params)
    ours = jax.jit(lambda params: intermediates(recorded, params))(params)
    exact = {"code_ids", "neighbour_ids", "object_candidates"}
    discrete = {
        name: float((np.asarray(ours[name]) != arrays[f"out/{name}"]).sum()) for name in exact
    }
    continuous = {
        name: scaled_error(ours[name], arrays[f"out/{name}"]) for name in ours if name not in exact
    }

    def loss(params: Params):
        step = jnp.int32(0)
        return method.loss(params, recorded.state, recorded.batch, recorded.draw, step, STAGE)

    grads, (state, metrics) = jax.jit(jax.grad(loss, has_aux=True))(method.constrain(params))
    state = method.after_gradient(state, grads)
    losses = {
        name: abs(float(metrics[f"loss/{name}"]) - float(arrays[f"out/loss_{name}"]))
        for name in ("mlm", "itc", "itm")
    }
    entries = student_entries(recorded.model, dictionary=True)
    grads = to_torch(entries, jax.tree.map(np.asarray, grads))
    recorded_grads = {name.removeprefix("grad/") for name in arrays if name.startswith("grad/")}
    if recorded_grads != set(grads):
        raise ValueError(f"gradients that only one side has: {sorted(recorded_grads ^ set(grads))}")
    gradients = {name: norm_error(grads[name], arrays[f"grad/{name}"]) for name in sorted(grads)}

    teacher = to_torch(
        list(tower_entries(recorded.model, "_m")), jax.tree.map(np.asarray, state["teacher"])
    )
    after = {
        "image_queue": scaled_error(state["queue"].image_QxE.T, arrays["out/image_queue"]),
        "text_queue": scaled_error(state["queue"].text_QxE.T, arrays["out/text_queue"]),
        "queue_ptr": float(abs(int(state["queue"].pointer) - int(arrays["out/queue_ptr"][0]))),
        "temp": scaled_error(metrics["itc/temp"], arrays["out/temp"]),
    }
    for name, array in arrays.items():
        if name.startswith("out/after/"):
            after[name.removeprefix("out/after/")] = scaled_error(
                teacher[name.removeprefix("out/after/")], array
            )
    return [
        worst("intermediate arrays / scale", continuous, 1e-4),
        worst("codes, neighbours, objects: entries that differ", discrete, 0),
        worst("losses, absolute", losses, 1e-5),
        worst("gradients / max(norm, 0.01)", gradients, 1e-3),
        worst("teacher and queues after the step / scale", after, 1e-5),
        worst("dictionary EMA updates / scale", ema_errors(arrays), 1e-5),
    ]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", help="recorded step, .npz")
    rows = compare(parser.parse_args(argv).file)
    print(f"{'group':<50}{'arrays':>7}{'largest error':>15}{'tolerance':>11}  worst array")
    for row in rows:
        mark = "" if row.passed else "  ABOVE"
        print(
            f"{row.group:<50}{row.arrays:>7}{row.error:>15.2e}{row.tolerance:>11.0e}  "
            f"{row.worst}{mark}"
        )
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
