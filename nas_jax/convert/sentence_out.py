"""An export as a model of sentence-transformers: ITC as bi-encoder, ITM as cross-encoder.

Only small files are added: the code of the module (`hf_files/nas_sentence.py`) and the list that
names it. The library must give from them what JAX gives from the checkpoint (`sentence_run.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas_jax.convert.export import Export, jax_side, missing
from nas_jax.convert.gate_apart import run_apart
from nas_jax.convert.gate_rows import TOLERANCE, GateReport, OutputRow, difference, refuse
from nas_jax.convert.hf_writing import write_json
from nas_jax.utils.errors import ConfigError

CODE = Path(__file__).parent / "hf_files/nas_sentence.py"
PACKAGE = "sentence_transformers"
REQUIRED = ">=6.0"
_MODULES = "sentence_transformers.base.modules"


def check(kind: str, python: str) -> None:
    """Raises ConfigError where the package is missing. kind, python: as in `Export`."""
    if missing([PACKAGE], python):
        raise ConfigError(
            "--also sentence-transformers without that package",
            f"sentence-transformers{REQUIRED}, which checks what is written",
            "pip install 'nas_jax[convert,sentence]'",
        )


def write(export: Export) -> str:
    """Adds the files to an export that passed the gate; returns a paragraph for its card.

    Raises GateRefused where sentence-transformers gives other numbers than JAX.
    """
    make(export.folder, export.kind)
    export.say("sentence-transformers: JAX")
    given, ours = jax_side(export)
    images = given["real/images"]
    captions = json.loads(str(given["real/captions"]))[: len(images)]
    with tempfile.TemporaryDirectory(prefix="nas_jax-sentence-") as place:
        inputs, outputs = Path(place, "inputs.npz"), Path(place, "outputs.npz")
        np.savez(inputs, images=images, captions=np.asarray(json.dumps(captions)))
        export.say("sentence-transformers: PyTorch")
        run_apart(
            str(Path(__file__).with_name("sentence_run.py")),
            [str(export.folder), str(inputs), str(outputs)],
            export.python,
            "sentence-transformers cannot run the export",
            f"sentence-transformers{REQUIRED}",
            "pip install -U 'nas_jax[convert,sentence]'; if it is there, report this",
        )
        with np.load(outputs) as theirs:
            rows, version = compare(ours, theirs), str(theirs["version"])
    report = GateReport(tuple(rows), "", 0, 0)
    refuse(report, export.say)
    export.say(report.table(rows))
    roles = "bi-encoder and as cross-encoder" if export.kind == "nas" else "bi-encoder"
    return (
        f"sentence-transformers {version} loads the folder as {roles}, and gives what the JAX "
        f"model gives, to {report.worst.error:.0e} of the largest value."
    )


def make(folder: Path, kind: str) -> None:
    """The files alone, unchecked. kind: as in `Export`."""
    modules = [("", f"{CODE.stem}.NasEncoder")]
    if kind == "nas":
        shutil.copyfile(CODE, folder / CODE.name)
    else:
        modules = [("", f"{_MODULES}.transformer.Transformer")]
        modules += [("1_Normalize", f"{_MODULES}.normalize.Normalize")]
        (folder / "1_Normalize").mkdir()
        write_json(folder / "1_Normalize/config.json", {})
        write_json(folder / "sentence_bert_config.json", _features_of(kind))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": of}
        for number, (path, of) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    settings = {
        "model_type": "SentenceTransformer",
        "requirements": {"sentence-transformers": REQUIRED},
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", settings)


def _features_of(kind: str) -> dict[str, Any]:
    """What the library calls of CLIPModel or SiglipModel. SigLIP's texts fill the positions."""
    modalities = {
        modality: {"method": f"get_{modality}_features", "method_output_name": "pooler_output"}
        for modality in ("text", "image")
    }
    return {
        "transformer_task": "feature-extraction",
        "modality_config": modalities,
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"padding": "max_length" if kind == "siglip" else True}},
    }


def compare(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[OutputRow]:
    """A row for each output; ITM of pictures whose patches have the codes of JAX.

    Other codes are of patches equally near to both, or the gate would not have passed the export.
    """
    rows = [
        OutputRow(
            f"real/sentence {name}", difference(ours[f"real/{name}"], theirs[name]), TOLERANCE
        )
        for name in ("image_embeds", "text_embeds")
    ]
    if "scores" not in theirs:  # CLIP and SigLIP
        return rows
    logits_Bx2 = ours["real/itm_logits"]
    scores_B, scale = logits_Bx2[:, 1] - logits_Bx2[:, 0], float(np.abs(logits_Bx2).max())
    same_B = np.ones(len(scores_B), bool)
    if "real/code_ids" in ours:
        same_B = (ours["real/code_ids"] == theirs["code_ids"]).all(1)
    if same_B.any():
        error = difference(scores_B[same_B], theirs["scores"][same_B], scale)
        rows.append(OutputRow("real/sentence scores", error, TOLERANCE))
    return rows
