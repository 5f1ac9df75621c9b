"""prepare: inputs elsewhere, by the protocols of fsspec that need no network."""

import json
import sys

import pytest
from data import hostile

from nas_jax.data.prepare import prepare
from nas_jax.data.prepare.__main__ import main
from nas_jax.data.prepare.inputs import list_inputs
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.prepared_files import read_manifest
from nas_jax.utils.errors import DataError, UserError
from nas_jax.utils.logging import Console

fsspec = pytest.importorskip("fsspec")
COUNT = 6
QUIET = Console(enabled=False)


@pytest.fixture
def memory(tmp_path):
    """Two tars and a parquet file in fsspec's memory, as on the disk."""
    files = fsspec.filesystem("memory")
    for number in range(2):
        members = [hostile.sample(f"{number}-{i}", hostile.jpeg(i), f"a dog {i}") for i in range(3)]
        hostile.write_tar(tmp_path / f"{number}.tar", sum(members, []))
        files.pipe(f"/tars/{number}.tar", (tmp_path / f"{number}.tar").read_bytes())
        files.pipe(f"/tars/{number}_stats.json", b"{}")
    yield files
    files.store.clear()


def records(folder):
    source = PreparedSource(folder)
    return [(source.key(i), source[i].image, source.captions(i)) for i in range(len(source))]


@pytest.mark.parametrize(
    "given", ["memory://tars/*.tar", "memory://tars", "memory://tars/{0..1}.tar"]
)
def test_tars_elsewhere_give_what_they_give_here(memory, tmp_path, monkeypatch, given):
    prepare([str(tmp_path / "*.tar")], tmp_path / "here", workers=0, console=QUIET)
    opened, real = [], type(memory).open
    monkeypatch.setattr(
        type(memory),
        "open",
        lambda self, path, *a, **k: opened.append(path) or real(self, path, *a, **k),
    )
    manifest = prepare([given], tmp_path / "out", workers=0, console=QUIET)
    assert records(tmp_path / "out") == records(tmp_path / "here") and len(opened) == 2  # once each
    assert manifest["id"] == read_manifest(tmp_path / "here")["id"]
    assert [shard["from"]["path"] for shard in manifest["shards"]] == [
        f"memory:///tars/{number}.tar" for number in range(2)
    ]
    assert not list((tmp_path / "out").rglob("*.tmp-*"))
    prepare([given], tmp_path / "out", workers=0, console=QUIET)
    assert len(opened) == 2  # finished: nothing is fetched
    memory.pipe("/tars/1.tar", (tmp_path / "0.tar").read_bytes() + bytes(512))
    with pytest.raises(UserError, match="memory:///tars/1.tar when its size or date was another"):
        prepare([given], tmp_path / "out", workers=0, console=QUIET)


def test_parquet_and_workers_and_losses(tmp_path):
    """By file://, which other processes see too."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    images = [
        {"bytes": hostile.jpeg(i) if i else b"no picture", "path": None} for i in range(COUNT)
    ]
    columns = {"image": images, "text": [f"a dog {i}" for i in range(COUNT)]}
    write_table(arrow.table(columns), tmp_path / "a.parquet", row_group_size=2)
    url = f"file://{tmp_path}/a.parquet"
    assert main([url, "--out", str(tmp_path / "out"), "--workers", "1", "--max-lost", "0.5"]) == 0
    assert [key for key, *_ in records(tmp_path / "out")] == [f"a/{i}" for i in range(1, COUNT)]
    (loss,) = map(json.loads, (tmp_path / "out/losses.jsonl").read_text().splitlines())
    assert (loss["reason"], loss["name"]) == ("not an image", "a/0")
    assert loss["file"].endswith("/a.parquet") and "fetched" not in loss["file"]


def test_what_is_refused_in_one_line(memory, monkeypatch, capsys, tmp_path):
    for given, line in (
        ("memory://gone.tar", "no file 'memory://gone.tar'"),
        ("memory://tars/*", "0_stats.json among the files of .*as in FOLDER/.*tar"),
        ("nonsense://a.tar", "Protocol not known.*hf://, https:// or s3://"),
    ):
        with pytest.raises(DataError, match=line):
            list_inputs([given])
    for flag in ("--out", "--image-root"):
        flags = {"--out": str(tmp_path / "out")} | {flag: "s3://b/x"}
        assert main(["a.tar", *(word for pair in flags.items() for word in pair)]) == 2
        assert f"{flag} s3://b/x; expected a folder of this machine" in capsys.readouterr().err

    def out_of_reach(*args, **options):
        raise RuntimeError("Name or service not known\nand more")  # as each package has its own

    monkeypatch.setattr(type(memory), "exists", out_of_reach)
    with pytest.raises(DataError, match="a.tar: Name or service not known; expected an address"):
        list_inputs(["memory://a.tar"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        UserError, match=r"s3://b/a.tar without .* s3://.*pip install 'nas_jax.remote.'"
    ):
        list_inputs(["s3://b/a.tar"])
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"https://a/b.tar without .*pip install 'nas_jax.remote.'"):
        list_inputs(["https://a/b.tar"])
