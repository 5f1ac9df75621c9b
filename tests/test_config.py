"""The config as the command line sees it: unknown and ill-typed fields are one clear line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nas_jax.config import (
    RunConfig,
    check_field,
    defaults_of,
    from_config_dict,
    to_config_dict,
    to_dict,
)
from nas_jax.data.config import DataConfig
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.train.workdir import check_config
from nas_jax.utils.errors import CheckpointError, ConfigError
from nas_jax.utils.fields import build

ROOT = Path(__file__).resolve().parents[1]
# the default data are scenes, which must not be mirrored
VALID = RunConfig(data=DataConfig(flip=False))


@dataclasses.dataclass(frozen=True)
class Inner:
    names: tuple[str, ...] = ("a",)
    size: tuple[int, int] = (1, 2)
    rate: float = 0.5
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    flag: bool = False
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_round_trip_through_a_config_dict():
    config = to_config_dict(VALID)
    config.train.steps = 7
    assert from_config_dict(config) == dataclasses.replace(
        VALID, train=dataclasses.replace(VALID.train, steps=7)
    )
    # as JSON has it
    values = {"name": "x", "inner": {"names": ["b", "c"], "size": [3, 4], "rate": 1, "limit": 5}}
    assert build(Outer, values) == Outer("x", inner=Inner(("b", "c"), (3, 4), 1.0, 5))
    assert isinstance(build(Outer, values).inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "x", "inner": {"rat": 1.0}},
            r"unknown config field inner.rat; .* Remedy: did you mean inner.rate\.",
        ),
        ({"name": "x", "zzz": 1}, r"unknown config field zzz; .* use one of name, flag, inner"),
        ({"flag": True}, "no name; expected a value"),
        ({"name": 3}, "name=3; expected a value of type str"),
        ({"name": "x", "flag": 1}, "flag=1; expected a value of type bool"),
        ({"name": "x", "inner": {"rate": True}}, "inner.rate=True; expected a value of type float"),
        (
            {"name": "x", "inner": {"names": "abc"}},
            r"inner.names='abc'; expected a value of type tuple\[str, ...\]",
        ),
        (
            {"name": "x", "inner": {"names": [1]}},
            r"inner.names\[0\]=1; expected a value of type str",
        ),
        ({"name": "x", "inner": {"size": [1, 2, 3]}}, r"inner.size=\[1, 2, 3\]; expected"),
        ({"name": "x", "inner": 3}, "inner=3; expected a section"),
    ],
)
def test_a_bad_value_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, values)


def test_check_field():
    check_field("inner.rate", Outer)
    with pytest.raises(ConfigError, match="did you mean inner.size"):
        check_field("inner.sizes", Outer)
    with pytest.raises(ConfigError, match="name alone, which has no fields"):
        check_field("name.first", Outer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method.itc.queue_size": 100, "data.batch_size": 48},
            "data.batch_size=48; .* Remedy: use method.itc.queue_size=96",
        ),
        ({"data.image_size": 128}, "data.image_size=128, model.image_size=256; expected one size"),
        ({"data.text_length": 600}, "data.text_length=600, model.max_text_length=512"),
        ({"train.log_every": 0}, "^train.log_every=0"),
        ({"model.attention": "flash"}, "model.attention='flash'; expected one of xla, cudnn"),
        ({"model.attention": "cudnn", "model.cls_apart": True}, "expected one of the two"),
        ({"seed": -1}, "seed=-1"),
        # Sections below sections, and those that know only their own names.
        ({"method.itc.queue_size": -1}, r"^method\.itc\.queue_size=-1; expected a queue"),
        ({"method.dictionary.codes": 1}, r"^method\.dictionary\.codes=1; "),
        ({"method.momentum": 2.0}, r"^method\.momentum=2.0, alpha"),
        ({"model.heads": 5}, r"^model\.dim=768, heads=5; "),
        ({"mesh.fsdp": 0}, r"^mesh\.data=0, fsdp=0"),
        ({"optimizer.schedule": "flat"}, r"^optimizer\.schedule='flat'"),
        ({"optimizer.lr": -1.0}, r"^optimizer\.lr=-1.0, lr_min"),
        ({"train.best_mode": "most"}, r"^train\.best_mode='most'"),
        ({"data.batch_size": 0}, r"^data\.batch_size=0"),
        ({"data.scene_foils": 7}, r"^data\.scene_foils=7; .* Remedy: set data.scene_foils=8"),
        ({"model.position_std": -1.0}, r"^model\.position_std=-1"),
        ({"eval.rerank_k": 0}, r"^eval\.rerank_k=0"),
    ],
)
def test_sections_are_checked_each_and_together(fields, message):
    config = to_config_dict(VALID)
    from_config_dict(config)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        from_config_dict(config)


def test_the_name_of_the_method_picks_its_config():
    assert type(VALID.method) is NasConfig
    run = dataclasses.replace(VALID, method=AlbefConfig(momentum=0.9))
    config = to_config_dict(run)
    assert "dictionary" not in config.method and from_config_dict(config) == run
    config.method.name = "albeff"
    with pytest.raises(ConfigError, match="method.name='albeff'; expected one of albef, align"):
        from_config_dict(config)
    with pytest.raises(ConfigError, match="field of AlbefConfig.*did you mean method.momentum"):
        from_config_dict({"method": {"name": "albef", "momentun": 0.9}})
    with pytest.raises(ConfigError, match="method.dictionary, which is of nas; .*:variant=albef"):
        from_config_dict({"method": {"name": "albef", "dictionary": {"codes": 8}}})
    for name in ("method.itc.queue_size", "method.nva.start_epoch", "method.terms"):
        check_field(name)
    for name, close in (("nva.start_epoc", "nva.start_epoch"), ("dictionry", "dictionary")):
        with pytest.raises(ConfigError, match=f"did you mean method.{close}"):
            check_field(f"method.{name}")


def test_a_method_may_refuse_pieces(monkeypatch):
    monkeypatch.setattr(Albef, "accumulates", False)
    config = to_config_dict(dataclasses.replace(VALID, method=AlbefConfig()))
    from_config_dict(config)
    config.train.accumulate = 2
    with pytest.raises(ConfigError, match="train.accumulate=2 with method.name='albef'"):
        from_config_dict(config)


def old_section(name):
    """The method section of a run from the time when all methods had the same fields."""
    section = to_dict(NasConfig()) | {"name": name, "plain": False}
    if name == "albef":
        for part in ("dictionary", "nva", "nta"):
            section[part]["enabled"] = False
    for later in ("given", "given_weight"):
        del section["itm"][later]
    return {field: section[field] for field in section if field != "terms"}


@pytest.mark.parametrize("method", [AlbefConfig(), NasConfig()])
def test_the_config_of_an_older_run_is_that_of_today(tmp_path, method):
    run = dataclasses.replace(VALID, method=method)
    old = to_dict(run) | {"method": old_section(method.name)}
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_config(tmp_path, to_dict(run), (), defaults_of(run))
    other = dataclasses.replace(run, method=dataclasses.replace(method, alpha=0.3))
    with pytest.raises(CheckpointError, match=r"there, here.: method.alpha .0.4, 0.3.;"):
        check_config(tmp_path, to_dict(other), (), defaults_of(other))


RECIPE = """
from nas_jax.config import RunConfig, to_config_dict
from nas_jax.data.config import DataConfig
from nas_jax.utils.errors import ConfigError
def get_config(argument=""):
    if argument:
        raise ConfigError(f"argument {argument!r}", "none", "leave it out")
    return to_config_dict(RunConfig(data=DataConfig(flip=False)))
