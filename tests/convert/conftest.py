from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_jax.convert import gate, gate_dual, gate_torch
from nas_jax.convert.__main__ import main

RECORDED = Path(__file__).parents[1] / "fixtures" / "nas_step.npz"


@pytest.fixture(scope="session")
def recorded():
    """The state dict of the recorded step: NAS's network with teacher, queues and dictionary."""
    with np.load(RECORDED) as file:
        return {
            name.removeprefix("weights/"): torch.from_numpy(file[name])
            for name in file.files
            if name.startswith("weights/")
        }


@pytest.fixture(scope="session")
def sizes(tmp_path_factory):
    """The sizes file of the recorded step: all that its shapes do not tell."""
    path = tmp_path_factory.mktemp("sizes") / "sizes.json"
    path.write_text(json.dumps({"heads": 4}))
    return str(path)


@pytest.fixture
def convert(capsys):
    """Runs the command line; returns its exit code, and what it printed."""

    def run(*arguments) -> tuple[int, str]:
        capsys.readouterr()  # what was printed before
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture(scope="session")
def modules(tmp_path_factory) -> Path:
    """Where transformers puts the exports' code; by default that is in the user's home."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture
def in_process(monkeypatch, modules):
    """The PyTorch side in this process: what its own process adds is tested once, and costs seconds
    to start.
    """

    def run_torch(arguments: list[str], python: str) -> None:
        export, inputs, outputs, *plain = arguments
        with np.load(inputs) as file:
            given = {name: file[name] for name in file.files}
        results = gate_torch.run(export, given)
        for folder in plain:
            results |= gate_torch.run_plain(folder, given)
        np.savez(
            outputs, facts=np.asarray(json.dumps({"transformers": "5", "peak_bytes": 0})), **results
        )

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(gate, "run_torch", run_torch)
    monkeypatch.setattr(gate_dual, "run_torch", run_torch)
