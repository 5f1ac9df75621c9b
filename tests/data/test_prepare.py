"""prepare: nothing is lost without a reason, interrupted runs go on, and what it refuses."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from data import hostile
from PIL import Image

from nas_jax.data.albef_source import AlbefJsonSource
from nas_jax.data.config import DataConfig
from nas_jax.data.image_ops import decode
from nas_jax.data.pipeline import build_tokenizer, open_source, train_batches
from nas_jax.data.prepare import (
    Options,
    build,
    check_overlap,
    folder,
    json_streams,
    prepare,
    verify,
    workers,
)
from nas_jax.data.prepare.__main__ import main
from nas_jax.data.prepare.inputs import UNIT_ENTRIES, list_inputs, plan, read_unit
from nas_jax.data.prepare.items import Loss, mend
from nas_jax.data.prepare.stored_pictures import shrink
from nas_jax.data.prepare.units import prepare_unit
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.prepared_files import iter_about, read_manifest
from nas_jax.data.sources import image_id_of
from nas_jax.utils.errors import ConfigError, DataError, UserError
from nas_jax.utils.logging import Console

ROOT = Path(__file__).parents[2]
QUIET = Console(enabled=False)


def run_here(paths, out, max_lost=0.05, options=Options(), **more):  # noqa: B008
    return prepare(
        [str(path) for path in paths],
        out,
        options,
        workers=0,
        max_lost=max_lost,
        console=QUIET,
        **more,
    )


def write_tars(folder: Path, *counts: int) -> list[str]:
    paths = []
    for number, count in enumerate(counts):
        members = [
            pair
            for i in range(count)
            for pair in hostile.sample(
                f"n{number}i{i}", hostile.jpeg(1000 * number + i, width=48, height=48), f"text {i}"
            )
        ]
        paths.append(hostile.write_tar(folder / f"{number}.tar", members))
    return paths


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.arrayrecord"))}


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("*.arrayrecord"))}


def records(out: Path) -> list:
    source = PreparedSource(out)
    return [source[index] for index in range(len(source))]


# ------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("workers", [0, 2])
def test_hostile_input_is_lost_by_reason_and_the_rest_is_read(tmp_path, workers):
    given = hostile.make(tmp_path)
    out = tmp_path / "out"
    manifest = prepare(given.inputs, out, workers=workers, max_lost=1, console=QUIET)
    assert {reason: entry["count"] for reason, entry in manifest["lost"].items()} == given.lost
    counts = manifest["counts"]
    assert counts["images_in"] == given.images_in == counts["images_out"] + sum(given.lost.values())
    assert manifest["captions"]["mended"] == given.mended
    assert counts["captions_out"] == sum(len(record.captions) for record in records(out))
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert len(lines) == sum(given.lost.values()) and set(lines[0]) == {
        "reason",
        "name",
        "file",
        "detail",
    }
    found = records(out)
    assert tuple(record.key for record in found) == given.keys
    shapes = [decode(record.image).shape for record in found]
    assert shapes[given.keys.index("rotated")] == (24, 16, 3)  # upright
    captions = {record.key: record.captions for record in found}
    assert captions["nul"] == ("a nul here",) and captions["bytes"] == ("a caf\ufffd by the sea",)
    assert captions["lone"] == ("half a \ufffd face",) and captions["twice"] == ("the first",)
    assert (
        manifest["images"]["repeated_keys"] == 2
        and manifest["images"]["keys_in_several_shards"] == 2
    )
    assert not (tmp_path.parent / "escape.jpg").exists() and not Path("/tmp/absolute.jpg").exists()


def test_what_was_kept_of_hostile_input_trains(tmp_path):
    """Two epochs without a picture that has to be replaced."""
    given = hostile.make(tmp_path)
    out = tmp_path / "out"
    prepare(given.inputs, out, workers=0, max_lost=1, console=QUIET)
    assert len(given.keys) == 17
    data = DataConfig(
        train=(str(out),), image_size=16, batch_size=4, text_length=12, vocab_size=200
    )
    source = open_source(data, "train", 0)
    with train_batches(data, build_tokenizer(data, source), seed=0, source=source) as batches:
        found = [next(batches) for _ in range(9)]
    assert not any(batch["skipped_B"].any() for batch in found)
    drawn = np.concatenate([batch["record_B"] for batch in found])
    assert (np.bincount(drawn[:34]) == 2).all()


def test_what_mend_changes():
    for text in ("plain", "a caf\u00e9 \U0001f600", "tab\tand\nline\r\n", ""):
        assert mend(text) == text
    assert mend("a\0b\x0cc\x7f\x85d") == "ab c d"
    assert mend(b"\xe9t\xe9".decode("utf-8", "surrogateescape")) == "\ufffdt\ufffd"
    assert mend("\ud83d") == "\ufffd"


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.999])
def test_any_cut_of_a_tar_loses_what_is_behind_it(tmp_path, kept):
    path = Path(write_tars(tmp_path, 10)[0])
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    path.write_bytes(whole[: int(end * kept)])
    items = list(read_unit(next(plan([("webdataset", str(path))]))))
    losses = [item for item in items if isinstance(item, Loss)]
    assert [loss.reason for loss in losses] == ["tar cut short"]
    assert [item.key for item in items if item not in losses] == [
        f"n0i{i}" for i in range(len(items) - 1)
    ]


def test_a_damaged_header_in_the_middle_is_no_silent_end(tmp_path):
    path = Path(write_tars(tmp_path, 6)[0])
    data = bytearray(path.read_bytes())
    position = data.index(b"n0i3.jpg")
    data[position : position + 512] = bytes([7]) * 512
    path.write_bytes(data)
    items = list(read_unit(next(plan([("webdataset", str(path))]))))
    assert [getattr(item, "reason", "") for item in items] == ["", "", "", "tar cut short"]


def test_too_many_losses_stop_early_and_a_higher_share_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "MIN_COUNTED", 20)
    monkeypatch.setattr(workers, "_TICK_SECONDS", 0.0)
    paths = write_tars(tmp_path, 15, 15)
    lost = [pair for i in range(15) for pair in hostile.sample(f"bad{i}", b"no picture", "text")]
    paths.append(hostile.write_tar(tmp_path / "7.tar", lost))
    paths.append(
        hostile.write_tar(tmp_path / "8.tar", hostile.sample("last", hostile.jpeg(1), "text"))
    )
    out = tmp_path / "out"
    flags = [*paths, "--out", str(out), "--workers", "0"]
    assert main(flags) == 3
    printed = capsys.readouterr()
    assert (
        printed.err.count("\n") == 1
        and "3 of 33 images lost" in printed.err
        and "--max-lost" in printed.err
    )
    assert "nothing lost" not in printed.out
    assert sorted(content(out)) == [
        f"{name}-0000{i}.arrayrecord" for name in ("about", "pairs") for i in (0, 1)
    ]
    before = times(out)
    assert main([*flags, "--max-lost", "0.4"]) == 0
    assert "2 of 4 shards are finished" in capsys.readouterr().out
    assert before.items() <= times(out).items() and len(PreparedSource(out)) == 31


def test_few_images_are_judged_at_the_end_with_the_table(tmp_path, capsys):
    path = hostile.write_tar(
        tmp_path / "a.tar", [*hostile.sample("a", hostile.jpeg(1), "x"), ("b.jpg", hostile.jpeg(2))]
    )
    out = tmp_path / "out"
    assert main([path, "--out", str(out), "--workers", "0"]) == 3
    printed = capsys.readouterr()
    assert (
        "no caption" in printed.out
        and "b in" in printed.out
        and "1 of 2 images lost" in printed.err
    )
    before = times(out)
    assert main([path, "--out", str(out), "--workers", "0", "--max-lost", "0.5"]) == 0
    assert times(out) == before


# ----------------------------------------------------------------------------------------- going on


WAITS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from nas_jax.data.prepare import __main__ as command, workers
tick = workers.Progress.tick
def waits(self, number, *counts):
    tick(self, number, *counts)
    if number == 1:
        time.sleep(60)
workers.Progress.tick = waits
sys.exit(command.main(sys.argv[1:]))
"""
"""The command, which never gets beyond the first picture of its second shard."""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path, how):
    paths = write_tars(tmp_path, 5, 200, 200, 10)
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = run_here(paths, whole)
    command = [sys.executable, "-c", WAITS, *paths, "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not (out / ".units" / "unit-00000.json").exists():
        time.sleep(0.002)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    error = process.communicate()[1]
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    if how == signal.SIGINT:
        assert error.strip() == "interrupted; run the same command again to go on"
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="not finished"):
        read_manifest(out)
    deadline = time.monotonic() + 20
    while True:  # until the worker that was left behind has seen that nobody listens
        before = times(out)
        try:
            manifest = run_here(paths, out)
            break
        except ConfigError:
            assert time.monotonic() < deadline
    assert "pairs-00000.arrayrecord" in before and before.items() <= times(out).items()
    assert content(out) == content(whole)
    assert manifest["id"] == expected["id"] and not list(out.glob("*.tmp-*"))