"""


# One process imports once and forks for each command, as flags are global and the imports take
# seconds.
DRIVER = """
import json, os, sys, warnings
import main, nas_jax.config
warnings.simplefilter("ignore")
for line in sys.stdin:
    sys.argv = ["main.py", *json.loads(line)]
    pid = os.fork()
    if not pid:
        code = main.main(sys.argv)
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=sys.stderr, flush=True)
"""

COMMANDS = {
    "--config=r.py --workdir=w --config.train.step=3": "unknown config field train.step; .*did "
    "you mean train.steps",
    "--config=r.py --workdir=w --config.trian.steps=3": "unknown config field trian; .*did you "
    "mean train",
    "--config=r.py --workdir=w --config.train.steps=many": "config.train.steps=many.*invalid "
    "literal",
    "--config=r.py:x --workdir=w": "argument 'x'; expected none",
    "--config=rr.py --workdir=w": "--config=rr.py; expected a file that exists. Remedy: did you "
    "mean r.py",
    "--config=r.py --workdir=w config.seed=1": "argument 'config.seed=1'; .* Remedy: write "
    "--config.seed=1",
    "--config r.py": "no --workdir",
    "--workdir=w --config.seed=1": "no --config",
    "--config=r.py --workdir=w --mode=fly": "value should be one of <train.eval.compile.check>",
    "--config=r.py --workdri=w": "Unknown command line flag 'workdri'. Did you mean: workdir",
    "--config=r.py --workdir=w --config.seed=-1": "seed=-1; expected 0 or more",
}
# What only a list of arguments can say: paths with blanks, and letters beyond ASCII.
BLANKS = {
    ("--config=my dir/é 配 r.py:x=1", "--workdir=w"): "argument 'x=1'; expected none",
    ("--config", "my dir/é 配 r.py:x y", "--workdir=w"): "argument 'x y'; expected none",
    ("-config", "my dir/é 配 r.py"): "no --workdir",
    ("--config=my dir/é 配 rr.py",): "a file that exists. Remedy: did you mean my dir/é 配 r.py",
    ("--workdir=w", "--config"): "--config without a value; expected a recipe",
}


def test_no_folder_for_temporary_files_is_one_line(tmp_path, monkeypatch, capsys):
    import main

    monkeypatch.setattr(main, "parse", lambda argv: None)
    monkeypatch.setattr(tempfile, "tempdir", None)  # found before
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    assert main.main([]) == 2
    error = "error: no folder for temporary files; .* Remedy: set TMPDIR to one\\.\n"
    assert re.fullmatch(error, capsys.readouterr().err)


def test_a_wrong_command_is_one_line(tmp_path):
    (tmp_path / "my dir").mkdir()
    for path in ("r.py", "my dir/é 配 r.py"):
        (tmp_path / path).write_text(RECIPE)
    commands = {tuple(command.split()): line for command, line in COMMANDS.items()} | BLANKS
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input="\n".join(map(json.dumps, commands)),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["2"] * len(commands), done.stderr
    for line, (command, message) in zip(lines[::2], commands.items(), strict=True):
        assert re.search("^error: .*" + message, line), (command, line)
