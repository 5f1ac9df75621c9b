"""Writes weights as a state dict under ALBEF's names; what came in through from-albef goes out bit
by bit the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert import folder
from nas_jax.convert.albef_names import state_entries, student_entries, to_torch, tower_entries
from nas_jax.convert.from_albef import MODULE
from nas_jax.convert.torch_files import Tensors, write_state_dict
from nas_jax.methods import method_class
from nas_jax.methods.albef import Albef
from nas_jax.methods.nas import Nas
from nas_jax.storage.paths import as_path
from nas_jax.utils.errors import CheckpointError, ConfigError
from nas_jax.utils.trees import named_leaves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the subcommand."""
    add = parser.add_argument
    add("workdir", metavar="DIR", help="a folder of weights, or the work directory of a run")
    add("--out", required=True, metavar="FILE.pth", help="the state dict to write")
    add(
        "--step",
        type=int,
        default=None,
        metavar="N",
        help="of which checkpoint (default: the newest)",
    )


def run(args: argparse.Namespace) -> int:
    """Raises UserError."""
    out = Path(args.out)
    if out.exists():
        raise CheckpointError(
            f"--out {out}, which is there already", "a new file", "name another, or remove it"
        )
    weights, conversion, unused = folder.read(as_path(args.workdir), args.step)
    tensors, dtypes, left = state_dict(weights, conversion, unused)
    for name in left:
        print(f"left out  {name}  ALBEF's code has no place for it")
    write_state_dict(out, tensors, dtypes)
    print(f"{out}: {len(tensors)} tensors")
    return 0


def state_dict(
    weights: folder.ConvertedWeights,
    conversion: dict[str, Any] | None = None,
    unused: Tensors | None = None,
) -> tuple[Tensors, dict[str, str], list[str]]:
    """Tensors by ALBEF's names, dtypes that change back, and our arrays without a place there.

    With a conversion from ALBEF: exactly the tensors of that file, in its order. Without: what the
    pretraining code loads, the tied copies included. Raises ConfigError for a method or a gate that
    the authors' code does not have.
    """
    if method_class(weights.method.name) not in (Albef, Nas):
        raise ConfigError(
            f"weights of the method {weights.method.name}",
            "albef or nas, the methods that ALBEF's code has",
            "export a run of one of these",
        )
    came = conversion if conversion and conversion["from"] == "albef" else None
    names: dict[str, Any] = came["names"] if came else {"bert": "bert.", "module": False}
    state, dictionary = weights.state, "dictionary" in weights.state
    gate = "gate_norm" in weights.params.get("neck", {})
    if dictionary and not gate:
        raise ConfigError(
            "a dictionary with a free gate (method.dictionary.literal=False)",
            "the authors' gate, which is another function",
            "export to Hugging Face instead",
        )
    student = student_entries(weights.model, dictionary=dictionary, bert=names["bert"])
    tensors, placed = _export(student, weights.params)
    if "teacher" in state:
        teacher = list(tower_entries(weights.model, "_m", names["bert"]))
        tensors |= _export(teacher, state["teacher"])[0]
    image_ids = came is not None and any(row["name"] == "idx_queue" for row in came["tensors"])
    entries = state_entries(queue="queue" in state, dictionary=dictionary, image_ids=image_ids)
    tensors |= _export(entries, state)[0]
    left = [name for name in named_leaves(weights.params) if name not in placed]
    dtypes: dict[str, str] = {
        name: "int64" for name in ("queue_ptr", "idx_queue") if name in tensors
    }
    if came is None:
        return tensors | _copies(tensors, dictionary), dtypes, left
    return *_as_it_came(came, tensors, unused, dtypes), left


def _as_it_came(
    came: dict[str, Any], tensors: Tensors, unused: Tensors | None, dtypes: dict[str, str]
) -> tuple[Tensors, dict[str, str]]:
    """The tensors of the file that was converted, in its order, and their dtypes there."""
    whole, dtypes = {}, dict(dtypes)
    for row in came["tensors"]:
        name, dtype = row["name"], row["dtype"]
        source = row["detail"].removeprefix("equal to ") if row["action"] == "tied" else name
        whole[name] = (
            unused[name] if row["action"] == "unused" and unused is not None else tensors[source]
        )
        dtypes[name] = dtype
    prefix = MODULE if came["names"]["module"] else ""
    return (
        {prefix + name: array for name, array in whole.items()},
        {prefix + name: dtype for name, dtype in dtypes.items()},
    )


def _export(entries: list, tree: dict[str, Any]) -> tuple[Tensors, set[str]]:
    """The tensors of the entries that the tree has, and the names of its arrays that they hold."""
    there = named_leaves(tree)
    entries = [entry for entry in entries if "/".join(entry.path) in there]
    return to_torch(entries, tree), {"/".join(entry.path) for entry in entries}


def _copies(tensors: Tensors, dictionary: bool) -> Tensors:
    """What the authors' networks hold twice or only for bookkeeping, and load strictly."""
    copies: Tensors = {}
    for suffix in ("", "_m"):
        text = f"text_encoder{suffix}."
        if f"{text}cls.predictions.bias" in tensors:
            copies[f"{text}cls.predictions.decoder.weight"] = tensors[
                f"{text}bert.embeddings.word_embeddings.weight"
            ]
            copies[f"{text}cls.predictions.decoder.bias"] = tensors[f"{text}cls.predictions.bias"]
            positions = len(tensors[f"{text}bert.embeddings.position_embeddings.weight"])
            copies[f"{text}bert.embeddings.position_ids"] = np.arange(positions)[None]
    if dictionary:
        copies["neck.vq.cluster_sum"] = np.zeros_like(tensors["neck.vq.cluster_size"])
    return copies
