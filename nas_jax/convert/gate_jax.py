"""The JAX side of the gate: outputs of a checkpoint, and of its layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.checkpoint.stored import nest
from nas_jax.convert.gate_inputs import CASES, channels_first
from nas_jax.convert.gate_torch import HOOKED, WORDS
from nas_jax.convert.hf_names import hf_name, method_of
from nas_jax.data.image_ops import resize
from nas_jax.kernels.image_tokens import as_image_tokens
from nas_jax.methods.method import Method, MethodState
from nas_jax.methods.nas import Nas
from nas_jax.methods.refill import word_table
from nas_jax.models.towers import AlbefNetwork, NasNetwork, normalise_image
from nas_jax.train.trained import Trained
from nas_jax.typing import Array, Params
from nas_jax.utils.trees import named_leaves


def run_jax(
    trained: Trained, config: Mapping[str, Any], given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Outputs by `case/name`, and those of layers by the names of the export's modules."""
    method = method_of(config)
    results: dict[str, np.ndarray] = {}
    with (
        jax.default_device(jax.local_devices(backend="cpu")[0]),
        jax.default_matmul_precision("highest"),
    ):
        arrays = {
            name: jnp.asarray(array)
            for group in trained.groups()
            for name, array in trained.read(group)
        }
        params, state = _split(method, arrays)
        del arrays
        for case in CASES:
            pixels = given[f"{case}/pixels"]
            ids, mask = (
                given[f"{case}/{name}"][: len(pixels)] for name in ("input_ids", "attention_mask")
            )
            inputs = pixels, ids.astype(np.int32), mask > 0
            outputs = _outputs(method, params, state, inputs, config)
            results |= {f"{case}/{name}": np.asarray(array) for name, array in outputs.items()}
        labels = given["real/label_ids"], given["real/label_mask"]
        found = {name: results[f"real/{name}"] for name in _OF_IMAGES if f"real/{name}" in results}
        pipelines = _pipelines(method.network, params, found, labels)
        results |= {f"real/pipeline_{name}": scores for name, scores in pipelines.items()}
    results["real/pixel_values"] = channels_first(given["real/pixels"])
    size = config["image_size"]
    results["real/resized"] = channels_first(
        np.asarray(normalise_image(resize(given["real/large"], size)[None]))
    )
    results |= {f"real/{name}": given[f"real/{name}"] for name in ("input_ids", "attention_mask")}
    return results | processed(results)


def processed(results: Mapping[str, np.ndarray], fills: bool = False) -> dict[str, np.ndarray]:
    """What AutoProcessor must give in one call: the pixels and ids of the real case.

    fills: texts are padded to the full length, as SigLIP reads them, and not to the longest.
    """
    ids, mask = results["real/input_ids"], results["real/attention_mask"]
    return {
        "real/processor_pixel_values": results["real/pixel_values"],
        "real/processor_input_ids": ids if fills else ids[:, mask.any(axis=0)],
    }


_OF_IMAGES = ("image_tokens", "image_embeds", "dictionary_tokens")


