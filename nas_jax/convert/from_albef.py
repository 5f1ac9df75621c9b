"""Brings in a state dict of ALBEF or NAS_ALBEF, with its teacher and queues if it has them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert import folder, given
from nas_jax.convert.account import Account, model_shapes, new_lines, take
from nas_jax.convert.albef_names import Entry, state_entries, student_entries, tower_entries
from nas_jax.convert.torch_files import Tensors, read_tensors
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.utils.errors import CheckpointError, ConfigError
from nas_jax.utils.trees import named_leaves

# ViT-B and BERT-base, the only sizes that the authors published; others must be told
HEADS = {768: 12}
MODULE = "module."  # before all names of a model saved from DistributedDataParallel
ENCODERS = ("image_encoder", "text_encoder", "fusion_encoder")
REASONS = {
    r".*\.position_ids$": "the numbers 0, 1, 2, ..., and no weight",
    r"neck\.vq\.cluster_sum$": "scratch of the dictionary's update",
    r"text_decoder(_m)?\.": "the answer decoder of VQA",
    r"cls_head(_m)?\.": "the classifier of a fine-tuned task",
    r"ta_head\.": "the text-assignment head of NLVR2's pretraining",
}
"""What a state dict of ALBEF may hold that our model has no use for.

Source: ALBEF code, models/model_*.py.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the subcommand."""
    add = parser.add_argument
    add("file", metavar="FILE.pth", help="state dict of ALBEF or NAS_ALBEF, bare or under 'model'")
    add("--out", required=True, metavar="DIR", help="the folder of weights to write")
    given.add_arguments(
        parser,
        sizes='what shapes do not tell, like {"heads": 12}',
        tokenizer="tokenizer.json or vocab.txt, to keep with the weights",
    )


def run(args: argparse.Namespace) -> int:
    """Converts, prints the table, writes the folder. Raises UserError."""
    out = Path(args.out)
    folder.check_out(out)
    tensors, cast = read_tensors(args.file)
    parallel = all(name.startswith(MODULE) for name in tensors)
    if parallel:
        tensors = {name.removeprefix(MODULE): array for name, array in tensors.items()}
        cast = {name.removeprefix(MODULE): dtype for name, dtype in cast.items()}
    weights, account, bert = convert(
        tensors, cast, Path(args.file).name, given.read_sizes(args.sizes), args.ignore
    )
    resized = folder.for_pictures_of(weights, args.image_size)
    if resized is not weights:
        account.notes.append(
            f"position embeddings resized: {weights.model.image_size} -> {args.image_size} pixels"
        )
    print(account)
    print("\n".join(new_lines(account.new, [*account.new, *named_leaves(weights.params)])))
    source = {"file": Path(args.file).name, "bytes": Path(args.file).stat().st_size}
    conversion = {
        "format": 1,
        "from": "albef",
        "source": source,
        "names": {"bert": bert, "module": parallel},
    } | account.to_json()
    unused = {name: tensors[name] for name in account.named("unused")}
    folder.write(out, resized, conversion, args.tokenizer, unused)
    print(
        f"{out}: {folder.size_in_mb(weights.params):.1f} MB of parameters; start a run with "
        f"train.weights={out}"
    )
    return 0


def convert(
    tensors: Tensors,
    cast: Mapping[str, str],
    source: str,
    sizes: Mapping[str, int],
    ignore: Sequence[str] = (),
) -> tuple[folder.ConvertedWeights, Account, str]:
    """Weights in our layout, the account of every tensor, and what the file puts before BERT's
    names.

    sizes: those that were given; where shapes tell a size too, both must agree. ignore: beginnings
    of names. Raises CheckpointError on a missing, additional or wrongly shaped tensor, ConfigError
    on sizes.
    """
    account = Account(tensors, cast, source)
    bert = "bert." if any(name.startswith("text_encoder.bert.") for name in tensors) else ""
    model = _model(tensors, bert, source, sizes)
    _refuse_nlvr(tensors, model, bert, source)
    dictionary, gate = "neck.vq.embed" in tensors, "neck.gate_fc.1.weight" in tensors
    shapes = model_shapes(model, dictionary, gate)

    student = student_entries(model, dictionary=dictionary, literal_gate=gate, bert=bert)
    params = take(_present(student, tensors, ENCODERS), tensors, shapes, account)
    taken = {entry.path[0] for entry in student} & params.keys()
    account.new += ["/".join(entry.path) for entry in student if entry.path[0] not in taken]
    state = {}
    if any(name.startswith("visual_encoder_m.") for name in tensors):
        entries = list(tower_entries(model, "_m", bert))
        there = _present(entries, tensors, ENCODERS)
        state["teacher"] = take(there, tensors, shapes, account, "teacher/")
    state |= _state(tensors, account, dictionary)
    _explain(tensors, account, bert, ignore)
    return folder.ConvertedWeights(params, model, _method(state, gate), state), account, bert


def _method(state: Mapping[str, Any], gate: bool) -> AlbefConfig:
    """The method that the state belongs to. gate: the dictionary has the authors' gate."""
    itc = ItcConfig(queue_size=len(state["queue"]["image_id_Q"]) if "queue" in state else 0)
    if "dictionary" not in state:
        return AlbefConfig(itc=itc)
    dictionary = DictionaryConfig(codes=len(state["dictionary"]["counts_K"]), literal=gate)
    nva, nta = NvaConfig(enabled=False), NtaConfig(enabled=False)
    return NasConfig(itc=itc, dictionary=dictionary, nva=nva, nta=nta)


