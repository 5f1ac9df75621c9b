"""Sets of long captions: files in the published layouts, made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nas_jax.evals import run
from nas_jax.evals.benchmarks import LoadOptions
from nas_jax.evals.karpathy import load
from nas_jax.evals.long_captions import CHUNK, LAYOUTS, first_entries
from nas_jax.utils.errors import DataError

PLAIN = LoadOptions(4, clean=False)
LONG = " ".join(f"w{k}" for k in range(70))  # longer than 30 and than 64 words


def paint(path: Path, grey: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 5), (20 * grey,) * 3).save(path)
    return path.name


def write(path: Path, content: object) -> None:
    """One json, or of a list in a jsonl a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if "jsonl" in path.name:
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_text(json.dumps(content))


def dci(root: Path) -> list[str]:
    """Three splits; the second has no extra caption; a mask, which is not read."""
    folder, splits = root / "densely_captioned_images", {}
    for k, split in enumerate(("train", "valid", "test")):
        image = paint(folder / "photos" / f"sa_{k}.png", k)
        entry = {
            "image": image,
            "short_caption": f"A short {k}.",
            "extra_caption": f"{LONG}\nand {k}" if k != 1 else "",
            "mask_data": {"0": {"caption": "a mask", "outer_mask": "iVBOR"}},
        }
        write(folder / "annotations" / f"{k}.json", entry)
        splits[split] = [f"{k}.json"]
    write(folder / "splits.json", splits)
    return [f"A short {k}." + (f" {LONG} and {k}" if k != 1 else "") for k in range(3)]


def docci(root: Path) -> list[str]:
    """Of the four splits one is read."""
    lines = []
    for split in ("train", "test", "qual_dev", "qual_test"):
        for k in range(3):
            name = paint(root / "images" / f"{split}_{k:05}.png", k)
            text = f"{LONG} {split} {k}."
            line = {"example_id": name[:-4], "split": split, "image_file": name}
            lines.append(line | {"description": text})
    write(root / "docci_descriptions.jsonlines", lines)
    return [f"{LONG} test {k}." for k in range(3)]


def iiw(root: Path) -> list[str]:
    """IIW-400 alone: names without a suffix."""
    lines = []
    for k in range(3):
        key = paint(root / "images_aar" / f"aar_test_{k:05}.png", k)[:-4]
        lines.append({"image/key": key, "IIW": f"{LONG}\n{k}", "IIW-P5B": "made", "objects": []})
    write(root / "data.jsonl", lines)
    return [f"{LONG} {k}" for k in range(3)]


def iiw_parts(root: Path) -> list[str]:
    """Three parts side by side, as in the repository; the other parts are not read."""
    out = []
    parts = {"DCI_Test": "sa_2.png", "DOCCI_Test": "test_0", "IIW-400": "aar_test_1"}
    for part, name in (parts | {"CM_3600": "x"}).items():
        k = {"DOCCI_Test": 0, "IIW-400": 1}.get(part, 2)
        paint(root / "pictures" / f"{name.removesuffix('.png')}.png", k)
        field = "image/key" if part == "IIW-400" else "image"
        write(root / "datasets" / part / "data.jsonl", [{field: name, "IIW": f"{LONG} {part}"}])
        out.append(f"{LONG} {part}")
    return [out[1], out[2], out[0]]


def sharegpt4v(root: Path, name: str = "share-captioner_coco_lcs_sam_1246k_1107.json") -> list[str]:
    """1,003 entries, of which 1,000 count; all show one of three pictures."""
    entries = []
    for k in range(1003):
        image = f"sam/images/sa_{k}.png"
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}]
        turns.append({"from": "gpt", "value": f"{LONG}\n\nin [{k}]"})
        entries.append({"id": f"sa_{k}", "image": image, "conversations": turns})
        paint(root / image, k % 3)
    write(root / name, entries)
    return [f"{LONG} in [{k}]" for k in range(1003)][: 1003 if "10k" in name else 1000]


WRITERS = {"dci": dci, "docci": docci, "iiw": iiw, "sharegpt4v": sharegpt4v}


