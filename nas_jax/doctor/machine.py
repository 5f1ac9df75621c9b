"""Cores, memory and folders that this process may use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GIB = 2**30
NO_LIMIT = 2**60  # cgroup v1 says "none" by a number near 2**63


class Cores(NamedTuple):
    """CPU cores: of the machine, that this process may run on, and whose time it may use."""

    installed: int
    allowed: int  # affinity: taskset, cpusets
    quota: float | None  # of the cgroup: a container's limit

    @property
    def usable(self) -> float:
        """The least of the three."""
        return min(self.installed, self.allowed, self.quota or self.installed)


def cores(root: Path = Path("/")) -> Cores:
    """root: of the file system, for tests."""
    installed = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else installed
    quotas = []
    for folder in _cgroups(root, "cpu"):
        both = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(both) == 2 and both[0].isdigit() and int(both[1]):
            quotas.append(int(both[0]) / int(both[1]))
    return Cores(installed, allowed, min(quotas, default=None))


class Memory(NamedTuple):
    """Bytes: of the machine, free now, and the least of the cgroup's and the shell's limit."""

    installed: int | None
    available: int | None
    limit: int | None

    @property
    def usable(self) -> int | None:
        """What one process may hold at most."""
        return min(filter(None, (self.installed, self.limit)), default=None)


def memory(root: Path = Path("/")) -> Memory:
    """root: of the file system, for tests."""
    lines = [line.split() for line in _text(root / "proc/meminfo").splitlines()]
    kib = {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    limits = [_address_space()] if root == Path("/") else []
    for folder in _cgroups(root, "memory"):
        limits += map(_number, (folder / "memory.max", folder / "memory.limit_in_bytes"))
    known = [limit for limit in limits if limit is not None and limit < NO_LIMIT]
    installed, available = (kib.get(name) for name in ("MemTotal:", "MemAvailable:"))
    return Memory(
        installed * 1024 if installed else _physical(),
        available * 1024 if available else None,
        min(known, default=None),
    )


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups that hold this process, own first: version 2, else version 1."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        top = mount / controller if names else mount
        own = top / path.lstrip("/")
        # in a container the path may be the host's, of which only the top is mounted
        yield own
        yield from (folder for folder in own.parents if top in (folder, *folder.parents))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # other systems have no such file
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _address_space() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


class Folder(NamedTuple):
    """A place where runs write."""

    what: str
    free: int | None  # bytes; None: nothing can be written
    why: str  # where nothing can be written


def folders() -> list[Folder]:
    """The current folder (work directories), the one for temporary files, and the home folder."""
    return [
        _folder("current", Path.cwd),
        _folder("temporary", lambda: Path(tempfile.gettempdir())),
        _folder("home", Path.home),
    ]


def _folder(what: str, find) -> Folder:
    try:
        path = find()
        with tempfile.TemporaryFile(dir=path):
            return Folder(what, shutil.disk_usage(path).free, "")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        return Folder(what, None, getattr(error, "strerror", None) or str(error))
