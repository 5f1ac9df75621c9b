"""ONNX Runtime's side of the gate: runs the files of `onnx_torch.py` on given inputs.

    python -I onnx_run.py FOLDER INPUTS.npz OUTPUTS.npz

Run as a file, in a process of its own that cannot import nas_jax, JAX or PyTorch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

BLOCKED = ("nas_jax", "jax", "torch", "transformers")


def main(argv: list[str]) -> int:
    """Writes the outputs; returns the exit status."""
    for package in BLOCKED:  # an import of one fails
        sys.modules[package] = None  # type: ignore[assignment]  # typeshed: no None
    folder, inputs, outputs = argv
    with np.load(inputs, allow_pickle=False) as file:
        given = {name: file[name] for name in file.files}
    results = run(Path(folder), given) | {"version": np.asarray(onnxruntime.__version__)}
    np.savez(outputs, **results)  # type: ignore[arg-type]  # stub of allow_pickle
    return 0


def run(folder: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs, by `case/name`. The real case goes pair by pair, the random one as a whole."""
    results: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.onnx")):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for case in json.loads(str(given["cases"])):
            inputs = {put.name: given[f"{case}/{put.name}"] for put in session.get_inputs()}
            pairs = len(next(iter(inputs.values())))
            step = 1 if case == "real" else pairs
            pieces = [
                session.run(names, {name: x[start : start + step] for name, x in inputs.items()})
                for start in range(0, pairs, step)
            ]
            joined = map(np.concatenate, zip(*pieces, strict=True))
            results |= {f"{case}/{name}": x for name, x in zip(names, joined, strict=True)}
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