@pytest.mark.parametrize(
    ("name", "writer", "counts"),
    [
        ("dci", dci, "7805"),
        ("docci", docci, "5000"),
        ("iiw", iiw, "400 or 612"),
        ("iiw", iiw_parts, "400 or 612"),
        ("sharegpt4v", sharegpt4v, ""),
        ("sharegpt4v", lambda root: sharegpt4v(root, "share4v_sam_10k.json"), "1000 or 10000"),
    ],
)
def test_published_layouts(tmp_path, caplog, name, writer, counts):
    """Captions whole, in the order of the files, with their own pictures; other counts are told."""
    want = writer(tmp_path)
    found = load(name, tmp_path, PLAIN)
    assert [texts for texts in found.eval_set.captions] == [(text,) for text in want]
    shown = [int(image[0, 0, 0]) for image in found.eval_set.images]
    assert shown == [20 * (k % 3) for k in range(len(want))]
    assert found.text_length == 0 and found.rerank_k == 128
    assert [one for one, _, _ in found.readings()] == [f"{len(want)}-own", f"{len(want)}-wording"]
    told = f"{name}: the published list has {counts} images, this one {len(want)}"
    assert (told in caplog.text) == bool(counts) == ("published images" in found.protocol)
    assert name in run.TABLE and found.protocol["caption"]


def test_a_list_may_be_named_and_lost_entries_are_counted(tmp_path):
    dci(tmp_path)
    folder = tmp_path / "densely_captioned_images"
    for data in (folder, folder / "splits.json"):
        assert len(load("dci", data, PLAIN).names) == 3
    write(folder / "annotations/1.json", {"image": "sa_1.png", "extra_caption": " "})
    (folder / "photos/sa_2.png").unlink()
    with pytest.raises(DataError, match="2 of 3 images.*1 no list of captions.*1 missing picture"):
        load("dci", tmp_path, PLAIN)
    found = load("dci", tmp_path, LoadOptions(4, max_dropped=0.9))
    assert len(found.names) == 1 and sum(found.dropped.values()) == 2
    (folder / "annotations/1.json").unlink()
    with pytest.raises(DataError, match=r"1.json: No such file or directory; .* check the path.$"):
        load("dci", tmp_path, PLAIN)
    parts = tmp_path / "parts"
    iiw_parts(parts)
    alone = parts / "datasets/IIW-400/data.jsonl"
    (alone.parent / "link").symlink_to(parts / "pictures")
    assert (
        load("iiw", alone, PLAIN).names == ("aar_test_1",) == load("iiw", alone.parent, PLAIN).names
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_files_are_refused_in_one_line(tmp_path, name):
    with pytest.raises(DataError, match=f"no {LAYOUTS[name].files[0]} in"):
        load(name, tmp_path, PLAIN)
    WRITERS[name](tmp_path)
    (path,) = [path for one in LAYOUTS[name].files for path in tmp_path.glob(one)]
    write(path, {"test": []} if name == "dci" else [{"split": "train", "image": "a.png"}])
    with pytest.raises(DataError) as caught:
        load(name, tmp_path, PLAIN)
    assert "no test images" in str(caught.value) and LAYOUTS[name].expected in str(caught.value)


@pytest.mark.parametrize(
    "name, file, content, line",
    [
        ("dci", "splits.json", {"train": 5}, "splits.json: train is no list of file names"),
        ("dci", "splits.json", {"train": [5]}, "splits.json: train is no list of file names"),
        ("sharegpt4v", "share4v_sam_10k.json",
         [5, *({"image": "a.png", "conversations": turns} for turns in (None, {}, 5, [1, 2]))],
         "no test images: 1 no image .*, 4 no list of captions"),
        ("coco", "dataset_coco.json", {"images": [{"split": "test", "sentences": ["a"]}]},
         "'str' object has no attribute 'get'"),
        ("coco", "dataset_coco.json", {"images": ["a.png"]}, "expected {images: .*{split, "),
    ],
)  # fmt: skip
def test_entries_of_another_kind_are_one_line(tmp_path, name, file, content, line):
    write(tmp_path / file, content)
    with pytest.raises(DataError, match=line):
        load(name, tmp_path, PLAIN)


def test_the_start_of_a_large_array_is_read_alone(tmp_path):
    """What comes behind the wanted entries is not even looked at; a cut one is told."""
    path = tmp_path / "a.json"
    entries = [{"k": k, "text": "ä [}, {" * 40_000} for k in range(9)]  # more than a chunk
    whole = json.dumps(entries, indent=1, ensure_ascii=False)
    assert len(whole) > 2 * CHUNK
    path.write_text(whole + "?")
    assert list(first_entries(path, 9)) == entries and list(first_entries(path, 2)) == entries[:2]
    path.write_text(whole, encoding="utf-8-sig")
    assert list(first_entries(path, 99)) == entries
    path.write_text(whole[:-300])
    assert list(first_entries(path, 8)) == entries[:8]
    with pytest.raises(DataError, match="may be cut short"):
        list(first_entries(path, 9))
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="is no array"):
        list(first_entries(path, 1))
