"""The map in docs/design.md holds: who imports whom, and nothing names a place on one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks import counts
from nas_jax.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]

_BASE = {"typing", "utils"}
_LEAVES = {"storage", "parallel", "data", "kernels", "models", "losses", "negatives"}
# Room (or file) of nas_jax -> the rooms it may import besides itself.
MAY_IMPORT = {
    "typing": set(),
    "utils": {"typing"},
    "doctor": _BASE,
    "storage": _BASE,
    "parallel": _BASE,
    "data": _BASE | {"storage", "parallel"},
    "kernels": _BASE | {"parallel"},
    "models": _BASE | {"parallel", "kernels"},
    "losses": _BASE | {"parallel", "kernels"},
    "negatives": _BASE | {"parallel", "kernels", "losses"},
    "methods": _BASE | _LEAVES,
    "checkpoint": _BASE | _LEAVES | {"methods"},
    "train": _BASE | _LEAVES | {"methods", "checkpoint"},
    "convert": _BASE | _LEAVES | {"methods", "checkpoint", "train", "evals"},
    "evals": _BASE | _LEAVES | {"methods", "checkpoint", "train"},
    "tasks": _BASE | _LEAVES | {"methods", "checkpoint", "train", "evals"},
    "inspect": _BASE | _LEAVES | {"methods", "checkpoint", "train", "evals"},
}
# assemble a run out of all rooms
OUTERMOST = {"__main__", "config", "runner", "rehearsal", "preflight"}
OUTSIDE = {"configs", "launch", "benchmarks", "tests", "main"}
# machines that only train may lack them
HEAVY = {"grain", "tensorflow_datasets", "ml_collections", "transformers"}
MAY_BE_HEAVY = {"data"}
# copied into exports and run there, where this package is not installed
SHIPPED = ROOT / "nas_jax/convert/hf_files"


def imports(source: str) -> list[tuple[str, bool]]:
    """(dotted module, is at module level) of every import that runs; `from a import b` gives
    `a.b`.
    """
    found = []

    def walk(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                found.extend((f"{module}.{alias.name}", top) for alias in child.names)
            walk(
                child,
                top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
            )

    walk(ast.parse(source), True)
    return found


def faults(room: str, source: str) -> list[str]:
    """Every import in a file of `room` that points the wrong way."""
    found = []
    for module, top in imports(source):
        head, *rest = module.split(".")
        if head == "":
            found.append(f"relative import of {module}: write the full name")
        elif head in OUTSIDE:
            found.append(f"{room} imports {head}, which is outside")
        elif head == "nas_jax" and rest and room not in OUTERMOST:
            target = rest[0]
            if target not in MAY_IMPORT[room] | {room, "__version__"}:
                found.append(f"{room} imports {target}")
        elif head in HEAVY and top and room not in MAY_BE_HEAVY:
            found.append(f"{room} imports {head} at module level")
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "nas_jax").with_suffix("").parts[0]


def test_imports_point_one_way():
    paths = [
        path
        for path in sorted((ROOT / "nas_jax").rglob("*.py"))
        if path != ROOT / "nas_jax/__init__.py"
    ]
    paths = [path for path in paths if path.parent != SHIPPED]
    unknown = {room_of(path) for path in paths} - MAY_IMPORT.keys() - OUTERMOST
    assert not unknown, f"rooms without a line in MAY_IMPORT and docs/design.md: {unknown}"
    wrong = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in paths
        for fault in faults(room_of(path), path.read_text())
    ]
    assert not wrong, "\n".join(wrong)
    assert len(paths) > 20  # the walk found the code


def test_every_room_is_on_the_map():
    map_text = (ROOT / "docs/design.md").read_text()
    assert not [room for room in MAY_IMPORT if f"nas_jax/{room}" not in map_text]


@pytest.mark.parametrize(
    ("room", "source", "fault"),
    [
        ("train", "from nas_jax.evals import metrics", "train imports evals"),
        ("models", "def f():\n    import nas_jax.losses.itc", "models imports losses"),
        ("train", "from nas_jax import config", "train imports config"),
        ("evals", "from configs import demo", "evals imports configs, which is outside"),
        ("runner", "import main", "runner imports main, which is outside"),
        ("losses", "from . import itc", "relative import of ..itc: write the full name"),
        ("train", "import grain.python", "train imports grain at module level"),
        (
            "train",
            "class A:\n    from transformers import AutoModel",
            "train imports transformers at module level",
        ),
    ],
)
def test_a_wrong_import_is_caught(room, source, fault):
    assert faults(room, source) == [fault]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        (
            "train",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nas_jax.config import "
            "RunConfig",
        ),
        ("train", "def f():\n    import ml_collections"),
        ("negatives", "from nas_jax.losses.mlm import gather_positions"),
        ("runner", "from nas_jax.evals.suite import make_evaluator"),
    ],
)
def test_a_right_import_passes(room, source):
    assert faults(room, source) == []


MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("home", "root", "work", "Users")) + r")/")
TEXT_FILES = {".py", ".md", ".toml", ".txt", ".cfg", ".yaml", ".yml", ".json", ".sh"}


def test_the_code_is_as_simple_to_read_as_it_promises(capsys, monkeypatch):
    assert counts.main() == 0, capsys.readouterr().out
    assert len(counts.method_files()) == len({cls.__module__ for cls in METHODS.values()}) > 15
    monkeypatch.setattr(counts, "counts", lambda: [counts.Count("lines", 251, 250, "a file")])
    assert counts.main() == 1 and "ABOVE" in capsys.readouterr().out


def test_no_path_of_one_machine():
    skipped = {".git", ".venv", "runs", "build", "dist"}
    tops = [
        path
        for path in ROOT.iterdir()
        if path.name not in skipped and not path.name.endswith(".egg-info")
    ]
    paths = [
        path
        for top in tops
        for path in ([top] if top.is_file() else top.rglob("*"))
        if path.is_file()
    ]
    paths = [
        path for path in paths if path.suffix in TEXT_FILES or path.name in {"Makefile", "run"}
    ]
    wrong = [
        str(path.relative_to(ROOT))
        for path in paths
        if MACHINE_PATH.search(path.read_text(errors="replace"))
    ]
    assert not wrong
    assert MACHINE_PATH.search("cd /" + "home/someone") and not MACHINE_PATH.search(
        "https://a.b/c" + "/work" + "s/"
    )
