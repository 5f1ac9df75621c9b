"""The gate of an export: PyTorch must compute from it what JAX computes from the checkpoint.

Both sides run in float32 on the same inputs, random ones and pictures with captions. Compared are
all outputs and what stands between the layers; a difference above `TOLERANCE` of the scale of an
array refuses the export, with a table that begins with the first layer that differs. There is no
way around it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.checkpoint.stored import nest
from nas_jax.convert import gate_torch
from nas_jax.convert.gate_torch import HOOKED, WORDS
from nas_jax.convert.hf_names import hf_name, method_of
from nas_jax.data.image_ops import resize
from nas_jax.data.scenes import SceneSource
from nas_jax.data.text_ops import prepare_caption
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.data.worlds import SMALL
from nas_jax.kernels.image_tokens import as_image_tokens
from nas_jax.methods.method import Method, MethodState
from nas_jax.methods.nas import Nas
from nas_jax.methods.refill import word_table
from nas_jax.models.towers import IMAGE_STD, AlbefNetwork, NasNetwork, normalise_image
from nas_jax.train.trained import Trained
from nas_jax.typing import Array, Params
from nas_jax.utils.errors import UserError
from nas_jax.utils.trees import named_leaves

TOLERANCE = 1e-4  # largest difference / largest value of an array
RESIZE_LEVELS = 8  # of 255, by which another resize than Pillow's may differ on a drawn picture
CASES = ("random", "real")
CAPTIONS = (
    "A man's dog -- it's (red)/blue? <person> No. 7!",
    " ".join(f"word {number}," for number in range(60)),  # longer than any text is
)
"""Captions for the tokenizer alone, beside those of the pictures."""
LABELS = ("a dog", "red")  # for transformers' pipelines; as short as any text may be
_EXACT = ("input_ids", "attention_mask", "processor_input_ids", "code_ids", "missing")
_ROWS = 12  # of the table of a refusal
_SHOWN = (
    "image_embeds", "text_embeds", "dictionary_tokens", "itm_logits", "mlm_logits",
    "generator_logits", "plain_cosine", "pipeline_itc", "pipeline_itm",
)  # fmt: skip


class GateRefused(UserError):
    """The two sides of an export do not agree; nothing was written."""

    exit_code = 7


@dataclass(frozen=True)
class OutputRow:
    """One array on both sides."""

    name: str  # case/what
    error: float  # largest difference / largest value; entries that differ where equality is asked
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class GateReport:
    """What was compared."""

    rows: tuple[OutputRow, ...]  # in the order in which they are computed
    transformers: str
    ties: int  # patches equally near to two codes, of which the sides chose different ones
    torch_peak_bytes: int

    @property
    def failed(self) -> list[OutputRow]:
        """The rows above their tolerance."""
        return [row for row in self.rows if not row.passed]

    @property
    def worst(self) -> OutputRow:
        """The largest difference among what need not be equal to the bit."""
        return max(
            (row for row in self.rows if row.tolerance == TOLERANCE), key=lambda row: row.error
        )

    def table(self, rows: Iterable[OutputRow]) -> str:
        """Lines of name, difference and tolerance."""
        lines = [f"{'array':<64}{'difference':>12}{'allowed':>10}"]
        lines += [f"{row.name:<64}{row.error:>12.1e}{row.tolerance:>10.0e}" for row in rows]
        return "\n".join(lines)


def check(
    export: Path,
    trained: Trained,
    config: Mapping[str, Any],
    plain: str = "",
    python: str = sys.executable,
    say: Callable[[str], None] = print,
) -> GateReport:
    """Compares an export with its checkpoint, one side after the other. Raises GateRefused where
    they differ.

    plain: subfolder with the dual encoder as BLIP. python: the interpreter with torch and
    transformers.
    """
    with tempfile.TemporaryDirectory(prefix="nas_jax-gate-") as folder:
        inputs, ours, theirs = (Path(folder, f"{name}.npz") for name in ("inputs", "jax", "torch"))
        given = make_inputs(config, trained.tokenizer)
        say("the gate: JAX")
        outputs = run_jax(trained, config, given)
        given |= {name: array for name, array in outputs.items() if name.endswith("/code_ids")}
        given |= {
            f"{case}/plain_pixel_values": channels_first(given[f"{case}/pixels"]) for case in CASES
        }
        sent = {name: array for name, array in given.items() if not name.endswith("/pixels")}
        np.savez(inputs, **sent)  # type: ignore[arg-type]  # stub of allow_pickle
        np.savez(ours, **outputs)  # type: ignore[arg-type]  # stub of allow_pickle
        del given, sent, outputs
        say("the gate: PyTorch")
        run_torch(
            [str(export), str(inputs), str(theirs), *([str(export / plain)] if plain else [])],
            python,
        )
        with np.load(ours) as left, np.load(theirs) as right:
            rows = tuple(compare(left, right, bool(plain)))
            facts = json.loads(str(right["facts"]))
            ties = sum(int(right[f"{case}/ties"]) for case in CASES if f"{case}/ties" in right)
    report = GateReport(rows, facts["transformers"], ties, facts["peak_bytes"])
    judge(report, say)
    return report


def judge(report: GateReport, say: Callable[[str], None]) -> None:
    """Says what was found. Raises GateRefused where an array is above its tolerance."""
    refuse(report, say)
    say(report.table(row for row in report.rows if row.name.split("/")[1] in _SHOWN))
    say(
        f"{len(report.rows)} arrays agree with transformers {report.transformers}; worst: "
        f"{report.worst.name}; {report.ties} ties"
    )


def refuse(report: GateReport, say: Callable[[str], None]) -> None:
    """Raises GateRefused where an array is above its tolerance, after a table of these."""
    if report.failed:
        say(report.table(report.failed[:_ROWS]))
        first, more = report.failed[0], len(report.failed) - 1
        raise GateRefused(
            f"the export differs from the checkpoint, first in {first.name} by {first.error:.1e} "
            f"of its scale, and in {more} more arrays",
            f"at most {TOLERANCE:.0e}",
            "it was deleted; the table above says where the difference starts",
        )


# ------------------------------------------------------------------------------------------- inputs


def make_inputs(config: Mapping[str, Any], tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    """Both cases: noise with texts of all positions, and two drawn pictures with their captions.

    `pixels` is what JAX gets, (B, S, S, 3) float32, normalised.
    """
    rng, size, length = np.random.default_rng(0), config["image_size"], config["text_length"]
    longest = config["max_position_embeddings"]
    noise = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    mask = np.arange(longest)[None] < np.array([[longest], [max(2, longest // 3)]])
    source = SceneSource("val", 3, 0, size, SMALL)
    records = [source[index] for index in range(2)]
    images = np.stack([record.image for record in records])
    large = SceneSource("val", 3, 0, min(1024, size + size // 2), SMALL)[2].image
    captions = [record.captions[0] for record in records] + list(CAPTIONS)
    cleaned = [
        prepare_caption(text, config["clean_captions"], config["max_words"], tokenizer.cased)
        for text in (*captions, *LABELS)
    ]
    token_ids, token_mask = tokenizer.encode(cleaned, length)
    label_ids, label_mask = (array[len(captions) :] for array in (token_ids, token_mask))
    token_ids, token_mask = (array[: len(captions)] for array in (token_ids, token_mask))
    return {
        "cases": np.asarray(json.dumps(CASES)),
        "random/pixels": noise,
        "random/pixel_values": channels_first(noise),
        "random/input_ids": rng.integers(0, config["vocab_size"], (2, longest)),
        "random/attention_mask": mask.astype(np.int64),
        "real/pixels": np.asarray(normalise_image(images)),
        "real/images": images,
        "real/large": np.asarray(large),
        "real/captions": np.asarray(json.dumps(captions)),
        "real/labels": np.asarray(json.dumps(LABELS)),
        "real/label_ids": label_ids.astype(np.int32),
        "real/label_mask": label_mask,
        "real/input_ids": token_ids.astype(np.int64),
        "real/attention_mask": token_mask.astype(np.int64),
    }


def channels_first(pixels_BxHxWx3: np.ndarray) -> np.ndarray:
    """Pixels as PyTorch has them, (B, 3, H, W)."""
    return np.ascontiguousarray(pixels_BxHxWx3.transpose(0, 3, 1, 2))


# ----------------------------------------------------------------------------------------- JAX side


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


# ------------------------------------------------------------------------------------- PyTorch side


def run_torch(arguments: list[str], python: str = sys.executable) -> None:
    """Runs `gate_torch.py` in a process of its own. Raises GateRefused where it fails."""
    run_apart(
        gate_torch.__file__,
        arguments,
        python,
        "PyTorch cannot run the export",
        "torch and transformers, and an export that they load",
        "pip install 'nas_jax[convert]'; if they are there, report this",
    )


def run_apart(
    script: str, arguments: list[str], python: str, got: str, expected: str, remedy: str
) -> None:
    """Runs a file in a process of its own, without network and without this package.

    Raises GateRefused with these words where it fails.
    """
    # not the user's cache of remote code
    with tempfile.TemporaryDirectory(prefix="nas_jax-modules-") as modules:
        offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [python, "-I", script, *arguments],
            env=os.environ
            | offline
            | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
            stdin=subprocess.DEVNULL,  # transformers asks there where it has a question
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise GateRefused(f"{got} ({lines[-1][:300]})", expected, remedy)


# --------------------------------------------------------------------------------------- comparison


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], plain: bool
) -> Iterable[OutputRow]:
    """A row for each array of ours, in the order in which the model computes them."""
    for name in sorted(ours, key=_place):
        what = name.split("/")[1]
        if what == "plain_cosine" and not plain:
            continue
        if name not in theirs:
            yield OutputRow(f"{name} (not there)", np.inf, 0)
        elif what in _EXACT:
            yield OutputRow(name, _unequal(ours[name], theirs[name]), 0)
        elif what == "resized":
            yield OutputRow(
                name, difference(ours[name], theirs[name], 1 / min(IMAGE_STD)), RESIZE_LEVELS / 255
            )
        else:
            yield OutputRow(name, difference(ours[name], theirs[name]), TOLERANCE)
    if plain:
        yield OutputRow("plain/missing", float(theirs["plain/missing"]), 0)


def _unequal(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.count_nonzero(ours != theirs)) if ours.shape == theirs.shape else np.inf


def difference(ours: np.ndarray, theirs: np.ndarray, scale: float | None = None) -> float:
    """Largest difference over our largest value, or over `scale`; infinity if shapes differ."""
    if ours.shape != theirs.shape:
        return np.inf
    scale = max(float(np.abs(ours).max()), 1e-30) if scale is None else scale
    return float(np.abs(np.subtract(ours, theirs, dtype=np.float64)).max()) / scale


_ORDER = (
    "missing",
    "input_ids",
    "attention_mask",
    "pixel_values",
    "resized",
    "processor_input_ids",
    "processor_pixel_values",
    "patch_embed",
    "image_encoder",
    "image_tokens",
    "image_embeds",
    "features",
    "distances",
    "code_ids",
    "dictionary_tokens",
    "text_encoder.embedding_norm",
    "text_encoder",
    "text_tokens",
    "text_embeds",
    "logits_per_image",
    "plain_cosine",
    "fusion_encoder",
    "itm_logits",
    "mlm_logits",
    "generator_logits",
    "pipeline_itc",
    "pipeline_itm",
)
# a pre-norm block; the layer itself comes last
_WITHIN = ("attention_norm", "attention", "cross_attention", "")


def _place(name: str) -> tuple:
    """Where an array stands in the computation."""
    case, what = name.split("/")
    key, number, module = what.removesuffix(" (mlm)"), -1, ""
    if what.endswith("patch_embed"):
        key = "patch_embed"
    elif key not in _ORDER:
        key, _, rest = key.partition(".")
        if rest[:1] in "bl":  # blocks.0.attention, layers.0
            _, block, *inner = rest.split(".")
            number = int(block)
            module = inner[0] if inner else ""
        else:
            number = 10**6  # the norm behind all blocks
    within = _WITHIN.index(module) if module in _WITHIN else 0
    return CASES.index(case), _ORDER.index(key), what.endswith(" (mlm)"), number, within, what
