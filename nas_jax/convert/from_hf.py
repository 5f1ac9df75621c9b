"""Brings in a ViT as image encoder and a BERT as text and fusion encoder, CLIP or SigLIP, or an
export of ours.

The first half of BERT's layers reads text, the others become the fusion encoder, as in ALBEF (Li et
al. 2021, section 3.1); their cross-attention, the projections and the matching head are new and
left to the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_jax.convert import folder, from_dual, given, hf_names, own_tower
from nas_jax.convert.account import new_lines
from nas_jax.convert.albef_names import student_entries
from nas_jax.convert.encoders import EncoderSource, Tower, image_tower, text_tower
from nas_jax.convert.torch_files import read_folder, read_tensors
from nas_jax.convert.vit_npz import read_npz
from nas_jax.data.tokenizer import load_tokenizer
from nas_jax.methods.albef import AlbefConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.trees import named_leaves

HUB = "hub:"
HUB_FILES = (
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "vocab.txt",
    "tokenizer*.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the subcommand."""
    add = parser.add_argument
    forms = "a folder, a .safetensors or .pth file, or hub:NAME, which is downloaded"
    authors = "; an .npz of the ViT authors"
    add(
        "export",
        nargs="?",
        default="",
        metavar="EXPORT",
        help="a folder that to-hf wrote, or a CLIP or SigLIP: all weights",
    )
    add(
        "--image",
        default="",
        metavar="SRC",
        help=f"ViT, DeiT, DINOv2, BLIP, CLIP or SigLIP (timm's or transformers' names): {forms}"
        f"{authors}; or a work directory of ours",
    )
    add("--text", default="", metavar="SRC", help=f"BERT: {forms}")
    add("--out", required=True, metavar="DIR", help="the folder of weights to write")
    add(
        "--text-layers",
        type=int,
        default=0,
        metavar="N",
        help="BERT layers that read text alone (default: half)",
    )
    given.add_arguments(
        parser,
        sizes='what neither shapes nor config.json tell: {"image_heads": 6}',
        tokenizer="tokenizer.json or vocab.txt (default: what lies beside --text)",
    )


