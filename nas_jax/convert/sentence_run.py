"""The side of sentence-transformers in the gate: features and match scores of an export.

    python -I sentence_run.py EXPORT INPUTS.npz OUTPUTS.npz

Run as a file, in a process of its own that cannot import nas_jax, like `gate_torch.py`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def main(argv: list[str]) -> int:
    """Writes the outputs; returns the exit status."""
    sys.modules["nas_jax"] = None  # type: ignore[assignment]  # typeshed: no None; imports fail
    export, inputs, outputs = argv
    with np.load(inputs, allow_pickle=False) as file:
        given = {name: file[name] for name in file.files}
    np.savez(outputs, **run(export, given))  # type: ignore[arg-type]  # stub of allow_pickle
    return 0


def run(export: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of pictures and their captions, in the forms in which users have them."""
    import sentence_transformers
    import torch
    from PIL import Image

    model = sentence_transformers.SentenceTransformer(export, trust_remote_code=True, device="cpu")
    pictures = [Image.fromarray(array) for array in given["images"]]
    captions = json.loads(str(given["captions"]))
    found = {"image_embeds": model.encode(pictures), "text_embeds": model.encode(captions)}
    found["version"] = np.asarray(sentence_transformers.__version__)
    network: Any = model[0].model  # of a class that comes with the export
    if not hasattr(network, "match"):
        return found
    matcher = sentence_transformers.CrossEncoder(modules=[model[0]], device="cpu")
    pairs = list(zip(pictures, captions, strict=True))
    found["scores"] = matcher.predict(pairs, activation_fn=torch.nn.Identity())
    if network.neck is not None:
        with torch.inference_mode():
            pixels = model.preprocess(pictures)["pixel_values"]
            found["code_ids"] = network(pixel_values=pixels).code_ids.numpy()
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
