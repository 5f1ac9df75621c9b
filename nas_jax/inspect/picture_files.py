"""What the commands that draw a trained model share: flags, and the files that they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas_jax.storage.files import make_folder, through_disk, write_whole
from nas_jax.storage.paths import as_path
from nas_jax.train.trained import Trained
from nas_jax.train.workdir import writing_out
from nas_jax.utils.commands import Parser


def parser(name: str, description: str) -> Parser:
    """Of `python -m nas_jax.inspect.NAME`, with what these commands share."""
    found = Parser(
        prog=f"python -m nas_jax.inspect.{name}", description=description, allow_abbrev=False
    )
    found.add_argument("checkpoint", metavar="WORKDIR[/checkpoints/STEP]")
    found.add_argument("--out", default="", metavar="DIR", help="default: the work directory")
    return found


def run_name(trained: Trained) -> str:
    """As it stands in titles."""
    return f"{trained.config.get('name', trained.workdir.name)} at step {trained.step}"


def keep(
    name: str,
    folder: Path | str,
    numbers: Mapping[str, Any],
    draw: Callable[[Path], None],
) -> str:
    """Writes NAME.json and NAME.png, which `draw` draws to a path; returns a line that says so.

    Raises CheckpointError where the folder cannot be written.
    """
    folder = as_path(folder)
    with writing_out(folder):
        make_folder(folder)
        write_whole(
            folder / f"{name}.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
        )
        with through_disk(folder / f"{name}.png") as file:
            draw(file)
    return f"written: {folder / name}.json, {folder / name}.png"
