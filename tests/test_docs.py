"""The documentation builds without a warning, opens without a network, and its commands are those
of the code.

A command in a block of README.md or docs/ is run here as it stands, or a comment beside or above it
says what it needs (MARK). Marked or not, its module, flags, config fields and make target must
exist.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

from nas_jax.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PROGRAMS = {"python", "make", "pip", "docker", "kubectl", "wget", "unzip", "git", "nas_jax"}
BEFORE = re.compile(r"\w+=.*|do|taskset|-c|\d")  # a program: variables, and what sets its cores
MARK = re.compile(r"\b(needs?|minutes?|hours?|hardware|network|by hand|fails)\b", re.IGNORECASE)
# in docs/launch.md: tests/launch runs these lines as they stand
TESTED = re.compile(r"# tested$|\btested\b")
PLACEHOLDER = re.compile(r"\.\.\.|\[[^]]*\]")
SECTIONS = ("data", "model", "method", "optimizer", "train", "mesh", "eval")
FIELD = re.compile(rf"(?:--config\.)?((?:{'|'.join(SECTIONS)})\.[a-z_]+(?:\.[a-z_]+)*)(?:=.*)?")


class Command(NamedTuple):
    """One command of a block."""

    page: str
    text: str  # without its comment
    mark: str  # the comments that hold for it


def blocks(text: str) -> list[str]:
    """The blocks of a page that are neither Python nor a table of files: fenced, or indented by
    four.
    """
    found = []
    fenced = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for language, body in fenced.findall(text):
        if language in ("", "sh", "bash"):
            found.append(body)
    rest = fenced.sub("", text)
    found += [
        re.sub("^    ", "", body, flags=re.MULTILINE)
        for body in re.findall(r"(?<=\n\n)(?: {4}.+\n)+", rest)
    ]
    return found


def commands(page: str, text: str) -> list[Command]:
    """Every call of one of PROGRAMS or of a script.

    A comment that is a line holds up to the next empty line.
    """
    found = []
    for block in blocks(text):
        above = ""
        for line in block.replace("\\\n", " ").splitlines():
            if not line.strip() or line.startswith("#"):
                above = line
                continue
            command, _, beside = line.strip().partition(" #")
            for part in re.split(r" && |; ", command):
                words = part.split()
                while words and BEFORE.fullmatch(words[0]):
                    words.pop(0)
                if words and (
                    words[0] in PROGRAMS or words[0].endswith(("/python", ".sh", "/pip"))
                ):
                    found.append(Command(page, " ".join(words), f"{above} {beside}".strip()))
    return found


ALL = [command for page in PAGES for command in commands(page.name, page.read_text())]


def said(command: Command) -> bool:
    """Whether the page says what the command needs, or that tests/launch runs it."""
    return bool(
        MARK.search(command.mark) or (command.page == "launch.md" and TESTED.search(command.mark))
    )


# ------------------------------------------------------- what runs in a child, one for all commands


class Parsed(Exception):
    """The flags were read; nothing else shall happen."""


def fault(text: str) -> str:
    """Why a command cannot work, or "".

    Runs its program up to the point where its flags are read.
    """
    import argparse
    import importlib.util
    import runpy

    words = shlex.split(PLACEHOLDER.sub("X", text) if " -m " in text else text)
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", *words[1:]], capture_output=True, text=True)
        return done.stderr if done.returncode else ""
    if not words[0].endswith("python"):
        return (
            ""
            if words[0] in PROGRAMS or words[0].endswith("/pip") or Path(words[0]).exists()
            else "no such file"
        )
    if words[1] == "main.py":
        import main
        from nas_jax.config import from_config_dict

        sys.argv = words[1:]
        main.parse(sys.argv)
        from_config_dict(main._CONFIG.value)
        return ""
    if words[1] != "-m":
        return (
            ""
            if words[1] == "-" or words[1].startswith("data/") or Path(words[1]).exists()
            else "no such file"
        )
    name, flags = words[2], words[3:]
    if name in ("venv", "pytest"):
        return ""
    if importlib.util.find_spec(name) is None:
        return "no such module"
    if name == "launch.xmanager.experiment":  # read by absl
        from launch.xmanager.experiment import FLAGS

        return ", ".join(
            flag for flag in flags if flag.startswith("--") and flag[2:].split("=")[0] not in FLAGS
        )

    def parse(parser, argv=None, namespace=None, read=argparse.ArgumentParser.parse_args):
        read(parser, argv, namespace)
        raise Parsed

    argparse.ArgumentParser.parse_args = parse
    sys.argv = [name, *flags]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except Parsed:
        return ""
    return "its flags were not read"


def child() -> None:
    """Reads commands from stdin, as JSON; prints one fault for each.

    Each in a fork: flags are global.
    """
    import nas_jax.config
    import nas_jax.data.prepare
    import nas_jax.evals.__main__  # noqa: F401  (imports that the forks share)

    found = []
    for text in json.load(sys.stdin):
        end, start = os.pipe()
        if not os.fork():
            signal.alarm(30)  # a program that reads no flags would run
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                try:
                    answer = fault(text)
                except SystemExit:
                    answer = said.getvalue() or "it ended"
                except BaseException as error:
                    answer = str(error) or traceback.format_exc()
            os.write(start, answer.encode()[-2000:])
            os._exit(0)
        os.close(start)
        with os.fdopen(end) as file:
            found.append(file.read())
        _, status = os.wait()
        found[-1] = found[-1] or ("it did not end" if status else "")
    json.dump(found, sys.stdout)


def faults(texts: list[str]) -> list[str]:
    """`fault` of each, in another process."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(texts),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return folder


