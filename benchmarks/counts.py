"""How simple the code is to read, in five counts.

    python -m benchmarks.counts

Prints one line each: the files from main.py to the formula of ITC, following imports; the largest
file of models/ and methods/, and the largest that holds a method; in the rooms that hold papers
(models, losses, negatives, methods) the share of functions with seven or more arguments (self
apart), and the longest function. Exits 1 where one is above its limit.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FORMULA = "nas_jax/losses/itc.py"
METHODS = "nas_jax/methods/__init__.py"  # their table is its first dict
PAPER_ROOMS = ("models", "losses", "negatives", "methods")
MANY_ARGUMENTS = 7


class Count(NamedTuple):
    """One count, where it was found, and its limit."""

    what: str
    value: float
    limit: float
    where: str


def imported(path: Path) -> Iterator[Path]:
    """The project's files that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nas_jax"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                base = ROOT / name.replace(".", "/")
                yield from (
                    one for one in (base.with_suffix(".py"), base / "__init__.py") if one.is_file()
                )


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def path_to_formula() -> list[Path]:
    """The shortest chain of imports from main.py to the formula of ITC."""
    start, end = ROOT / "main.py", ROOT / FORMULA
    waiting, before = deque([start]), {start: None}
    while waiting:
        path = waiting.popleft()
        if path == end:
            chain = []
            while path is not None:
                chain.append(path)
                path = before[path]
            return chain[::-1]
        for other in imported(path):
            if other not in before:
                before[other] = path
                waiting.append(other)
    raise ValueError(f"no chain of imports from main.py to {FORMULA}")


def method_files() -> list[Path]:
    """The files of the methods in METHODS."""
    tree = ast.parse((ROOT / METHODS).read_text())
    tables = [node.value for node in tree.body if isinstance(node, ast.AnnAssign)]
    table = next(one for one in tables if isinstance(one, ast.Dict) and one.keys)
    classes = {value.id for value in table.values if isinstance(value, ast.Name)}
    return [
        (ROOT / node.module.replace(".", "/")).with_suffix(".py")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and {one.name for one in node.names} & classes
    ]


def functions(rooms: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """(file:name, arguments without self, lines) of every function in some rooms."""
    for room in rooms:
        for path in sorted((ROOT / "nas_jax" / room).glob("**/*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                    names = [argument.arg for argument in every]
                    count = len(names) - (names[:1] in (["self"], ["cls"]))
                    lines = node.end_lineno - node.lineno + 1
                    yield f"{_named(path)}:{node.name}", count, lines


def counts() -> list[Count]:
    """All counts, in the order of the module's docstring."""
    chain = path_to_formula()
    sizes = {
        _named(path): len(path.read_text().splitlines())
        for room in ("models", "methods")
        for path in (ROOT / "nas_jax" / room).glob("*.py")
    }
    largest = max(sizes, key=sizes.get)
    method = max(method_files(), key=lambda path: sizes[_named(path)])
    found = list(functions(PAPER_ROOMS))
    many = [name for name, arguments, _ in found if arguments >= MANY_ARGUMENTS]
    share = 100 * len(many) / len(found)
    longest = max(found, key=lambda one: one[2])
    return [
        Count("files to the formula", len(chain), 5, " > ".join(_named(p) for p in chain)),
        Count("lines of the largest file", sizes[largest], 300, largest),
        Count("lines of the longest method", sizes[_named(method)], 250, _named(method)),
        Count("% of functions with 7 arguments", share, 1.5, ", ".join(many)),
        Count("lines of the longest function", longest[2], 50, longest[0]),
    ]


def main() -> int:
    """Prints the counts; returns the exit code."""
    found = counts()
    for count in found:
        verdict = "" if count.value <= count.limit else "  ABOVE"
        print(
            f"{count.what:<34} {count.value:>6.4g}  (limit {count.limit:g}){verdict}  {count.where}"
        )
    return int(any(count.value > count.limit for count in found))


if __name__ == "__main__":
    sys.exit(main())
