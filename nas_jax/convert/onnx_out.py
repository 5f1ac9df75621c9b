"""An export's towers and matching head as ONNX files, which ONNX Runtime runs without PyTorch.

PyTorch writes them from the folder (`onnx_torch.py`); ONNX Runtime must then compute from them what
JAX computes from the checkpoint (`onnx_run.py`), as in the gate of the export itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nas_jax.convert.export import Export, jax_side, missing
from nas_jax.convert.gate_apart import run_apart
from nas_jax.convert.gate_inputs import CASES
from nas_jax.convert.gate_rows import TOLERANCE, GateReport, OutputRow, difference, refuse
from nas_jax.convert.gate_torch import TIE
from nas_jax.utils.errors import ConfigError

FOLDER = "onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OUTPUTS = ("image_embeds", "image_tokens", "text_embeds", "text_tokens", "itm_logits")


def check(kind: str, python: str) -> None:
    """Raises ConfigError where a package is missing. kind, python: as in `Export`."""
    absent = missing(PACKAGES, python)
    if absent:
        raise ConfigError(
            f"--also onnx without {' and '.join(absent)}",
            ", ".join(PACKAGES),
            "pip install 'nas_jax[convert,onnx]'",
        )


def write(export: Export) -> str:
    """Adds `onnx/` to an export that passed the gate; returns a paragraph for its card.

    Raises GateRefused where ONNX Runtime gives other numbers than JAX.
    """
    folder = export.folder / FOLDER
    make(export, folder)
    export.say("onnx: JAX")
    given, ours = jax_side(export)
    with tempfile.TemporaryDirectory(prefix="nas_jax-onnx-") as place:
        inputs, outputs = Path(place, "inputs.npz"), Path(place, "outputs.npz")
        np.savez(inputs, **_inputs(given, ours))  # type: ignore[arg-type]  # stub of allow_pickle
        export.say("onnx: ONNX Runtime")
        run_apart(
            str(Path(__file__).with_name("onnx_run.py")),
            [str(folder), str(inputs), str(outputs)],
            export.python,
            "ONNX Runtime cannot run the files",
            "onnxruntime, and files that it loads",
            "pip install 'nas_jax[convert,onnx]'; if it is there, report this",
        )
        with np.load(outputs) as theirs:
            rows, ties = compare(ours, theirs, _codes(export))
            version = str(theirs["version"])
    report = GateReport(tuple(rows), "", ties, 0)
    refuse(report, export.say)
    export.say(report.table(rows))
    parts = ", ".join(f"`{path.name}`" for path in sorted(folder.glob("*.onnx")))
    return (
        f"`{FOLDER}/` is for ONNX Runtime ({parts}); version {version} gives what the JAX model "
        f"gives, to {report.worst.error:.0e} of the largest value."
    )


def make(export: Export, folder: Path) -> None:
    """The files alone, unchecked."""
    export.say("onnx: PyTorch writes the files")
    run_apart(
        str(Path(__file__).with_name("onnx_torch.py")),
        [str(export.folder), str(folder)],
        export.python,
        "PyTorch cannot write ONNX files of the export",
        "torch, transformers, onnx and onnxscript that fit together",
        "pip install -U 'nas_jax[convert,onnx]'; if they are new, report this",
    )


def _codes(export: Export) -> np.ndarray | None:
    name = "dictionary/codes_KxD"
    return dict(export.trained.read([name]))[name] if name in export.trained.shapes else None


def _inputs(
    given: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the files read. ITM reads JAX's tokens, so that a tie of codes decides nothing there."""
    found = {"cases": given["cases"]}
    for case in CASES:
        pairs = len(given[f"{case}/pixels"])
        of_case = {
            "pixel_values": given[f"{case}/pixels"].transpose(0, 3, 1, 2),
            "input_ids": given[f"{case}/input_ids"][:pairs],
            "attention_mask": given[f"{case}/attention_mask"][:pairs],
        }
        of_case |= {name: x for name, x in _wanted(ours, case).items() if name.endswith("_tokens")}
        found |= {f"{case}/{name}": np.ascontiguousarray(x) for name, x in of_case.items()}
    return found


def _wanted(ours: Mapping[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    """Outputs of JAX under the names of the files: of NAS, `image_tokens` are what ITM reads."""
    found = {name: ours[f"{case}/{name}"] for name in _OUTPUTS if f"{case}/{name}" in ours}
    if f"{case}/dictionary_tokens" in ours:
        found["image_tokens"] = ours[f"{case}/dictionary_tokens"]
    return found


def compare(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    codes_KxD: np.ndarray | None,
) -> tuple[list[OutputRow], int]:
    """A row for each output, and the number of ties. codes_KxD: of the dictionary, or None.

    A patch that is equally near to two codes may get either; its token is then left out.
    """
    rows, ties = [], 0
    for case in CASES:
        wanted = _wanted(ours, case)
        found = {name: theirs[f"{case}/{name}"] for name in wanted}
        if codes_KxD is not None:
            other_BxN = ours[f"{case}/code_ids"] != theirs[f"{case}/code_ids"]
            tied_BxN = other_BxN & _equally_near(ours, theirs, case, codes_KxD)
            wrong = float((other_BxN & ~tied_BxN).sum())
            rows.append(OutputRow(f"{case}/onnx code_ids", wrong, 0))
            ties += int(tied_BxN.sum())
            kept_BxT = np.pad(~tied_BxN, ((0, 0), (1, 0)), constant_values=True)  # [CLS] is first
            for arrays in (wanted, found):
                arrays["image_tokens"] = arrays["image_tokens"][kept_BxT]
        rows += [
            OutputRow(f"{case}/onnx {name}", difference(array, found[name]), TOLERANCE)
            for name, array in wanted.items()
        ]
    return rows, ties


def _equally_near(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    case: str,
    codes_KxD: np.ndarray,
) -> np.ndarray:
    """Where the codes of both sides are equally near to a patch, as `TIE` has it: (B, N)."""
    distances_BxNxK = ours[f"{case}/distances"]
    nearest_BxN, other_BxN = (side[f"{case}/code_ids"] for side in (ours, theirs))
    near_BxN, away_BxN = (
        np.take_along_axis(distances_BxNxK, np.asarray(ids_BxN)[..., None], -1)[..., 0]
        for ids_BxN in (nearest_BxN, other_BxN)
    )
    both = ours[f"{case}/features"], codes_KxD[nearest_BxN]
    scale_BxN = sum(np.square(x_BxNxD, dtype=np.float64).sum(-1) for x_BxNxD in both)
    return np.abs(away_BxN - near_BxN) <= TIE * scale_BxN
