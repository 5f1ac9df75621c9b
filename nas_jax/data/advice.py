"""What to do with an input that training does not read: a command that does read it."""

from __future__ import annotations

import os
import shlex


def prepare_command(path: str, image_root: str = "", strip: str = "") -> str:
    """The command that prepares a file or folder, and the field to set then.

    image_root: as data.image_root, "" is the folder that the command is given in; strip: see
    `nas_jax.data.prepare --strip`.
    """
    name = path.rstrip("/")
    while (cut := os.path.splitext(name))[1] and "/" not in cut[1]:
        name = cut[0]
    out = f"{name}-prepared"
    words = ["python -m nas_jax.data.prepare", shlex.quote(path)]
    words += ["--image-root", shlex.quote(image_root)] if image_root else []
    words += ["--strip", shlex.quote(strip)] if strip else []
    return " ".join([*words, "--out", shlex.quote(out)]) + f", and set data.train=({out!r},)"
