"""The PyTorch side of the gate: runs an export, loaded with transformers alone, on given inputs.

    python -I gate_torch.py EXPORT INPUTS.npz OUTPUTS.npz [PLAIN]

Run as a file, in a process of its own that cannot import nas_jax, so that it sees what any other
user sees.
"""

from __future__ import annotations

import functools
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

HOOKED = re.compile(
    r"image_encoder\.(patch_embed|norm|blocks\.\d+(\.attention|\.attention_norm)?)|"
    r"text_encoder\.embedding_norm|(text|fusion)_encoder\.layers\.\d+(\.(cross_)?attention)?"
)
"""Modules whose outputs are compared."""
DUAL = ("clip", "siglip")  # model types that transformers itself has
WORDS = 32  # positions of a text whose MLM logits are compared: V numbers each
TIE = 1e-5  # two codes as near as this, as a share of the squared norms, are equally near


def main(argv: list[str]) -> int:
    """Writes the outputs; returns the exit status."""
    _block("nas_jax")
    export, inputs, outputs, *plain = argv
    with np.load(inputs, allow_pickle=False) as file:
        given = {name: file[name] for name in file.files}
    results = run(export, given)
    for folder in plain:
        results |= run_plain(folder, given)
    import transformers

    facts = {"transformers": transformers.__version__, "peak_bytes": peak_bytes()}
    results = {"facts": np.asarray(json.dumps(facts))} | results
    np.savez(outputs, **results)  # type: ignore[arg-type]  # stub of allow_pickle
    return 0


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    try:  # getrusage would count what the process that started this one had at that moment
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def _block(package: str) -> None:
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == package:
                raise ImportError(f"the export must work without {package}")

    sys.meta_path.insert(0, Blocked())