def _model(tensors: Tensors, bert: str, source: str, sizes: Mapping[str, int]) -> ModelConfig:
    """The sizes of the network, by its shapes and by what was given."""
    text = f"text_encoder.{bert}"
    known = ("visual_encoder.cls_token", f"{text}embeddings.LayerNorm.bias")
    if any(name not in tensors for name in known):
        raise CheckpointError(
            f"{source}, with tensors such as {next(iter(tensors), 'none')!r}",
            "visual_encoder.* and text_encoder.* of an ALBEF model",
            "for a lone image or text encoder use from-hf",
        )

    def shape(name: str, axes: int = 2) -> tuple[int, ...]:
        return given.shape_of(tensors, name, axes, source)

    _, tokens, dim = shape("visual_encoder.pos_embed", 3)
    patch = shape("visual_encoder.patch_embed.proj.weight", 4)[-1]
    layers = given.count(tensors, rf"{re.escape(text)}encoder\.layer\.(\d+)\.", source)
    query = f"{text}encoder.layer.{{}}.crossattention.self.query.weight"
    first = [number for number in range(layers) if query.format(number) in tensors]
    if not first:
        raise CheckpointError(
            f"{source} without cross-attention", "a fusion encoder", "for a plain BERT use from-hf"
        )
    found = {
        "dim": dim,
        "image_layers": given.count(tensors, r"visual_encoder\.blocks\.(\d+)\.", source),
        "text_layers": first[0],
        "fusion_layers": layers - first[0],
        "mlp_ratio": shape("visual_encoder.blocks.0.mlp.fc1.weight")[0] // dim,
        "image_size": given.side_of(tokens, source) * patch,
        "patch_size": patch,
        "vocab_size": shape(f"{text}embeddings.word_embeddings.weight")[0],
        "max_text_length": shape(f"{text}embeddings.position_embeddings.weight")[0],
    }
    if "vision_proj.weight" in tensors:
        found["embed_dim"] = shape("vision_proj.weight")[0]
    given.agree(found, sizes, source)
    heads = sizes.get("heads", HEADS.get(dim))
    if heads is None:
        raise ConfigError(
            f"{source} of width {dim}, and shapes do not tell the number of heads",
            'a sizes file like {"heads": 4}',
            "pass it with --sizes",
        )
    return given.model_of({"heads": heads} | found | dict(sizes))


def _refuse_nlvr(tensors: Tensors, model: ModelConfig, bert: str, source: str) -> None:
    """Refuses NLVR2's network: another one, under the same names.

    It has each fusion layer twice, once for each of two pictures.
    """
    layers = (f"text_encoder.{bert}encoder.layer.{model.text_layers + n}" for n in range(2))
    first, second = (tensors.get(f"{layer}.crossattention.self.key.weight") for layer in layers)
    if first is not None and second is not None and np.array_equal(first, second):
        raise CheckpointError(
            f"{source}, whose fusion layers share their keys in pairs: a model of NLVR2, for two "
            "pictures",
            "a model for one picture",
            "use the pretrained weights that it came from",
        )


def _present(
    entries: Sequence[Entry], tensors: Tensors, required: Sequence[str]
) -> Iterable[Entry]:
    """Without the groups of which the file has nothing; of the others, everything must be there."""
    there = {
        entry.path[0] for entry in entries if any(name in tensors for name in entry.names)
    } | set(required)
    return [entry for entry in entries if entry.path[0] in there]


def _state(tensors: Tensors, account: Account, dictionary: bool) -> dict[str, Any]:
    """Queues and dictionary, as far as the file has them."""
    queue, image_ids = "image_queue" in tensors, "idx_queue" in tensors
    shapes: dict[str, tuple[int, ...]] = {}
    if queue:
        width, size = given.shape_of(tensors, "image_queue", 2, account.source)
        shapes |= {"queue/image_QxE": (size, width), "queue/text_QxE": (size, width)}
        shapes |= {"queue/pointer": (), "queue/image_id_Q": (size,)}
    if dictionary:
        codes, dim = given.shape_of(tensors, "neck.vq.embed", 2, account.source)
        shapes |= {"dictionary/codes_KxD": (codes, dim), "dictionary/counts_K": (codes,)}
        shapes |= {"dictionary/sums_KxD": (codes, dim)}
    entries = state_entries(queue=queue, dictionary=dictionary, image_ids=image_ids)
    state = take(entries, tensors, shapes, account)
    if queue and not image_ids:
        state["queue"]["image_id_Q"] = np.full(size, -1, np.int32)
    if dictionary:
        # Not in the file. A step above 0: the codes are past their start from data.
        state["dictionary"] |= {
            "last_use_K": np.full(codes, -1, np.int32),
            "step": np.array(1, np.int32),
        }
    return state


def _explain(tensors: Tensors, account: Account, bert: str, ignore: Sequence[str]) -> None:
    """Copies and known leftovers; raises CheckpointError on any other tensor."""
    for suffix in ("", "_m"):
        head, text = f"text_encoder{suffix}.cls.predictions.", f"text_encoder{suffix}.{bert}"
        tie_head(
            tensors, account, f"{head}decoder.weight", f"{text}embeddings.word_embeddings.weight"
        )
        tie_head(tensors, account, f"{head}decoder.bias", f"{head}bias")
    for name, row in account.rows.items():
        for pattern, reason in REASONS.items() if not row.action else ():
            if re.match(pattern, name):
                account.leave(name, reason)
                break
    account.leave_rest(ignore)


def tie_head(tensors: Tensors, account: Account, name: str, other: str) -> None:
    """Marks BERT's decoder as the copy of the word embeddings that it is.

    Raises CheckpointError if it is none.
    """
    if name not in tensors or other not in tensors:
        return
    if not np.array_equal(tensors[name], tensors[other]):
        raise CheckpointError(
            f"{name} in {account.source} differs from {other}",
            "an MLM head that is tied to the word embeddings, as BERT's is",
            "this model cannot hold both",
        )
    account.tie(name, other)
