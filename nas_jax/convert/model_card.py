"""README.md of an export: what the model is, its use, its training data, and its results.

Written as text from the files of the work directory; what they do not say is not said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax import __version__
from nas_jax.convert.card_data import Labels, Measured, front_matter, metrics_table
from nas_jax.convert.card_use import dual_use, nas_use
from nas_jax.convert.export import Export
from nas_jax.convert.gate_rows import TOLERANCE, GateReport
from nas_jax.convert.hf_names import method_of
from nas_jax.methods.clip import TOWERS
from nas_jax.train.trained import Trained
from nas_jax.train.workdir import EVALS, METRICS

_PAPERS = {
    "albef": "ALBEF (Li et al., NeurIPS 2021, arXiv 2107.07651)",
    "nas": "NAS (Wang et al., AAAI 2025, arXiv 2412.10029), on top of ALBEF (Li et al., NeurIPS "
    "2021)",
}
_PARTS = ("dictionary", "nva", "nta")  # of NAS


def write(
    export: Export, notes: Sequence[str], labels: Labels, measured: Sequence[Measured] = ()
) -> str:
    """The text of the card.

    notes: paragraphs on what `export.WRITERS` added. measured: of `card_data.read_results`.
    """
    trained, config, run = export.trained, export.facts, export.trained.config
    parts = _dual_parts if export.kind in TOWERS else _nas_parts
    summary, use, protocol = parts(export)
    metrics = metrics_table(measured) if measured else _metrics(trained)
    sections = [
        front_matter(export, labels, measured),
        f"# {run.get('name', 'model')}\n\n{summary}\n\n{_license(labels)}",
        "\n\n".join([f"## Use\n\n{use}", *notes]),
        f"## Data\n\n{_data(run.get('data', {}), config)}",
        f"## Training\n\n{_training(trained)}",
        f"## Metrics\n\n{metrics}",
        f"## Protocol\n\n{protocol}",
        f"## Agreement\n\n{_agreement(export.report, export.plain)}",
    ]
    return "\n\n".join(sections) + "\n"


def _license(labels: Labels) -> str:
    if labels.license:
        return f"License: {labels.license}."
    return "No license is given for these weights: ask who made them before you use them."


def _nas_parts(export: Export) -> tuple[str, str, str]:
    """Summary, use and protocol of a model with a class of `hf_files`."""
    trained, config = export.trained, export.facts
    state = tuple(f"{entry}/" for entry in method_of(config).scoring_state)
    summary = _summary(config, _numbers(trained, state), trained.step)
    return summary, nas_use(export), _protocol(trained.config, config)


def _numbers(trained: Trained, without: tuple[str, ...] = ()) -> int:
    """How many numbers the model has, without the arrays whose names begin so."""
    shapes = trained.shapes.items()
    return sum(int(np.prod(shape)) for name, (shape, _) in shapes if not name.startswith(without))


def _dual_parts(export: Export) -> tuple[str, str, str]:
    """Summary, use and protocol of an export as CLIPModel or SiglipModel."""
    trained, facts = export.trained, export.facts
    size = facts["image_size"]
    summary = (
        f"Trained with nas_jax {__version__} by the method {facts['method']}, to step "
        f"{trained.step}; not the authors' own weights. {_numbers(trained) / 1e6:.1f} M "
        f"parameters, pictures of {size} x {size} pixels, texts of up to {facts['text_length']} "
        "tokens."
    )
    return summary, dual_use(export), _protocol(trained.config, facts)


def _summary(config: Mapping[str, Any], numbers: int, step: int) -> str:
    paper = _PAPERS.get(config["method"], config["method"])
    dictionary = f", and a visual dictionary of {config['dictionary_codes']} codes" * bool(
        config["dictionary_codes"]
    )
    return (
        f"Trained with nas_jax {__version__} by the method of {paper}, to step {step}; not the "
        f"authors' own weights. {numbers / 1e6:.1f} M parameters: {config['image_layers']} layers "
        f"for pictures of {config['image_size']} x {config['image_size']} pixels in patches of "
        f"{config['patch_size']}, {config['text_layers']} layers for texts, "
        f"{config['fusion_layers']} that read both, width {config['hidden_size']}{dictionary}."
    )


def _data(data: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    # The last part of a path: the others are the place on one machine.
    entries = [
        entry if entry.startswith("tfds:") else Path(entry).name for entry in data.get("train", ())
    ]
    if not entries:
        return "Weights of other code that were converted; see there."
    world = data.get("scene_world", "small")
    kinds = {"scenes": f"scenes (drawn pictures of shapes, {world} world, generated captions)"}
    lines = [f"* {kinds.get(entry, entry)}" for entry in entries]
    if data.get("weights"):
        lines.append(f"* shares of a batch: {', '.join(map(str, data['weights']))}")
    crop = data.get("crop_scale")
    how = f"random crops of {crop[0]:g} to {crop[1]:g} of the area" if crop else "no crop"
    ops = data.get("rand_augment_ops", 0)
    lines.append(
        f"* pictures: {how}, {'mirrored at random, ' if data.get('flip') else ''}"
        f"{f'{ops} RandAugment operations' if ops else 'no RandAugment'}, {config['image_size']} "
        "pixels a side"
    )
    return "\n".join(lines)


def _training(trained: Trained) -> str:
    run = trained.config
    lines = []
    if "optimizer" in run:
        optimizer, train, data = run["optimizer"], run["train"], run["data"]
        length = f"{train['steps']} steps" if train["steps"] else f"{train['epochs']} epochs"
        lines.append(
            f"* step {trained.step} of a run of {length}, {data['batch_size']} pairs a step, seed "
            f"{run['seed']}"
        )
        lines.append(
            f"* AdamW, learning rate {optimizer['lr']:g}, schedule {optimizer['schedule']}"
        )
        method = run["method"]
        parts = [part for part in _PARTS if method.get(part, {}).get("enabled")]
        of_nas = f"; parts of NAS: {', '.join(parts) or 'none'}" * (method["name"] in _PAPERS)
        lines.append(f"* method {method['name']}{of_nas}")
        lines.append(f"* computed in {run['model']['dtype']}, parameters in float32")
    losses = _last_entry(trained)
    if losses:
        values = ", ".join(
            f"{key} {value:.4f}" for key, value in losses.items() if key.startswith("loss")
        )
        lines.append(f"* at step {losses['step']}: {values}")
    return "\n".join(lines) or "Not known: these weights were converted."


def _last_entry(trained: Trained) -> dict[str, Any]:
    """The newest training entry of metrics.jsonl up to the step."""
    path = trained.workdir / METRICS
    if not path.is_file():
        return {}
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    entries = [
        entry for entry in entries if entry["step"] <= trained.step and entry.get("kind") == "train"
    ]
    return entries[-1] if entries else {}


def _metrics(trained: Trained) -> str:
    found = {
        int(path.stem): path
        for path in (trained.workdir / EVALS).glob("*.json")
        if path.stem.isdecimal()
    }
    steps = [step for step in found if step <= trained.step]
    if not steps:
        return "None: this run has no evaluation on file up to this step."
    step = max(steps)
    rows = json.loads(found[step].read_text())["metrics"]
    lines = ["| metric, percent | value | chance | blind | examples |", "|---|---|---|---|---|"]
    for row in rows:
        blind = "" if row["blind"] is None else f"{row['blind']:.1f}"
        lines.append(
            f"| {row['key']} | {row['value']:.1f} | {row['chance']:.1f} | {blind} | "
            f"{row['count']} |"
        )
    when = "of this step" if step == trained.step else f"of step {step}, before this one"
    return f"Evaluation {when}.\n\n" + "\n".join(lines)


def _protocol(run: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    seen = "dictionary" if config.get("dictionary_codes") else "image"
    itm = f"; itm: probability of a match, on {seen} tokens" * ("kind" not in config)
    lines = [
        f"* Keys read set/task/scorer/quantity. itc: cosine of the features{itm}.",
        f"* Pictures are resized to {config['image_size']} x {config['image_size']}, bicubic, "
        "without a crop; texts "
        f"are cut to {config['text_length']} tokens.",
        "* chance: random scores. blind: the same evaluation with blank pictures, which shows "
        "what the text alone "
        "gives.",
        "* Comparisons are strict: a tie counts as wrong.",
    ]
    evaluation = run.get("eval", {})
    if evaluation.get("rerank_k"):
        lines.append(
            f"* itm retrieval ranks the {evaluation['rerank_k']} best by itc anew; the others "
            "keep their place."
        )
    return "\n".join(lines)


def _agreement(report: GateReport, plain: str) -> str:
    ties = (
        f" {report.ties} patches are equally near to two codes, of which the sides chose "
        "different ones." * bool(report.ties)
    )
    also = f" `{plain}/` was compared in the same way." * bool(plain)
    return (
        f"Before this folder was given its name, {len(report.rows)} arrays (outputs, and what "
        "stands between the "
        "layers) were compared with the JAX model on random inputs and on pictures with "
        "captions, in float32, with "
        f"transformers {report.transformers}: all within {TOLERANCE:.0e} of their scale, the "
        "largest difference is "
        f"{report.worst.error:.1e} ({report.worst.name}).{ties}{also} Token ids and codes are "
        "equal. "
        "The weights, read back, have the bits of the checkpoint."
    )
