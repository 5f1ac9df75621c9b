"""Libraries: which versions are here, whether they import, and which devices jax has."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED = {
    "jax": (">=0.10,<0.13", "jax"),
    "flax": (">=0.12.6", "flax"),
    "optax": (">=0.2.6", "optax"),
    "orbax-checkpoint": (">=0.12", "orbax.checkpoint"),
    "grain": (">=0.2.16", "grain"),
    "array_record": (">=0.8", "array_record.python.array_record_module"),
    "numpy": (">=2.0", "numpy"),
    "ml_collections": (">=1.0", "ml_collections"),
    "absl-py": (">=2.3", "absl"),
    "opencv-python-headless": (">=4.10", "cv2"),
    "pillow": (">=11", "PIL.Image"),
    "simplejpeg": (">=1.8", "simplejpeg"),
    "tokenizers": (">=0.22", "tokenizers"),
    "msgpack": (">=1.1", "msgpack"),
    "matplotlib": (">=3.9", "matplotlib"),
    "tensorflow-datasets": (">=4.9.9", "tensorflow_datasets"),
    "tensorboardX": (">=2.6", "tensorboardX"),  # last: it looks for PyTorch, which takes seconds
}
"""Distribution -> the range of setup.py, and the module that is imported. tests/test_doctor.py
compares."""

EXTRAS = {
    "gpu": ("training on NVIDIA GPUs", ("jax-cuda13-plugin",)),
    "tpu": ("training on TPUs", ("libtpu",)),
    "compile": ("--mode=compile for TPUs", ("libtpu",)),
    "convert": ("PyTorch weights in and out", ("torch", "transformers", "safetensors")),
    "onnx": ("to-hf --also onnx", ("onnx", "onnxruntime", "onnxscript")),
    "sentence": ("to-hf --also sentence-transformers", ("sentence-transformers",)),
    "gcs": ("gs:// paths", ("gcsfs",)),
    "parquet": ("parquet files", ("pyarrow",)),
    "remote": ("hf, https and s3 addresses", ("fsspec", "aiohttp", "huggingface_hub", "s3fs")),
    "wandb": ("Weights & Biases", ("wandb",)),
    "mlflow": ("MLflow", ("mlflow-skinny", "sqlalchemy", "alembic")),
}
"""Extra of setup.py -> what it is for, and the distributions that it brings."""


DEVICES = "devices"
ON_JAX = (DEVICES, "flax", "optax", "orbax-checkpoint")  # not asked for where jax does not import


class Probe(NamedTuple):
    """What another process found."""

    failed: dict[str, str]  # distribution -> why it does not import
    devices: list[dict[str, Any]]  # platform, kind, memory in bytes or None
    no_devices: str = ""  # why jax has none
    stopped: str = ""  # how the process ended, where it did not come to its end
    at: str = ""  # the distribution, or DEVICES, at which it ended
    slow: bool = False  # it ended for lack of time


def version(distribution: str) -> str | None:
    """The installed version; None: it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> list[str]:
    """Name and version of all that is installed of what this project knows."""
    brought = (name for _, names in EXTRAS.values() for name in names)
    every = dict.fromkeys((*REQUIRED, "jaxlib", *brought))
    return [f"{name} {found}" for name in every if (found := version(name))]


def in_range(found: str, wanted: str) -> bool:
    """Whether a version like 0.10.2 is in a range like >=0.10,<0.13."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.split(r"[^\d.]", text)[0].split(".") if part]

    have = numbers(found)
    for part in wanted.split(","):
        sign = ">=" if part.startswith(">=") else "<"
        limit = numbers(part.removeprefix(sign))
        width = max(len(have), len(limit))
        left, right = (one + [0] * (width - len(one)) for one in (have, limit))
        if (left >= right) != (sign == ">="):
            return False
    return True


def missing(extra: str) -> list[str]:
    """The distributions of an extra that are not installed."""
    return [name for name in EXTRAS[extra][1] if version(name) is None]


def probe(seconds: float) -> Probe:
    """Imports every library and asks jax for its devices, in another process: either may hang,
    or end it.

    seconds: after which the process is ended.
    """
    here = str(Path(__file__).parents[2])
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), here)))
    command = [sys.executable, "-c", "from nas_jax.doctor.libraries import tell; tell()"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds)
        out, stopped, slow = done.stdout, _ended(done.returncode, done.stderr), False
    except subprocess.TimeoutExpired as error:
        out, stopped, slow = error.stdout or b"", f"no answer within {seconds:g} s", True
    # the last line of one that was ended may be cut
    answers = [json.loads(line) for line in out.split(b"\n")[:-1] if line[:1] == b"{"]
    failed = {one["asked"]: one["error"] for one in answers if "error" in one}
    devices = [device for one in answers for device in one.get("devices", ())]
    no_devices = failed.pop(DEVICES, "")
    asked = {one["asked"] for one in answers}
    at = next((name for name in _questions() if name not in asked), "") if stopped else ""
    return Probe(failed, devices, no_devices, stopped, at, slow)


def _ended(code: int, said: bytes) -> str:
    if code < 0:
        return f"Python ends by {signal.Signals(-code).name}"
    text = _last_line(said.decode(errors="replace"))
    return f"Python ends with exit code {code}: {text}" if code else ""


def _imported(module: str) -> dict[str, Any]:
    importlib.import_module(module)
    return {}


def _questions() -> dict[str, Callable[[], dict[str, Any]]]:
    """In the order in which they are asked; the devices come once jax is there."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, (_, module) in REQUIRED.items():
        found[name] = functools.partial(_imported, module)
        if name == "jax":
            found[DEVICES] = _devices
    return found


def tell() -> None:
    """In the other process: a line of JSON for each answer, at once."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    jax_is_here = False
    for name, ask in _questions().items():
        if name in ON_JAX and not jax_is_here:
            continue
        try:
            answer = ask()
            jax_is_here |= name == "jax"
        except Exception as error:  # any: a library that does not import may raise what it likes
            answer = {"error": f"{type(error).__name__}: {_last_line(str(error))}"}
        print(json.dumps({"asked": name, **answer}), file=out, flush=True)
    os._exit(0)  # without waiting for threads that libraries began


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing said"


def _devices() -> dict[str, Any]:
    import jax

    found = []
    for device in jax.local_devices():
        # a device that cannot compute is none
        jax.block_until_ready(jax.device_put(1.0, device) + 1.0)
        stats = device.memory_stats() or {}
        found.append(
            {
                "platform": device.platform,
                "kind": device.device_kind,
                "memory": stats.get("bytes_limit"),
            }
        )
    return {"devices": found}
