"""`--push`: what reaches the hub is exactly the folder, after the gate and not before."""

from __future__ import annotations

import os
import sys

import exports
import fake_hub
import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nas_jax.convert import hf_dual, push
from nas_jax.convert.__main__ import main
from nas_jax.convert.gate_rows import GateRefused
from nas_jax.methods.clip import ClipConfig
from nas_jax.utils.errors import ConfigError, DataError

REPO = "owner/model"
HfApi = huggingface_hub.HfApi


def reach(monkeypatch, url: str) -> None:
    """Lets HfApi() speak to that address."""

    class Api(HfApi):
        def __init__(self):
            super().__init__(endpoint=url)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)


@pytest.fixture
def hub(monkeypatch):
    with fake_hub.hub() as here:
        reach(monkeypatch, here.url)
        monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
        monkeypatch.setenv("HF_TOKEN", "token")
        yield here


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    method = ClipConfig(towers="clip", text_dim=8)
    return exports.save_dual(tmp_path_factory.mktemp("run"), method)


@pytest.fixture
def folder(tmp_path):
    """Stands for an export."""
    out = tmp_path / "export"
    (out / ".eval_results").mkdir(parents=True)
    for name in ("README.md", "text_tokenizer.json", ".eval_results/a.yaml", "app.py"):
        (out / name).write_text(f"this is {name}")
    return out


def files_of(folder) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_what_passed_the_gate_is_uploaded_as_it_is(hub, workdir, tmp_path, in_process, capsys):
    out = tmp_path / "out"
    words = ["--checkpoint", str(workdir), "--out", str(out), "--license", "mit"]
    assert main(["to-hf", *words, "--push", REPO]) == 0
    assert hub.repos[REPO].private
    assert hub.repos[REPO].files == files_of(out) | {".gitattributes": b""}
    assert {"model.safetensors", "README.md", "app.py"} <= hub.repos[REPO].files.keys()
    assert f"pushed: {hub.url}/{REPO}, {len(files_of(out))} files" in capsys.readouterr().out
    # and a newer one over it
    (out / "config.json").write_text("{}")
    push.push(out, REPO, False, print)
    assert hub.repos[REPO].files == files_of(out) | {".gitattributes": b""}
    assert sum("repos/create" in request for request in hub.requests) == 1


def test_what_the_gate_refuses_is_not_uploaded(hub, workdir, tmp_path, in_process, monkeypatch):
    write_weights = hf_dual.write_weights

    def damaged(path, *arguments):
        write_weights(path, *arguments)
        save_file(
            {name: np.asarray(x + 0.1) for name, x in load_file(path).items()},
            path,
            {"format": "pt"},
        )

    monkeypatch.setattr(hf_dual, "write_weights", damaged)
    words = ["to-hf", "--checkpoint", str(workdir), "--out", str(tmp_path / "out")]
    assert main([*words, "--push", REPO]) == GateRefused.exit_code
    assert not hub.requests and not hub.repos and not os.listdir(tmp_path)


def test_a_public_repository_is_asked_for(hub, folder):
    push.push(folder, REPO, True, lambda line: None)
    assert hub.repos[REPO].private is False
    assert hub.repos[REPO].files == files_of(folder) | {".gitattributes": b""}
    with pytest.raises(ConfigError, match=r"which is public; .* pass --public"):
        push.check(REPO, False)
    push.check(REPO, True)


def test_other_contents_are_left_alone(hub, folder):
    hub.repos[REPO] = fake_hub.Repo(files={".gitattributes": b"", "thesis.pdf": b"mine"})
    with pytest.raises(ConfigError, match=r"holds thesis.pdf and is no export"):
        push.check(REPO, False)
    # an export, with a file that the new one has not
    hub.repos[REPO].files["text_tokenizer.json"] = b"old"
    push.check(REPO, False)
    with pytest.raises(ConfigError, match=r"with thesis.pdf, .* hf upload --private owner/model"):
        push.push(folder, REPO, False, lambda line: None)
    assert not hub.requests
    assert hub.repos[REPO].files["text_tokenizer.json"] == b"old"


def test_what_cannot_work_is_said_before_anything_is_computed(hub, tmp_path, monkeypatch, capsys):
    words = ["to-hf", "--checkpoint", "no-run", "--out", str(tmp_path / "out")]

    def refused(*more) -> str:
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "--push your-name/model" in refused("--push", "model")
    assert "OWNER/NAME" in refused("--push", "owner/a model")
    assert "--public without --push" in refused("--public")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "hf auth login" in refused("--push", REPO)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refused("--push", REPO)
    assert not hub.requests


def test_a_hub_that_refuses_or_is_away_is_one_line(hub, folder, monkeypatch):
    hub.forbidden = True
    with pytest.raises(DataError, match="the hub: .*403.* is whole: hf upload --private") as error:
        push.push(folder, REPO, False, lambda line: None)
    assert "\n" not in str(error.value)
    reach(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(DataError, match="nothing was exported"):
        push.check(REPO, False)
