"""Peak memory of an export to Hugging Face, each of its two processes by itself.

    python -m benchmarks.export_memory [--size base] [--folder PLACE_WITH_ROOM]

Saves random weights of that size as a checkpoint, exports them, and prints one JSON line: the size
of what is exported, and for both processes the peak of resident memory, the same of a process that
only imports the libraries, and the difference as a share of the size. The checkpoint is made by a
process of its own, so that its memory is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nas_jax.convert.gate_torch import peak_bytes

IMPORTS = {
    "jax": "import jax, nas_jax.convert.to_hf; jax.numpy.zeros(1)",
    "torch": "import torch; from transformers import AutoImageProcessor, AutoModel, "
    "AutoTokenizer, PreTrainedModel",
}


def resident_bytes() -> int:
    """Resident memory of this process now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def make(size: str, workdir: Path) -> None:
    """A work directory with a checkpoint of random weights."""
    import numpy as np

    from nas_jax.checkpoint.manager import CheckpointManager
    from nas_jax.checkpoint.stored import nest
    from nas_jax.config import RunConfig, to_dict
    from nas_jax.convert import hf_config, hf_names
    from nas_jax.data.config import DataConfig
    from nas_jax.data.tokenizer import learn_wordpiece
    from nas_jax.methods.nas import NasConfig
    from nas_jax.methods.variants import with_variant
    from nas_jax.models.sizes import model_config
    from nas_jax.train.trained import Trained

    model = model_config(size, vocab_size=30522)
    run = RunConfig(
        model=model,
        method=with_variant(NasConfig(), "vd_nva"),
        data=DataConfig(image_size=model.image_size),
    )
    record = json.loads(json.dumps(to_dict(run)))
    tokenizer = learn_wordpiece(
        ["a red square left of a blue circle", "there is no small green triangle"], 100
    )
    tokenizer.save(workdir / "tokenizer")
    config = hf_config.sizes_of(Trained(workdir, 1, record, {}, {}), tokenizer, model.vocab_size)
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32) * np.float32(0.03)
        centre = 1.0 if name.endswith(("scale", "codes_KxD")) else 0.07 if name == "temp" else 0.0
        return (values + np.float32(centre) if centre != 0.07 else np.full(shape, 0.07)).astype(
            dtype
        )

    arrays = nest({name: draw(name, *kind) for name, kind in hf_names.shapes_in(config).items()})
    dictionary = arrays.pop("dictionary")
    state = {"params": arrays, "method_state": {"dictionary": dictionary}}
    with CheckpointManager(workdir / "checkpoints") as manager:
        manager.save(1, state, {"next_step": 1}, {"config": record})


def export(workdir: Path, out: Path) -> dict:
    """Exports; the peaks of both processes."""
    from nas_jax.convert import to_hf

    to_hf.give_memory_back()  # as the command line does
    start = time.perf_counter()
    waiting = {}

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        if line.endswith("PyTorch"):
            waiting["mb"] = resident_bytes() / 1e6

    report = to_hf.export(workdir, out, say=say)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    seconds = time.perf_counter() - start
    return {
        "exported_mb": size / 1e6,
        "seconds": seconds,
        "worst": report.worst.error,
        "ties": report.ties,
        "jax_peak_mb": peak_bytes() / 1e6,
        "jax_side_while_torch_runs_mb": waiting["mb"],
        "torch_peak_mb": report.torch_peak_bytes / 1e6,
    }


def _child(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    ).stdout


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="base", help="row of nas_jax/models/sizes.py")
    parser.add_argument(
        "--folder", help="where checkpoint and export go for a while; default: a temporary folder"
    )
    parser.add_argument("--step", choices=("make", "export"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step == "make":
        make(args.size, Path(args.folder, "run"))
        return 0
    if args.step == "export":
        print(json.dumps(export(Path(args.folder, "run"), Path(args.folder, "out"))))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        shared = ["-m", "benchmarks.export_memory", "--size", args.size, "--folder", folder]
        _child(*shared, "--step", "make")
        measured = json.loads(_child(*shared, "--step", "export").splitlines()[-1])
    for side, imports in IMPORTS.items():
        printed = _child(
            "-c",
            f"{imports}; from nas_jax.convert.gate_torch import peak_bytes; print(peak_bytes() / "
            "1e6)",
        )
        measured[f"{side}_imports_mb"] = float(printed.splitlines()[-1])
        increase = measured[f"{side}_peak_mb"] - measured[f"{side}_imports_mb"]
        measured[f"{side}_increase_per_size"] = increase / measured["exported_mb"]
    print(
        json.dumps(
            {name: round(value, 9 if name == "worst" else 2) for name, value in measured.items()}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
