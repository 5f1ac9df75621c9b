"""What to do with an input that training does not read: a command that does read it."""

from __future__ import annotations

import re
import shlex


def prepare_command(path: str, field: str, image_root: str = "", strip: str = "") -> str:
    """The command that prepares a file or folder, and where its result is to be named.

    field: data.train or data.val; image_root: as data.image_root, "" is the folder that the command
    is given in; strip: see `nas_jax.data.prepare --strip`.
    """
    # The whole name: a.csv and a.tsv of one run are two folders.
    out = re.sub(r"[*?{}\[\],]+", "_", path.rstrip("/")) + "-prepared"
    words = ["python -m nas_jax.data.prepare", shlex.quote(path)]
    words += ["--image-root", shlex.quote(image_root)] if image_root else []
    words += ["--strip", shlex.quote(strip)] if strip else []
    return (
        " ".join([*words, "--out", shlex.quote(out)]) + f", and put {out!r} in its place in {field}"
    )
