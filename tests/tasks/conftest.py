"""A pretrained checkpoint that the runs of tasks start from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The work directory of the smallest ALBEF, trained for two steps on scenes."""
    from task_runs import PRETRAINED

    from nas_jax import runner

    workdir = tmp_path_factory.mktemp("pretrained")
    assert runner.train(PRETRAINED, workdir) == 0
    return workdir