def test_the_site_is_whole_and_needs_no_network(site):
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    assert {f"{path.stem}.html" for path in PAGES if path.name != "README.md"} <= pages.keys()
    for name, text in pages.items():
        loaded = re.findall(
            r"<(?:script|img|iframe|link)[^>]*?(?:src|href)=[\"']?([^\"' >]+)", text
        )
        loaded += re.findall(r"url\(([^)]+)\)", text)
        assert loaded and not [source for source in loaded if re.match(r"(https?:)?//", source)], (
            name
        )
        if name == "404.html":  # for servers: its addresses begin at the root
            continue
        files = [
            source.split("#")[0].split("?")[0]
            for source in loaded
            if not source.startswith(("data:", "#"))
        ]
        assert not [file for file in files if not (site / name).parent.joinpath(file).exists()], (
            name
        )
    assert "__index" in (site / "search/search_index.js").read_text()[:100]


def test_the_reference_has_every_public_function(site):
    text = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    listed = set(re.findall(r'id="(nas_jax[\w.]*)"', text))
    internal = {"__init__", "__main__", "hf_files"}  # the last is copied into exports
    for path in (ROOT / "nas_jax").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if internal & set(parts):
            continue
        module = ".".join(parts)
        assert module in listed, f"{module} is on no page of docs/api"
        nodes = [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        nodes = [
            node.name for node in nodes if ast.get_docstring(node) and not node.name.startswith("_")
        ]
        assert not [name for name in nodes if f"{module}.{name}" not in listed]


def test_config_fields_in_the_text_exist():
    from nas_jax.config import check_field

    names = {text for page in PAGES for text in re.findall(r"`([^`\n]+)`", page.read_text())}
    # a file
    names = {match[1] for match in map(FIELD.fullmatch, names) if match} - {"model.safetensors"}
    assert len(names) > 50
    for name in sorted(names):
        check_field(name)
    with pytest.raises(ConfigError, match="did you mean train.steps"):
        check_field("train.step")


def test_the_readme_links_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 10 and not [link for link in links if not (ROOT / link).exists()]


def test_every_command_can_work():
    inline = {
        text.replace("\n", " ")
        for page in PAGES
        for text in re.findall(r"(?<!`)`((?:python -m|make) [^`]+)`(?!`)", page.read_text())
    }
    # module alone: flags need the rest
    inline = [text for text in inline if " -" not in text.replace("python -m", "")]
    texts = sorted({command.text for command in ALL})
    answers = dict(zip([*texts, *WRONG], faults([*texts, *WRONG]), strict=True))
    assert all(part in answers[text] for text, part in WRONG.items()), answers
    assert len(texts) > 50 and len(inline) > 10
    modules = sorted({text.split()[2] for text in inline if text.startswith("python")})
    targets = sorted({text for text in inline if text.startswith("make")})
    wrong = {text: answers[text] for text in texts if answers[text]}
    expected = {command.text for command in ALL if re.search(r"\bfails\b", command.mark)}
    assert wrong.keys() == expected, "\n".join(
        f"{text}: {wrong.get(text)}" for text in wrong.keys() ^ expected
    )
    places = [
        ROOT.joinpath(*name.split("."))
        for name in modules
        if not name.startswith("nas_jax.COMMAND")
    ]
    assert not [
        place for place in places if not (place.is_dir() or place.with_suffix(".py").is_file())
    ]
    assert not [
        text for text in targets if f"\n{text.split()[1]}:" not in (ROOT / "Makefile").read_text()
    ]


def test_a_command_is_run_or_says_what_it_needs(tmp_path):
    for name in ("main.py", "configs", "nas_jax", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    bare = [command for command in ALL if not said(command)]
    assert bare  # those that a reader can run at once
    for command in bare:
        text = re.sub(r"^python\b", shlex.quote(sys.executable), command.text)
        done = subprocess.run(
            text, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (
            f"{command.page}: {command.text}\nmark it, or mend it: {done.stderr[-1000:]}"
        )


WRONG = {
    "python main.py --config=configs/demo.py --config.train.step=1 --workdir=a": "did you mean "
    "train.steps",
    "python main.py --config=configs/demo.py --config.train.steps=-1 --workdir=a": "at least 0",
    "python main.py --config=configs/nothing.py --workdir=a": "a file that exists",
    "python -m nas_jax.evals.compare A": "required",
    "python -m nas_jax.data.prepare X --outt Y": "--out",
    "python -m nas_jax.nothing": "no such module",
    "python -m launch.xmanager.experiment --to=local --workdirs=a": "--workdirs",
    "make nothing": "No rule",
    "launch/nothing.sh": "no such file",
}
"""A command that cannot work -> a part of what is said about it."""


def test_marks():
    fenced = (
        "# needs a GPU\npython -m a\npython -m b\n\n"
        "make c  # minutes\nX=1 taskset -c 0 make d\nmade e\n"
    )
    text = f"```\n{fenced}```\n\n    pip f\n"
    found = commands("a.md", text)
    assert [(command.text, said(command)) for command in found] == [
        ("python -m a", True),
        ("python -m b", True),
        ("make c", True),
        ("make d", False),
        ("pip f", False),
    ]
    assert commands("a.md", "```python\nmake = 1\n```\n") == []


if __name__ == "__main__":
    child()