def run(export: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of an export, by `case/name`, in the order in which they are computed."""
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    results: dict[str, np.ndarray] = {}
    kind = json.loads(Path(export, "config.json").read_text())["model_type"]
    dual, info = kind in DUAL, {}
    ours = {} if dual else {"trust_remote_code": True}  # for config.json, which both read
    model = AutoModel.from_pretrained(export, dtype=torch.float32, output_loading_info=dual, **ours)
    if dual:
        model, info = model
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(export, **ours)
    processor = AutoImageProcessor.from_pretrained(export)
    for case in json.loads(str(given["cases"])):
        pixels = given.get(f"{case}/pixel_values")
        if pixels is None:  # a real case: pictures and captions go through the export's own files
            pixels = processor(images=list(given[f"{case}/images"]), return_tensors="np")[
                "pixel_values"
            ]
            results[f"{case}/pixel_values"] = np.asarray(pixels)
            large = processor(images=[given[f"{case}/large"]], return_tensors="np")["pixel_values"]
            results[f"{case}/resized"] = np.asarray(large)
            captions = json.loads(str(given[f"{case}/captions"]))
            words = tokenizer(
                captions,
                padding="max_length",
                truncation=True,
                return_tensors="np",
                return_attention_mask=True,
            )
            results[f"{case}/input_ids"] = np.asarray(words["input_ids"])
            results[f"{case}/attention_mask"] = np.asarray(words["attention_mask"])
        pairs = len(pixels)
        texts = {name: (given | results)[f"{case}/{name}"][:pairs] for name in _TEXT}
        inputs = {name: torch.from_numpy(np.asarray(array)) for name, array in texts.items()}
        inputs["pixel_values"] = torch.from_numpy(np.array(pixels, np.float32))
        if dual:
            outputs = _dual_outputs(model, inputs, kind, info)
        else:
            outputs = _outputs(model, inputs, given, case)
        results |= {f"{case}/{name}": array for name, array in outputs.items()}
    del model
    return results | run_hub(export, given, ours, bool(results.get("real/ties", 0)))


def run_hub(
    export: str, given: dict[str, np.ndarray], ours: dict, ties: bool
) -> dict[str, np.ndarray]:
    """What AutoProcessor and transformers' pipelines give for pictures and labels.

    ours: options of code that travels with the export; ties: take the codes of the JAX side.
    """
    if "real/images" not in given:
        return {}
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(export, **ours)
    images, captions = list(given["real/images"]), json.loads(str(given["real/captions"]))
    both = processor(images=images, text=captions, return_tensors="np")
    results = {
        f"real/processor_{name}": np.asarray(both[name]) for name in ("pixel_values", "input_ids")
    }
    if "real/labels" in given:
        tasks = {"itc": "zero-shot-image-classification"}
        tasks |= {"itm": "image-text-matching"} if ours else {}
        for name, task in tasks.items():
            results[f"real/pipeline_{name}"] = _scores(task, export, given, ours, ties)
    return results


def _scores(
    task: str, export: str, given: dict[str, np.ndarray], ours: dict, ties: bool
) -> np.ndarray:
    """Scores of a pipeline (pictures, labels), each picture by itself."""
    import torch
    from PIL import Image
    from transformers import pipeline

    options = {"model": export, "dtype": torch.float32, "device": "cpu"} | ours
    # the stub has no tasks that come with an export
    pipe = pipeline(task, **options)  # type: ignore[call-overload]
    labels, rows = json.loads(str(given["real/labels"])), []
    for number, image in enumerate(given["real/images"]):
        if ties:
            codes = torch.from_numpy(given["real/code_ids"][[number]]).long()
            look_up = type(pipe.model).look_up
            pipe.model.look_up = functools.partial(look_up, pipe.model, code_ids=codes)
        found = pipe(Image.fromarray(image), candidate_labels=labels, hypothesis_template="{}")
        scores = {row["label"]: row["score"] for row in found}
        rows.append([scores[label] for label in labels])
    return np.asarray(rows, np.float32)


def _dual_outputs(model, inputs: dict, kind: str, info: dict) -> dict[str, np.ndarray]:
    """Features and logits of a class of transformers, and how many tensors it did not find or
    know.
    """
    import torch

    if kind == "siglip":  # is trained to read its padding
        inputs = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    with torch.inference_mode():
        output = model(**inputs)
    names = ("image_embeds", "text_embeds", "logits_per_image")
    found = {name: output[name].numpy() for name in names}
    missing = len(info["missing_keys"]) + len(info["unexpected_keys"])
    return found | {"missing": np.asarray(float(missing))}


_TEXT = ("input_ids", "attention_mask")


def _outputs(model, inputs: dict, given: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    import torch

    with torch.inference_mode():
        recorded: dict[str, np.ndarray] = {}
        hooks = [
            module.register_forward_hook(_recorder(recorded, name))
            for name, module in model.named_modules()
            if HOOKED.fullmatch(name)
        ]
        output = model(**inputs)
        ties = np.zeros((), np.int64)
        if model.neck is not None:
            # A patch may lie as near to one code as to another; the two sides then may choose
            # differently, rightly.
            ours, theirs = output.code_ids, torch.from_numpy(given[f"{case}/code_ids"]).long()
            features = model.neck.features(output.image_tokens[:, 1:])
            distances = model.dictionary.distances(features)
            if bool((ours != theirs).any()) and _only_ties(
                model.dictionary.codes, features, distances, ours, theirs
            ):
                ties = np.asarray((ours != theirs).sum())
                recorded.clear()
                output = model(**inputs, code_ids=theirs)
            recorded["features"], recorded["distances"] = features.numpy(), distances.numpy()
        for hook in hooks:
            hook.remove()
        if model.generator_head is not None:
            recorded["generator_logits"] = model.generate_words(
                output.text_tokens[:, :WORDS]
            ).numpy()
        recorded |= {name: tensor.numpy() for name, tensor in output.items()}
        recorded["mlm_logits"] = recorded["mlm_logits"][:, :WORDS]
        return recorded | {"ties": ties}


def _only_ties(codes, features, distances, ours, theirs) -> bool:
    """Whether the codes that differ are equally near."""
    both = (
        distances.gather(-1, ours[..., None])[..., 0],
        distances.gather(-1, theirs[..., None])[..., 0],
    )
    scale = features.square().sum(-1) + codes[theirs].square().sum(-1)
    return bool(((both[1] - both[0]).abs() <= TIE * scale).all())


def _recorder(recorded: dict[str, np.ndarray], name: str):
    def hook(module, inputs, output) -> None:
        array = output.flatten(2).transpose(1, 2) if name.endswith("patch_embed") else output
        # The fusion encoder runs twice where MLM reads other image tokens than ITM.
        key = f"{name} (mlm)" if name in recorded else name
        recorded[key] = array.numpy()

    return hook


def run_plain(export: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ITC cosines of the dual encoder as BLIP."""
    import torch
    from transformers import BlipForImageTextRetrieval

    loaded: Any = BlipForImageTextRetrieval.from_pretrained(
        export, dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded
    model.eval()
    results = {
        "plain/missing": np.asarray(len(info["missing_keys"]) + len(info["unexpected_keys"]))
    }
    for case in json.loads(str(given["cases"])):
        pixels = torch.from_numpy(given[f"{case}/plain_pixel_values"])
        inputs = {name: torch.from_numpy(given[f"{case}/{name}"][: len(pixels)]) for name in _TEXT}
        with torch.inference_mode():
            score = model(**inputs, pixel_values=pixels, use_itm_head=False).itm_score
        results[f"{case}/plain_cosine"] = score.numpy()
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