def run(args: argparse.Namespace) -> int:
    """Raises UserError."""
    out = Path(args.out)
    folder.check_out(out)
    if bool(args.export) == bool(args.image or args.text):
        raise ConfigError(
            "from-hf", "an EXPORT of ours, or --image and --text", "name one or the other"
        )
    sizes = given.read_sizes(args.sizes)
    if args.export:
        whole = Path(args.export)
        if from_dual.kind_of(_config_in(whole)):
            return _dual(_open(args.export), sizes, args, whole=True)
        return _back(whole, out)
    towers: dict[str, Tower] = {}
    tokenizer = args.tokenizer
    if args.image:
        image = None if own_tower.is_run(args.image) else _open(args.image)
        if image and from_dual.kind_of(image.config):
            return _dual(image, sizes, args, whole=False)
        towers["image"] = _image_tower(image, args.image, sizes, args.ignore)
    if args.text:
        source = _open(args.text)
        towers["text"] = text_tower(source, sizes, args.text_layers, args.ignore)
        if not tokenizer and any(
            (source.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")
        ):
            tokenizer = str(source.folder)
    weights, new = join(towers, sizes)
    resized = folder.for_pictures_of(weights, args.image_size) if args.image else weights
    for kind, tower in towers.items():
        print(f"{kind}: {tower.account}")
    if resized is not weights:
        print(
            f"position embeddings resized: {weights.model.image_size} -> {args.image_size} pixels"
        )
    print("\n".join(new_lines(new, _names(weights.model))))
    conversion = {
        "format": 1,
        "from": "hf",
        "sources": {kind: tower.account.source for kind, tower in towers.items()},
        "image_size": resized.model.image_size,
        "new": new,
        "notes": [note for tower in towers.values() for note in tower.account.notes],
        "tensors": [
            row | {"of": k}
            for k, tower in towers.items()
            for row in tower.account.to_json()["tensors"]
        ],
    }
    folder.write(out, resized, conversion, tokenizer)
    print(
        f"{out}: {folder.size_in_mb(weights.params):.1f} MB of parameters; start a run with "
        f"train.weights={out}"
    )
    return 0


def _image_tower(
    image: EncoderSource | None, run: str, sizes: Mapping[str, int], ignore: Sequence[str]
) -> Tower:
    """From a ViT, or without one from a run of ours, or from an export of one."""
    if image is None:
        return own_tower.of_run(run)
    if image.config.get("model_type") == hf_names.MODEL_TYPE:
        return own_tower.of_export(image)
    return image_tower(image, sizes, ignore)


def _dual(
    source: EncoderSource, sizes: Mapping[str, int], args: argparse.Namespace, whole: bool
) -> int:
    """CLIP or SigLIP; whole: with its texts, whose tokenizer lies beside it."""
    kind = from_dual.kind_of(source.config)
    if args.text:
        raise ConfigError(
            f"--text {args.text} beside {kind}'s picture encoder",
            "--image alone: runs with method.towers have a text encoder of their own",
            "leave --text out",
        )
    tokenizer = args.tokenizer or str(source.folder)
    if whole:
        try:
            load_tokenizer(tokenizer)
        except DataError as error:
            raise DataError(
                error.got,
                error.expected,
                f"from-hf --image {source.folder} takes the picture encoder alone",
            ) from error
    weights, account = from_dual.read(source, sizes, image_only=not whole)
    if args.image_size not in (0, weights.model.image_size):
        raise ConfigError(
            f"--image-size {args.image_size} for {weights.method.name}",
            f"{weights.model.image_size}, its own",
            "leave it out",
        )
    print(account)
    conversion = {
        "format": 1,
        "from": "hf",
        "sources": {weights.method.name: source.name},
        "image_size": weights.model.image_size,
    }
    folder.write(
        Path(args.out), weights, conversion | account.to_json(), tokenizer if whole else ""
    )
    print(
        f"{args.out}: {folder.size_in_mb(weights.params):.1f} MB of parameters, for runs with "
        f"method.name={weights.method.name}, method.towers={kind}, "
        f"train.weights={args.out}"
    )
    return 0


def join(
    towers: Mapping[str, Tower], sizes: Mapping[str, int]
) -> tuple[folder.ConvertedWeights, list[str]]:
    """One model out of the encoders, and the names of our arrays that neither has.

    Raises ConfigError.
    """
    found: dict[str, int] = {}
    for kind, tower in towers.items():
        given.agree(found, tower.sizes, "the image encoder", f"the {kind} encoder")
        found |= tower.sizes
    given.agree(found, sizes, " and ".join(tower.account.source for tower in towers.values()))
    model = given.model_of({"heads": found.get("image_heads", 12)} | found | dict(sizes))
    params = {name: group for tower in towers.values() for name, group in tower.params.items()}
    have = set(named_leaves(params))
    new = [name for name in _names(model) if name not in have]
    return folder.ConvertedWeights(params, model, AlbefConfig()), new


def _names(model: ModelConfig) -> list[str]:
    """What ALBEF's network of this size trains."""
    return ["/".join(entry.path) for entry in student_entries(model, dictionary=False)]


def _open(spec: str) -> EncoderSource:
    """Reads what was named on the command line."""
    path = Path(_download(spec.removeprefix(HUB)) if spec.startswith(HUB) else spec)
    place = path if path.is_dir() else path.parent
    if path.suffix == ".npz":
        tensors, config = read_npz(path)
        return EncoderSource(tensors, {}, config, path.name, place)
    tensors, cast = read_folder(path) if path.is_dir() else read_tensors(path)
    name = spec if spec.startswith(HUB) else path.name
    return EncoderSource(tensors, cast, _config_in(place), name, place)


def _config_in(place: Path) -> dict[str, Any]:
    """config.json of a folder, {} without one."""
    if not (place / "config.json").is_file():
        return {}
    try:
        found = json.loads((place / "config.json").read_text())
    except ValueError as error:
        raise DataError(
            f"{place / 'config.json'} ({error})", "JSON", "download it again"
        ) from error
    if not isinstance(found, dict):
        got = f"{place / 'config.json'} with a {type(found).__name__}"
        raise DataError(got, "a JSON object", "download it again")
    return found


def _download(name: str) -> str:
    try:
        from huggingface_hub import snapshot_download

        return snapshot_download(name, allow_patterns=list(HUB_FILES))
    except Exception as error:  # no such name, no network, no library: all end the same way
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{name!r}, which the Hugging Face hub did not give "
            f"({lines[0][:200] if lines else type(error).__name__})",
            "the name of a model, and network access",
            "download it, and name its folder",
        ) from error


def _back(export: Path, out: Path) -> int:
    params, state = hf_names.read_export(export)
    config = hf_names.read_config(export)
    method = hf_names.method_of(config).config
    weights = folder.ConvertedWeights(params, hf_names.model_config(config), method, state)
    conversion = {"format": 1, "from": "export", "source": {"folder": export.name}}
    folder.write(out, weights, conversion, str(export))
    print(
        f"{out}: {folder.size_in_mb(weights.params):.1f} MB of parameters; start a run with "
        f"train.weights={out}"
    )
    return 0