def _pipelines(
    network: nn.Module,
    params: Params,
    found: Mapping[str, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
) -> dict[str, np.ndarray]:
    """Scores (pictures, labels) of transformers' pipelines: ITC over all labels, ITM of each.

    found: what there is of `_OF_IMAGES`; labels: token ids and mask (B, L), as many as there are
    pictures, so that what is compiled for pairs serves.
    """
    (text_tokens, text_embeds), _ = _layers(network, AlbefNetwork.encode_text, params, *labels)
    seen_BxTxD = found.get("dictionary_tokens", found["image_tokens"])
    rows = []
    for image_TxD in seen_BxTxD:
        beside = jnp.broadcast_to(image_TxD, (len(text_tokens), *image_TxD.shape))
        logits, _ = _layers(network, _match, params, text_tokens, labels[1], beside)
        rows.append(jax.nn.softmax(logits)[:, 1])
    logits = found["image_embeds"] @ text_embeds.T / params["temp"]
    return {"itc": np.asarray(jax.nn.softmax(logits)), "itm": np.asarray(jnp.stack(rows))}


def _split(method: Method, arrays: Mapping[str, Any]) -> tuple[Params, MethodState]:
    """Arrays by our names as parameters, and as the entries of the state that an export has."""
    state, rest = {}, dict(arrays)
    _, fresh = jax.eval_shape(method.init, jax.random.key(0))
    for entry in method.scoring_state:
        leaves = [rest.pop(f"{entry}/{name}") for name in named_leaves(fresh[entry])]
        state[entry] = jax.tree.unflatten(jax.tree.structure(fresh[entry]), leaves)
    return nest(rest), state


def _outputs(
    method: Method,
    params: Params,
    state: MethodState,
    given: tuple[np.ndarray, ...],
    config: Mapping[str, Any],
) -> dict[str, Array]:
    """All that is compared. given: pixels (B, S, S, 3), token ids (B, L), token mask (B, L)."""
    network, (pixels_BxHxWx3, token_ids_BxL, token_mask_BxL) = method.network, given
    image, results = _layers(network, AlbefNetwork.encode_image, params, pixels_BxHxWx3)
    (image_tokens, image_embeds), seen = image, image[0]
    if isinstance(method, Nas) and "dictionary" in state:
        words = jax.jit(lambda *inputs: method.look_up(*inputs)[0])(
            params, state["dictionary"], image_tokens
        )
        seen = words.tokens_BxTxD
        results["features"], results["code_ids"] = words.features_BxNxD, words.code_ids_BxN
        results["dictionary_tokens"] = seen
        results["distances"] = _distances(
            np.asarray(words.features_BxNxD), np.asarray(state["dictionary"].codes_KxD)
        )
    (text_tokens, text_embeds), layers = _layers(
        network, AlbefNetwork.encode_text, params, token_ids_BxL, token_mask_BxL
    )
    itm_logits, fusion = _layers(network, _match, params, text_tokens, token_mask_BxL, seen)
    results |= layers | fusion
    if "dictionary" in state and not config["mlm_on_dictionary"]:
        _, fusion = _layers(network, _match, params, text_tokens, token_mask_BxL, image_tokens)
        results |= {f"{name} (mlm)": array for name, array in fusion.items()}
    fused = np.asarray(fusion[f"fusion_encoder.layers.{config['fusion_layers'] - 1}"])
    if config["text_generator"]:
        picked = np.asarray(text_tokens)[:, :WORDS]
        inputs = picked, word_table(params)
        results["generator_logits"] = _run(network, NasNetwork.generator_logits, params, *inputs)
    cosine = np.asarray(image_embeds) @ np.asarray(text_embeds).T
    return results | {
        "image_tokens": image_tokens,
        "image_embeds": image_embeds,
        "text_tokens": text_tokens,
        "text_embeds": text_embeds,
        "logits_per_image": cosine / np.asarray(params["temp"]),
        "plain_cosine": cosine,
        "itm_logits": itm_logits,
        "mlm_logits": _run(network, AlbefNetwork.mlm_logits, params, fused[:, :WORDS]),
    }


def _match(net: AlbefNetwork, text_RxLxD: Array, mask_RxL: Array, image_RxTxD: Array) -> Array:
    """ITM logits (R, 2); the last layer computes all tokens, as MLM reads the others."""
    return net.itm_logits(net.fusion_encoder(text_RxLxD, mask_RxL, as_image_tokens(image_RxTxD)))


def _distances(features_BxNxD: np.ndarray, codes_KxD: np.ndarray) -> np.ndarray:
    """Squared distances (B, N, K): of all codes, also of those that no patch here is nearest to."""
    x, e = features_BxNxD.astype(np.float64), codes_KxD.astype(np.float64)
    return np.square(x).sum(-1, keepdims=True) + np.square(e).sum(-1) - 2 * x @ e.T


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(network: nn.Module, function: Callable, params: Params, *inputs: Array) -> Any:
    return network.apply({"params": params}, *inputs, method=function)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layers(
    network: nn.Module, function: Callable, params: Params, *inputs: Array
) -> tuple[Any, dict[str, Array]]:
    """What a function of the network gives, and the outputs of its modules by their names in the
    export.
    """
    result, state = network.apply(
        {"params": params},
        *inputs,
        method=function,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    found: dict[str, Array] = {}

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                walk(value, (*path, name))
            elif name == "__call__":
                key = hf_name("/".join(path))
                if HOOKED.fullmatch(key):
                    # of the first call; streams come in tuples of one
                    found[key] = jax.tree.leaves(value[0])[0]

    walk(state["intermediates"], ())
    return result, found
