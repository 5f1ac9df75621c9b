"""What was found, as lines for a reader and as a block for a bug report."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

OK, WARNING, ERROR = "ok", "warning", "ERROR"
# their values say nothing of who runs it
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "JAX_ENABLE_X64",
    "JAX_PLATFORMS",
    "LIBTPU_INIT_ARGS",
    "NPROC",
    "OMP_NUM_THREADS",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
)
SYSTEM = ("/dev/", "/usr/", "/lib", "/proc/", "/sys/", "/etc/")


class Finding(NamedTuple):
    """One line."""

    what: str
    verdict: str
    text: str

    def __str__(self) -> str:
        return f"{self.what:<10} {self.verdict:<8} {self.text}"


def anonymous(text: str) -> str:
    """Without the user's name, the home folder, the host's name and the folders of paths."""
    for secret, stands in _secrets():
        case = re.IGNORECASE if stands == "HOST" else 0
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", stands, text, flags=case)

    def shortened(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith(SYSTEM) else f".../{found[1]}"

    return re.sub(r"(?<![\w.~/])(?:/[^/\s:;,'\"]+)*/([^/\s:;,'\"]+)", shortened, text)


def _secrets() -> list[tuple[str, str]]:
    """(what must not be told, what stands for it), the longest first."""
    found = {}
    for variable in ("HOME", "USERPROFILE"):
        if len(home := os.environ.get(variable, "").rstrip("/\\")) > 1:
            found.update({home: "~", os.path.realpath(home): "~", Path(home).name: "USER"})
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")}
    # a container's user may have no name
    with contextlib.suppress(ImportError, KeyError, OSError):
        names.add(getpass.getuser())
    found.update({name: "USER" for name in names if name})
    host = socket.gethostname()
    found.update({name: "HOST" for name in (host, host.split(".")[0]) if name})
    found.pop("root", None)  # nobody's name
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the CPU, where the system says it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def block(version: str, versions: Sequence[str], findings: Sequence[Finding]) -> str:
    """What a bug report needs, to be pasted. versions: of the libraries."""
    variables = [
        f"{name}={anonymous(os.environ[name])}" for name in VARIABLES if name in os.environ
    ]
    lines = [
        f"nas_jax {version}, Python {platform.python_version()}, "
        f"{platform.system()} {anonymous(platform.release())} {platform.machine()}",
        processor(),
        ", ".join(versions),
        *(["environment: " + " ".join(variables)] if variables else []),
        *map(str, findings),
    ]
    return "\n".join(["```", *lines, "```"])