def test_run_twice_does_nothing_twice(tmp_path, capsys, monkeypatch):
    paths = write_tars(tmp_path, 3, 3)
    out = tmp_path / "out"
    first = run_here(paths, out)
    monkeypatch.setattr(build, "plan", None)  # not even looks at the inputs
    before = times(out), (out / "manifest.json").stat().st_mtime_ns
    assert main([*paths, "--out", str(out)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (times(out), (out / "manifest.json").stat().st_mtime_ns) == before
    assert main([*paths, "--out", str(out), "--licence", "CC0", "--name", "mine"]) == 0
    manifest = read_manifest(out)
    assert (manifest["source"]["licence"], manifest["name"], manifest["id"]) == (
        "CC0",
        "mine",
        first["id"],
    )


def test_a_missing_shard_is_made_again(tmp_path):
    paths = write_tars(tmp_path, 3, 3)
    out = tmp_path / "out"
    first = run_here(paths, out)
    before = content(out)
    (out / "pairs-00001.arrayrecord").unlink()
    kept = times(out)["pairs-00000.arrayrecord"]
    assert run_here(paths, out)["id"] == first["id"]
    assert content(out) == before and times(out)["pairs-00000.arrayrecord"] == kept


def test_the_folder_belongs_to_its_inputs_and_options(tmp_path):
    paths = write_tars(tmp_path, 2, 2)
    out = tmp_path / "out"
    run_here(paths, out)
    with pytest.raises(ConfigError, match="short_side 0, now 32.*another --out"):
        run_here(paths, out, options=Options(short_side=32))
    with pytest.raises(ConfigError, match="1.tar, which is no input now"):
        run_here(paths[:1], out)
    os.utime(paths[0], ns=(1, 1))
    with pytest.raises(ConfigError, match="0.tar when its size or date was another"):
        run_here(paths, out)
    with pytest.raises(ConfigError, match="files of another origin, like 0.tar"):
        run_here(paths, tmp_path)
    with pytest.raises(ConfigError, match="--out"):
        run_here(paths, paths[0])
    assert not (tmp_path / ".units").exists()
    with pytest.raises(ConfigError, match="the folder itself"):
        check_overlap(out, str(out), console=QUIET)
    with folder.locked(out), pytest.raises(ConfigError, match="another prepare is writing"):
        check_overlap(out, paths[0], console=QUIET)


def test_the_id_is_of_the_content(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    ids = [
        run_here(write_tars(folder, 3, 2), folder / "out")["id"]
        for folder in (tmp_path, tmp_path / "elsewhere")
    ]
    assert ids[0] == ids[1] and len(ids[0]) == 16
    assert run_here(write_tars(tmp_path, 3, 3), tmp_path / "other")["id"] != ids[0]


def test_a_worker_that_dies_is_named(tmp_path):
    paths = write_tars(tmp_path, 3000)

    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="SIGKILL.*0.tar.*--workers.*again to go on"):
        prepare(paths, tmp_path / "out", workers=1, console=QUIET)
    killer.join()
    assert not multiprocessing.active_children()


# -------------------------------------------------------------------------------------------- lists


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(hostile.jpeg(i))


def test_coco_and_karpathy_merge_the_captions_of_a_picture(tmp_path):
    write_pictures(tmp_path / "val2014", 5)
    official = {
        "images": [{"id": 10 + i, "file_name": f"val2014/{i}.jpg"} for i in range(5)],
        "annotations": [{"image_id": 10 + i % 4, "caption": f"number {i}"} for i in range(12)]
        + [{"image_id": 99, "caption": "of no picture"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(official))
    manifest = run_here([tmp_path / "captions.json"], tmp_path / "coco", max_lost=1)
    assert [(r.key, r.captions) for r in records(tmp_path / "coco")] == [
        (f"val2014/{i}.jpg", tuple(f"number {j}" for j in (i, i + 4, i + 8))) for i in range(4)
    ]
    assert {reason: entry["count"] for reason, entry in manifest["lost"].items()} == {
        "no caption": 1,
        "no image": 1,
    }
    assert manifest["source"]["kind"] == "coco" and manifest["counts"]["captions_in"] == 13

    karpathy = {
        "images": [
            {
                "filepath": "val2014",
                "filename": f"{i}.jpg",
                "split": ("train", "restval", "test", "val", "train")[i],
                "sentences": [{"raw": f"first {i}"}, {"raw": f"second {i}"}],
            }
            for i in range(5)
        ]
    }
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(karpathy))
    run_here([path], tmp_path / "karpathy", options=Options(splits=("train", "restval")))
    assert [(r.key, r.captions) for r in records(tmp_path / "karpathy")] == [
        (f"val2014/{i}.jpg", (f"first {i}", f"second {i}")) for i in (0, 1, 4)
    ]
    for splits in ((), ("train", "dev")):  # and a mistake claims no folder
        with pytest.raises(ConfigError, match="restval,test,train,val.*--split train,restval"):
            run_here([path], tmp_path / "refused", options=Options(splits=splits))
    with pytest.raises(ConfigError, match="without a Karpathy file"):
        run_here(
            [tmp_path / "captions.json"], tmp_path / "refused2", options=Options(splits=("train",))
        )


def test_an_albef_list_gives_the_records_of_its_source(tmp_path):
    write_pictures(tmp_path / "p", 6)
    entries = [
        {"image": f"p/{i}.jpg", "caption": f"café {i}" if i % 2 else [f"one {i}", "", f"two {i}"]}
        for i in range(6)
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False))
    run_here([path], tmp_path / "out")
    direct = AlbefJsonSource((str(path),), str(tmp_path))
    assert records(tmp_path / "out") == [direct[i] for i in range(6)]
    source = PreparedSource(tmp_path / "out")
    assert not source.name_first and source.key_of("p/1.jpg") == "p/1.jpg"


@pytest.mark.parametrize("form", ["json", "jsonl", "tsv"])
def test_units_of_lists_cover_all_entries_and_keep_pictures_whole(tmp_path, form, monkeypatch):
    """Any unit size, any chunk size: the same pictures in the same order, none in two units."""
    (tmp_path / "é.jpg").write_bytes(hostile.jpeg(1))
    (tmp_path / "x.jpg").write_bytes(hostile.jpeg(2))
    entries, expected = [], []
    rng = np.random.default_rng(0)
    for i in range(40):
        name = ("é.jpg", "x.jpg")[i % 2]
        texts = [f"ü{i} {j} 😀" for j in range(rng.integers(1, 5))]
        entries += [{"image": name, "caption": text} for text in texts]
        expected.append((name, texts))
    path = tmp_path / f"list.{form}"
    if form == "json":
        path.write_text(" " + json.dumps(entries, ensure_ascii=False).replace("}, {", "} ,\n {"))
    elif form == "jsonl":
        path.write_text("\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries))
    else:
        path.write_text(
            "caption\tfile_name\r\n" + "".join(f"{e['caption']}\t{e['image']}\r\n" for e in entries)
        )
    listed = list_inputs([str(path)])
    for chunk in (1, 7, 1 << 20):
        monkeypatch.setattr(json_streams, "_CHUNK", chunk)
        for size in (1, 3, 1000):
            units = list(plan(listed, size=size))
            found = [(pair.key, pair.captions) for unit in units for pair in read_unit(unit)]
            assert found == expected
            assert (len(units) == 1) == (size == 1000) and sum(unit.count for unit in units) == len(
                entries
            )
    assert UNIT_ENTRIES == 5000


def test_a_folder_with_one_list(tmp_path):
    write_pictures(tmp_path / "p", 3)
    (tmp_path / "p" / "all.jsonl").write_text(
        "".join(f'{{"path": "{i}.jpg", "text": "t{i}"}}\n' for i in range(3))
    )
    run_here([tmp_path / "p"], tmp_path / "out")
    assert [record.captions for record in records(tmp_path / "out")] == [("t0",), ("t1",), ("t2",)]
    (tmp_path / "p" / "more.tsv").touch()
    with pytest.raises(DataError, match="2 files.*exactly one"):
        list_inputs([str(tmp_path / "p")])
    with pytest.raises(DataError, match="prepared already"):
        list_inputs([str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x", "header 'x'"),
        ("a.json", "3", "begins with b'3'"),
        ("a.json", "[]", "without an entry"),
        (
            "a.json",
            '[{"image": "p.jpg", "caption": "x"}, {"image',
            "byte 37, after 1 entries.*cut short",
        ),
        (
            "a.json",
            '[{"picture": "p.jpg", "caption": "x"}]',
            "first entry, with 'picture', 'caption'",
        ),
        (
            "a.json",
            '[{"image": "gone.jpg", "caption": "x"}]',
            "none of 1 pictures that were looked for of .*--image-root",
        ),
        (
            "a.json",
            '{"images": [], "annotations": [{"image_id": 1, "bbox": 0}]}',
            "annotations of image_id, bbox",
        ),
        ("a.json", '{"images": [{"name": 1}], "annotations": []}', "lacks 'id'"),
        ("a.json", '{"info": []}', "with the fields info"),
        ("a.json", '{"info": ', "whole json"),
        ("a.tsv", "picture\ttext\n", "header 'picture | text'"),
        ("a.tar", "text", "no tar"),
    ],
)
def test_inputs_that_are_refused_in_one_line(tmp_path, capsys, name, text, message):
    (tmp_path / "p.jpg").write_bytes(hostile.jpeg(1))
    (tmp_path / name).write_text(text)
    assert main([str(tmp_path / name), "--out", str(tmp_path / "out"), "--workers", "0"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(part in error.replace("\n", "") for part in message.split(".*"))


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--out", "x"], 2, "no INPUT"),
        (["gone.tar", "--out", "x"], 3, "no file 'gone.tar'"),
        (["gone.tar"], 2, "--out"),
        (["a.tar", "--out", "x", "--leave-out"], 2, "--leave-out without --against"),
        (["a.tar", "--out", "x", "--workers", "-1"], 2, "--workers -1"),
        (["a.tar", "--out", "x", "--short-side", "3"], 2, "--short-side 3"),
        (["a.tar", "--out", "x", "--quality", "0"], 2, "--quality 0"),
        (["a.tar", "--out", "x", "--max-lost", "2"], 2, "--max-lost 2"),
        (["a.tar", "--out", "x", "--shortside", "3"], 2, "--shortside"),
        (["--out", "x", "--verify"], 3, "x: no such folder"),
        (["--out", "x", "--against", "a.tar"], 3, "x: no such folder"),
    ],
)
def test_flags_that_are_refused_in_one_line(tmp_path, capsys, monkeypatch, flags, code, message):
    monkeypatch.chdir(tmp_path)
    write_tars(tmp_path, 1)
    os.rename("0.tar", "a.tar")
    assert main(flags) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("x").exists()


# ----------------------------------------------------------------------------------------- pictures


def test_short_side_shrinks_large_pictures_only(tmp_path):
    photo, drawing = hostile.picture(1, 120, 80), hostile.picture(2, 120, 80).quantize(8)
    members = [
        *hostile.sample("small", hostile.jpeg(3, width=200, height=32), "a"),
        *hostile.sample("photo", hostile.encoded(photo, "PNG"), "b", suffix="png"),
        *hostile.sample("drawing", hostile.encoded(drawing, "PNG"), "c", suffix="png"),
        *hostile.sample("turned", hostile.encoded(photo, "JPEG", exif=_turned()), "d"),
    ]
    path = hostile.write_tar(tmp_path / "a.tar", members)
    manifest = run_here([path], tmp_path / "out", options=Options(short_side=32))
    small, *others = records(tmp_path / "out")
    assert small.image == dict(members)["small.jpg"]
    assert [decode(record.image).shape for record in others] == [
        (32, 48, 3),
        (32, 48, 3),
        (48, 32, 3),
    ]
    assert [(row.width, row.height) for row in iter_about(tmp_path / "out")][1:] == [
        (48, 32),
        (48, 32),
        (32, 48),
    ]
    assert manifest["images"]["formats"] == {"JPEG": 3, "PNG": 1}
    with Image.open(io.BytesIO(others[0].image)) as opened:
        # no chroma subsampling
        assert opened.layers == 3 and opened.layer[0][1:3] == opened.layer[1][1:3] == (1, 1)
    # Antialiased: pixels of a fine checkerboard become grey.
    board_HxWx3 = np.uint8(np.indices((128, 128)).sum(0) % 2 * 255)[..., None].repeat(3, -1)
    shrunk_HxWx3, _ = shrink(board_HxWx3, b"\x89PNG", 32, 95)
    assert abs(shrunk_HxWx3[4:-4, 4:-4].astype(int) - 127).max() < 20


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# ------------------------------------------------------------------------------------------ overlap


def test_copies_of_evaluation_pictures_are_found_and_left_out(tmp_path, capsys, monkeypatch):
    big = {i: hostile.picture(i, 160, 120) for i in range(12)}
    train = [
        pair
        for i in big
        for pair in hostile.sample(
            f"t{i}", hostile.encoded(big[i], "JPEG", quality=95), f"text {i}"
        )
    ]
    paths = [
        hostile.write_tar(tmp_path / "0.tar", train[:12]),
        hostile.write_tar(tmp_path / "1.tar", train[12:]),
    ]
    copies = [
        *hostile.sample("exact", dict(train)["t1.jpg"], "x"),
        *hostile.sample("again", hostile.encoded(big[3], "JPEG", quality=50), "x"),
        *hostile.sample(
            "resized", hostile.encoded(big[4].resize((80, 60)), "PNG"), "x", suffix="png"
        ),
        *hostile.sample("other", hostile.jpeg(99, width=160, height=120), "x"),
    ]
    other = hostile.write_tar(tmp_path / "evaluation.tar", copies)
    out = tmp_path / "out"
    first = run_here(paths, out)
    before = times(out)
    found = check_overlap(out, other, workers=0, console=QUIET)
    lines = [json.loads(line) for line in (out / "overlap.jsonl").read_text().splitlines()]
    assert {(line["eval_key"], line["train_key"], line["kind"]) for line in lines} == {
        ("exact", "t1", "exact"),
        ("again", "t3", "perceptual"),
        ("resized", "t4", "perceptual"),
    }
    assert [
        found["overlap"][0][name] for name in ("exact", "perceptual", "records", "left_out")
    ] == [1, 2, 3, 0]
    assert (
        found["id"] == first["id"]
        and times(out) == before
        and not (out / ".units" / "against").exists()
    )

    kept = {record.key: record for record in records(out) if record.key not in ("t1", "t3", "t4")}
    monkeypatch.setattr(workers, "prepare_unit", _only_about)
    assert main(["--out", str(out), "--against", other, "--leave-out", "--workers", "0"]) == 0
    manifest = read_manifest(out)
    assert manifest["lost"] == {
        "overlap with evaluation": {
            "count": 3,
            "examples": [f"t{i} in {os.path.abspath(paths[0])}" for i in (1, 3, 4)],
        }
    }
    assert {record.key: record for record in records(out)} == kept
    assert manifest["counts"] == {
        "images_in": 12,
        "images_out": 9,
        "captions_in": 12,
        "captions_out": 9,
    }
    assert manifest["id"] != first["id"] and manifest["overlap"][0]["left_out"] == 3
    after = times(out)
    assert after["pairs-00001.arrayrecord"] == before["pairs-00001.arrayrecord"]  # holds no copy
    verify(out, QUIET)
    # Again: nothing to do, neither with nor without the inputs.
    capsys.readouterr()
    assert main([*paths, "--out", str(out), "--against", other, "--leave-out"]) == 0
    printed = capsys.readouterr().out
    assert (
        "nothing to do" in printed
        and "compared with evaluation already" in printed
        and times(out) == after
    )


def _only_about(unit, number, out, options, store=True, *rest, real=prepare_unit):
    assert not store, "a shard was prepared again"
    return real(unit, number, out, options, store, *rest)


def test_overlap_with_a_prepared_folder(tmp_path):
    (tmp_path / "e").mkdir()
    paths = write_tars(tmp_path, 5)
    run_here(paths, tmp_path / "train")
    copy = hostile.write_tar(
        tmp_path / "e" / "e.tar", hostile.sample("n9", hostile.jpeg(3, width=48, height=48), "x")
    )
    run_here([copy], tmp_path / "eval")
    manifest = check_overlap(
        tmp_path / "train", str(tmp_path / "eval"), leave_out=True, console=QUIET
    )
    assert manifest["lost"]["overlap with eval"]["count"] == 1
    assert [record.image_id for record in records(tmp_path / "train")] == [
        image_id_of(f"n0i{i}") for i in (0, 1, 2, 4)
    ]


def test_a_smaller_distance_finds_fewer_copies(tmp_path, capsys):
    """And what a larger one had found is no longer said, but for what was left out."""
    shown = {f"t{i}": hostile.picture(i, 160, 120) for i in range(4)}
    members = [
        pair
        for key, image in shown.items()
        for pair in hostile.sample(key, hostile.encoded(image, "PNG"), "x")
    ]
    train = hostile.write_tar(tmp_path / "train.tar", members)
    small = hostile.encoded(shown["t1"].resize((20, 15)).resize((160, 120)), "JPEG", quality=10)
    copies = hostile.sample("same", dict(members)["t0.jpg"], "x") + hostile.sample(
        "worn", small, "x"
    )
    other = hostile.write_tar(tmp_path / "eval.tar", copies)
    out = tmp_path / "out"
    run_here([train], out)

    def found(distance: int, *flags: str) -> list[str]:
        command = ["--out", str(out), "--against", other, "--workers", "0"]
        assert main([*command, "--max-distance", str(distance), *flags]) == 0
        assert read_manifest(out)["overlap"][0]["max_distance"] == distance
        return [
            json.loads(line)["train_key"]
            for line in (out / "overlap.jsonl").read_text().splitlines()
        ]

    assert found(64) == ["t0", "t1"] and found(-1) == ["t0"] and found(0, "--leave-out") == ["t0"]
    assert found(64) == ["t0", "t1"] and read_manifest(out)["overlap"][0]["left_out"] == 1
    capsys.readouterr()
    for flags in (
        ["--max-distance", "65", "--against", other],
        ["--max-distance", "3", "--verify"],
    ):
        assert main(["--out", str(out), *flags]) == 2
        assert flags[0] in capsys.readouterr().err


def test_a_tfds_data_set(tmp_path):
    from nas_jax.data import tfds_coco

    write_pictures(tmp_path / "p", 5)
    official = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(5)],
        "annotations": [
            {"id": i, "image_id": i % 5, "caption": "?!" if i == 4 else f"number {i}"}
            for i in range(9)
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(official))
    folder, _ = tfds_coco.prepare(
        str(tmp_path / "captions.json"), str(tmp_path / "p"), str(tmp_path / "data")
    )
    manifest = run_here([f"tfds:{folder}:train"], tmp_path / "out", max_lost=0.2)
    found = records(tmp_path / "out")
    assert {r.key.split("/")[-1]: (r.captions, r.image) for r in found} == {
        str(i): ((f"number {i}", f"number {i + 5}"), hostile.jpeg(i)) for i in range(4)
    }
    assert manifest["source"]["kind"] == "tfds" and manifest["counts"]["images_in"] == 5
    assert [(reason, entry["count"]) for reason, entry in manifest["lost"].items()] == [
        ("no caption", 1)
    ]
    with pytest.raises(DataError, match="captions/text"):
        run_here(
            [f"tfds:{folder}:train"],
            tmp_path / "other",
            options=Options(tfds_captions="captions/words"),
        )
    # As an evaluation set it has the name of the data set and the split, not that of a folder.
    copy = hostile.write_tar(tmp_path / "a.tar", hostile.sample("a", hostile.jpeg(1), "x"))
    run_here([copy], tmp_path / "train")
    overlap = check_overlap(tmp_path / "train", f"tfds:{folder}:train", workers=0, console=QUIET)[
        "overlap"
    ]
    assert [(entry["name"], entry["exact"]) for entry in overlap] == [
        ("coco_captions_from_json/train", 1)
    ]
