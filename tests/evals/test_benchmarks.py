"""Every benchmark's loader on made-up files in its exact format, and what its outcomes make of four
scorers.

Picture k is of one colour; a text is true of it when the first word that names a picture is "nk".
So an oracle can be asked for (pixels, text) without knowing what the loader takes for right.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standin import Standin

from nas_jax.evals import numbers as parts
from nas_jax.evals.benchmarks import (
    BENCHMARKS,
    aro,
    assemble,
    load_benchmark,
    negbench,
    quads,
    spec,
    sugarcrepe,
    sugarcrepe_pp,
    valse,
)
from nas_jax.evals.benchmarks.pictures import Files, Gallery, PictureRef
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.keys import metric_keys
from nas_jax.evals.numbers import units
from nas_jax.evals.outcomes import cells_of, hits, outcomes
from nas_jax.evals.questions import Benchmark, Question, Scored
from nas_jax.utils.errors import ConfigError, DataError

PICTURES = 10
ITEMS = 240
SIZE = 8


def pixels(k: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), (20 * k, 100, 250 - 20 * k), np.uint8)


def png(k: int, beside: int | None = None) -> bytes:
    """Picture k; with `beside`, to the right of another one."""
    image = pixels(k) if beside is None else np.concatenate([pixels(beside), pixels(k)], axis=1)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def seen(image: np.ndarray) -> int:
    return round(int(image[SIZE // 2, SIZE // 2, 0]) / 20)


def named(text: str) -> int:
    return int(next(word[1:] for word in text.split() if word[0] == "n" and word[1:].isdigit()))


def rows(benchmark, cells, scorer, **options):
    return parts.numbers(benchmark, Scored(scorer, cells), **options)


def numbers(count: int = ITEMS):
    """(item, true picture, false picture) with all pairs of pictures."""
    for item in range(count):
        k = item % PICTURES
        yield item, k, (k + 1 + item // PICTURES % (PICTURES - 1)) % PICTURES


def dump(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def dump_lines(path: Path, entries: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def dump_table(path: Path, columns: list[str], lines: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *lines])


def dump_pictures(folder: Path, pattern: str = "{}.jpg", **kwargs) -> None:
    for k in range(PICTURES):
        path = folder / pattern.format(k)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k, **kwargs))


# ------------------------------------------------------------ files as the benchmarks' authors make


def write_valse(folder: Path) -> None:
    pieces = list(valse.SIZES)
    entries = {piece: {} for piece in pieces}
    for item, k, j in numbers():
        entries[pieces[item % len(pieces)]][f"example_{item}"] = {
            "image_file": f"v7w_{k}.jpg",
            "caption": f"There  is n{k} at o’clock {item}.",
            "foil": f"There is n{j} {item}.",
            "classes_foil": False,
            "mturk": {"caption": 2 + item % 2, "foil": 0, "other": 1 - item % 2},
        }
        entries[pieces[item % len(pieces)]][f"invalid_{item}"] = {
            "image_file": "gone.jpg",
            "caption": "a",
            "foil": "a",
            "mturk": {"caption": 1, "foil": 2, "other": 0},
        }
    for piece in pieces:
        dump(folder / f"{piece}.json", entries[piece])
    dump_pictures(folder / "images", "v7w_{}.jpg")


def write_sugarcrepe(folder: Path) -> None:
    splits = (
        "add_att",
        "add_obj",
        "replace_att",
        "replace_obj",
        "replace_rel",
        "swap_att",
        "swap_obj",
    )
    entries = {split: {} for split in splits}
    for item, k, j in numbers():
        texts = {"caption": f"a n{k} thing {item} \n", "negative_caption": f"A n{j} thing {item}."}
        entries[splits[item % 7]][str(2 * item)] = {"filename": f"{k:012d}.jpg", **texts}
    for split in splits:
        dump(folder / f"{split}.json", entries[split])
    dump_pictures(folder / "val2017", "{:012d}.jpg")


def write_sugarcrepe_pp(folder: Path) -> None:
    splits = ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
    entries = {split: [] for split in splits}
    for item, k, j in numbers():
        texts = {
            "caption": f"A n{k} {item}",
            "caption2": f"This is n{k}, {item}",
            "negative_caption": f"One n{j} {item}",
        }
        entries[splits[item % 5]].append({"id": item, "filename": f"{k:012d}.jpg", **texts})
    for split in splits:
        dump(folder / f"{split}.json", entries[split])
    dump_pictures(folder / "val2017", "{:012d}.jpg")


def write_aro_region(folder: Path, name: str, extra) -> None:
    box = {"bbox_x": SIZE, "bbox_y": 0, "bbox_w": SIZE, "bbox_h": SIZE}
    entries = [
        {
            "image_path": f"{k}.jpg",
            **box,
            **extra(item),
            "true_caption": f"the n{k} is behind the n{j} {item}",
            "false_caption": f"the n{j} is behind the n{k} {item}",
        }
        for item, k, j in numbers()
    ]
    dump(folder / name, entries)
    for k in range(PICTURES):  # what is beside the box belongs to another picture
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / f"{k}.jpg").write_bytes(png(k, beside=(k + 5) % PICTURES))


def write_aro_relation(folder: Path) -> None:
    write_aro_region(
        folder,
        "visual_genome_relation.json",
        lambda item: {"relation_name": ("behind", "near", "eating")[item % 3]},
    )


def write_aro_attribution(folder: Path) -> None:
    write_aro_region(
        folder,
        "visual_genome_attribution.json",
        lambda item: {"attributes": ["red", f"old{item % 4}"]},
    )


def write_order(folder: Path, name: str) -> None:
    def options(item: int, k: int, j: int) -> list[str]:
        wrong = [
            f"n{j} n{k} on {item}",
            f"on n{j} {item} n{k}",
            f"{item} n{j} n{k} on",
            f"n{j} {item} on n{k}",
        ]
        return [f"n{k} on n{j} {item}", *wrong]

    dump(
        folder / name,
        [
            {"image": f"val2014/{k}.jpg", "caption_options": options(i, k, j)}
            for i, k, j in numbers()
        ],
    )
    dump_pictures(folder / "val2014")


def write_winoground(folder: Path) -> None:
    entries = [
        {
            "id": item,
            "image_0": f"ex_{k}",
            "image_1": f"ex_{j}",
            "caption_0": f"n{k} rides n{j} {item}",
            "caption_1": f"n{j} rides n{k} {item}",
            "collapsed_tag": ("Object", "Relation", "Both")[item % 3],
            "tag": "",
        }
        for item, k, j in numbers()
    ]
    dump_lines(folder / "examples.jsonl", entries)
    dump_pictures(folder / "images", "ex_{}.png")


def write_svo(folder: Path) -> None:
    columns = [
        "sentence",
        "pos_triplet",
        "neg_triplet",
        "pos_url",
        "neg_url",
        "pos_image_id",
        "neg_image_id",
    ]
    lines = [
        [
            f"n{k} sits, {item}",
            "n,sit,x",
            "m,sit,x",
            "http://a/1",
            "http://a/2",
            k,
            j,
            *(item % 3 == c for c in range(3)),
        ]
        for item, k, j in numbers()
    ]
    # two kinds at once: left out
    lines.append(["n1 sits", "", "", "", "", 1, 2, True, True, False])
    dump_table(folder / "svo_probes.csv", [*columns, "subj_neg", "verb_neg", "obj_neg"], lines)
    dump_pictures(folder / "images")


def write_mmvp(folder: Path) -> None:
    lines = []
    for item, k, j in numbers():
        pattern = ("Texts", "Quantity and Count")[item % 2]
        for number, shown in ((2 * item + 1, k), (2 * item + 2, j)):
            lines.append([number, pattern, f"n{shown} {item}"])
            path = folder / "MLLM_VLM Images" / pattern / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(shown))
    dump_table(folder / "Questions.csv", ["Question ID", "Type", "Statement"], lines)


def write_whatsup(folder: Path) -> None:
    for file, places in (
        ("images", ("left", "right", "on", "under")),
        ("clevr", ("left", "right", "in-front", "behind")),
    ):
        entries = []
        for item, k, j in numbers():
            name = f"mug{item // 4}_{places[item % 4]}_of_chair.jpeg"
            texts = [
                f"n{k} {item}",
                f"n{j} {item}",
                f"n{(j + 1) % 10 if (j + 1) % 10 != k else (j + 2) % 10} {item}",
            ]
            taken = {k, *(int(text[1]) for text in texts)}
            texts.append(f"n{min(set(range(10)) - taken)} {item}")
            entries.append(
                {"image_path": f"data/controlled_{file}/{name}", "caption_options": texts}
            )
            path = folder / f"controlled_{file}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(k))
        dump(folder / f"controlled_{file}_dataset.json", entries)
    for file in ("COCO_QA_one_obj", "coco_qa_two_obj", "vg_qa_one_obj", "vg_qa_two_obj"):
        dump(
            folder / f"{file}.json",
            [[k, f"n{k} left of {item}", f"n{j} right of {item}"] for item, k, j in numbers()],
        )
    dump_pictures(folder / "val2017", "{:012d}.jpg")
    dump_pictures(folder / "vg_images")


def write_crepe(folder: Path) -> None:
    columns = ["image_id", "caption", "x", "y", "width", "height"]

    def lines(start: int) -> list[list]:
        out = []
        for item, k, _ in list(numbers())[start::2]:
            wrong = str([f"n{(k + 1 + n) % PICTURES} it's {item}" for n in range(5)])
            out.append([k, f"n{k} its {item}", SIZE, 0, SIZE, SIZE, wrong, wrong, wrong])
        return out

    for start, n in enumerate((4, 12)):
        path = (
            folder / "prod_hard_negatives" / "swap" / f"prod_vg_hard_negs_swap_complexity_{n}.csv"
        )
        dump_table(path, [*columns, "hard_negs", "a", "b"], lines(start))
    for start, split in enumerate(("seen", "unseen")):
        path = folder / "syst_hard_negatives" / f"syst_vg_hard_negs_{split}_compounds_in_cc12m.csv"
        dump_table(
            path,
            [*columns, *(f"valid_hard_negs_{kind}" for kind in ("atom", "comp", "combined"))],
            lines(start),
        )
    for k in range(PICTURES):
        path = folder / "VG_100K" / f"{k}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(k, beside=(k + 5) % PICTURES))


def write_vsr(folder: Path) -> None:
    entries = [
        {"image": f"{k:012d}.jpg", "label": item // 10 % 2, "relation": ("on", "near")[item % 2],
         "caption": f"The n{k if item // 10 % 2 else j} is on it {item}."}
        for item, k, j in numbers()
    ]  # fmt: skip
    dump_lines(folder / "zeroshot" / "test.jsonl", entries)
    dump_pictures(folder / "images", "{:012d}.jpg")


def write_own(folder: Path) -> None:
    pairs = [
        {
            "image": f"{k}.png",
            "caption": f"n{k} {item}",
            "foil": f"n{j} {item}",
            "category": f"a/{item % 2}",
        }
        for item, k, j in numbers()
    ]
    quads = [
        {
            "image_0": f"{k}.png",
            "image_1": f"{j}.png",
            "caption_0": f"n{k}, n{j} {i}",
            "caption_1": f"n{j}, n{k} {i}",
        }
        for i, k, j in numbers()
    ]
    dump_lines(folder / "noto-pairs.jsonl", pairs)
    dump_lines(folder / "noto-quads.jsonl", quads)
    # members of one name: the first word says which tar
    for name, turn in (("noto.tar", 0), ("other.tar", 1)):
        with tarfile.open(folder / name, "w") as tar:
            for k in range(PICTURES):
                data = png((k + turn) % PICTURES)
                member = tarfile.TarInfo(f"{k}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_quads(folder: Path, name: str) -> None:
    """The seven benchmarks of two pictures and two captions, each with its own file and fields."""
    layout = quads.LAYOUTS[name]
    (first, second), (one, other) = layout.pictures, layout.texts
    entries = []
    for item, k, j in numbers():
        entry = {first: f"sets/{k}.png", second: f"sets/{j}.png", "extra": 1}
        entry |= {one: f"the n{k} {item}", other: f"the n{j} {item}"}
        entry |= {layout.key: item} if layout.key else {}
        entries.append(entry | ({layout.category: f"kind {item % 2}"} if layout.category else {}))
    path = folder / layout.files[-1]
    if name == "cola":
        link = "https://some.where/vg_gqa_images/{}.png"
        dump(path, [
            [link.format(k), f"the n{k} {item}", link.format(j), f"the n{j} {item}"]
            for item, k, j in numbers()
        ])  # fmt: skip
    elif name == "eqben":
        dump(path, [entry | {one: [entry[one], "another"]} for entry in entries])
    elif path.suffix == ".csv":
        dump_table(path, list(entries[0]), [list(entry.values()) for entry in entries])
    elif path.suffix == ".jsonl":
        dump_lines(path, entries)
    else:
        dump(path, entries)
    dump_pictures(folder / "sets", "{}.png")


def write_hard_positives(folder: Path) -> None:
    for part, verb in (("data", "rides"), ("swapped_data", "sits on")):
        entries = [
            {"image_id": str(k), "image_path": f"data/VG_100K/{k}.jpg",
             "true_caption": f"n{k} {verb} it {item}", "false_caption": f"n{j} rides it {item}"}
            for item, k, j in numbers()
        ]  # fmt: skip
        dump(folder / part / "vl_checklist_attributes.json", entries)
    dump_pictures(folder / "VG_100K")


def write_negbench(folder: Path) -> None:
    lines = []
    for item, k, _ in numbers():
        texts = [f"n{(k + turn) % PICTURES}, not that {item}" for turn in range(4)]
        right = item % 4
        texts[0], texts[right] = texts[right], texts[0]
        template = ("positive", "negative", "hybrid")[item % 3]
        lines.append([item, f"/data/coco/{k:012d}.jpg", *texts, right, template])
    columns = ["number", "image_path", *(f"caption_{n}" for n in range(4))]
    columns += ["correct_answer", "correct_answer_template"]
    dump_table(folder / "images" / negbench.FILES["negbench_coco"], columns, lines)
    dump_pictures(folder / "val2017", "{:012d}.jpg")


def write_spec(folder: Path) -> None:
    texts, pictures = {}, {}
    for item, k, _ in numbers():
        subset, label = spec.SUBSETS[item % 6], item % 4
        keys = [(k + turn) % PICTURES for turn in range(1, 4)]
        keys.insert(label, k)
        said = [f"n{key} {item}" for key in keys]
        texts.setdefault(subset, []).append({"query": f"{k}.jpg", "keys": said, "label": label})
        shown = [f"{key}.jpg" for key in keys]
        entry = {"query": f"n{k} {item}", "keys": shown, "label": label}
        pictures.setdefault(subset, []).append(entry)
    for subset in spec.SUBSETS:
        dump(folder / subset / "image2text.json", texts[subset])
        dump(folder / subset / "text2image.json", pictures[subset])
        dump_pictures(folder / subset)


def write_vl_checklist(folder: Path) -> None:
    files = ("Attribute/vg/color", "Attribute/vaw/size", "Object/Size/vg_size/vg_obj_small",
             "Relation/swig_action")  # fmt: skip
    for number, name in enumerate(files):
        dump(folder / "data" / f"{name}.json", [
            [f"VG_100K/{k}.jpg", {"POS": [f"n{k} {item}", "more"], "NEG": [f"n{j} {item}"]}]
            for item, k, j in list(numbers())[number::4]
        ])  # fmt: skip
    dump_pictures(folder / "VG_100K")


def write_fg_ovd(folder: Path) -> None:
    captions = [{"id": 10 * item + n, "name": f"n{(k + n) % PICTURES} {item}."}
                for item, k, _ in numbers() for n in range(4)]  # fmt: skip
    entries = [
        {"id": item, "image_id": k, "bbox": [SIZE + 0.2, 0.1, SIZE - 0.1, SIZE + 0.3],
         "category_id": 10 * item, "neg_category_ids": [10 * item + n for n in (1, 2, 3)]}
        for item, k, _ in numbers()
    ]  # fmt: skip
    images = [{"id": k, "file_name": f"val2017/{k}.jpg"} for k in range(PICTURES)]
    content = {"images": images, "annotations": entries, "categories": captions}
    dump(folder / "benchmarks" / "1_attributes.json", content)
    for k in range(PICTURES):  # what is beside the box belongs to another picture
        path = folder / "val2017" / f"{k}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(k, beside=(k + 5) % PICTURES))


def write_imagecode(folder: Path) -> None:
    content = {}
    for number in range(ITEMS // PICTURES):
        name = f"{'open-images' if number % 2 else 'video'}-{number}"
        for place in range(PICTURES):  # img9 stands before img12
            path = folder / "games" / name / f"img{3 * place}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png((place + number) % PICTURES))
            said = f"n{(place + number) % PICTURES} {number} "
            content.setdefault(name, {})[str(place)] = said
    dump(folder / "valid_data.json", content)


WRITERS = {
    "valse": write_valse,
    "sugarcrepe": write_sugarcrepe,
    "sugarcrepe_pp": write_sugarcrepe_pp,
    "aro_relation": write_aro_relation,
    "aro_attribution": write_aro_attribution,
    "aro_coco_order": lambda folder: write_order(folder, "coco_order.json"),
    "aro_flickr_order": lambda folder: write_order(folder, "flickr_order.json"),
    "winoground": write_winoground,
    "svo": write_svo,
    "mmvp": write_mmvp,
    "whatsup": write_whatsup,
    "crepe": write_crepe,
    "vsr": write_vsr,
    **{name: partial(write_quads, name=name) for name in quads.LAYOUTS},
    "hard_positives": write_hard_positives,
    "negbench": write_negbench,
    "spec": write_spec,
    "vl_checklist": write_vl_checklist,
    "fg_ovd": write_fg_ovd,
    "imagecode": write_imagecode,
    "own": write_own,
}
ORDER = {
    "aro_relation",
    "aro_attribution",
    "aro_coco_order",
    "aro_flickr_order",
    "winoground",
    "own:noto-quads",
}
"""Benchmarks whose right and wrong texts have the same words."""


@pytest.fixture(scope="module", params=list(WRITERS))
def loaded(request, tmp_path_factory) -> tuple[Benchmark, ...]:
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder)
    return load_benchmark(request.param, folder, image_size=SIZE, max_dropped=0.0)


# ------------------------------------------------------------------------------------------ scorers


def oracle(picture: np.ndarray | str, text: str) -> float:
    return (
        1.0
        if named(text) == (named(picture) if isinstance(picture, str) else seen(picture))
        else -1.0
    )


def order_blind(picture: np.ndarray | str, text: str) -> float:
    """A number that depends on the picture and on which words there are, evenly spread over -0.5 to
    0.5.
    """
    words = (
        [sorted(part.split()) for part in (picture, text)]
        if isinstance(picture, str)
        else [sorted(text.split())]
    )
    what = b"" if isinstance(picture, str) else picture.tobytes()
    digest = hashlib.blake2b(repr(sorted(words)).encode() + what, digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48 - 0.5


def ask(benchmark: Benchmark, scorer) -> list[np.ndarray]:
    cells = []
    for question in benchmark.questions:
        shown = (
            question.texts
            if benchmark.form == "texts"
            else [benchmark.images[index] for index in question.images]
        )
        cells.append(
            np.array([[scorer(picture, text) for text in question.texts] for picture in shown])
        )
    return cells


def constant(benchmark: Benchmark, value: float) -> list[np.ndarray]:
    return [np.full(cells_of(benchmark.form, question), value) for question in benchmark.questions]


def ranking(benchmark: Benchmark) -> list[str]:
    """Quantities that compare cells with each other, or yes_no's with the threshold."""
    found = ["text", "image", "group"] if benchmark.form == "quad" else ["accuracy"]
    return found + list(benchmark.together)


def test_every_benchmark_is_tested():
    assert WRITERS.keys() | {"aro"} == BENCHMARKS.keys()


def test_oracle_gets_everything(loaded):
    for benchmark in loaded:
        found = rows(benchmark, ask(benchmark, oracle), "itm", resamples=5)
        assert not [row for row in found if row.value != 100.0]
        assert not any(row.ties for row in found)
        assert benchmark.headline in {f"{row.part}/{row.quantity}" for row in found}
        assert (
            sum(
                row.count
                for row in found
                if row.part == "all" and row.quantity == ranking(benchmark)[0]
            )
            == ITEMS
        )
        assert not benchmark.dropped


def test_constant_gets_nothing_and_all_is_ties(loaded):
    for benchmark in loaded:
        scores = constant(benchmark, 0.0)
        for row in rows(benchmark, scores, "itm", resamples=2):
            if row.quantity in ranking(benchmark):
                assert (row.value, row.low, row.high, row.ties) == (0.0, 0.0, 0.0, row.count)
            elif row.quantity in ("auroc", "accuracy_at_0.5"):
                assert row.value == 50.0
        # The control: code that compares with >= would print 100 here.
        lenient = hits(benchmark, scores, 0.0, beats=np.greater_equal)
        assert all(lenient[name].all() for name in lenient if name in ranking(benchmark))
        nothing = outcomes(benchmark, constant(benchmark, np.nan), "itm")
        assert not any(outcome.hits.any() or outcome.ties.any() for outcome in nothing.values())


def test_its_keys_are_known_before(loaded):
    for benchmark in loaded:
        scorers = ("itc",) if benchmark.form == "texts" else ("itc", "itm")
        cells = ask(benchmark, order_blind)
        found = [row.key for name in scorers for row in rows(benchmark, cells, name, resamples=2)]
        assert sorted(metric_keys(EvalConfig(), Standin, [], [benchmark])) == sorted(found)


def test_order_blind_scorer_gets_chance_or_nothing(loaded):
    for benchmark in loaded:
        found = [
            row
            for row in rows(benchmark, ask(benchmark, order_blind), "itm", resamples=2)
            if row.part == "all"
        ]
        for row in found:
            if benchmark.name in ORDER:
                assert row.value == 0.0 and (
                    row.quantity in ("image", "group") or row.ties == row.count
                )
            else:
                spread = 100 * np.sqrt(
                    row.chance / 100 * (1 - row.chance / 100) / min(row.count, ITEMS)
                )
                # a minimum is below its parts
                tolerance = 3.5 * spread + (5 if row.quantity == "min_p_c_p_f" else 0)
                assert abs(row.value - row.chance) <= tolerance, row


# ----------------------------------------------------------------------- rules of single benchmarks


def made(form: str, questions: list[Question], **fields) -> Benchmark:
    return Benchmark("made", form, tuple(questions), [], {}, **fields)


def value(found, part: str, quantity: str) -> float:
    return next(row.value for row in found if (row.part, row.quantity) == (part, quantity))


def test_valse_filter_groups_and_published_numbers(tmp_path):
    write_valse(tmp_path)
    (benchmark,) = load_benchmark("valse", tmp_path)
    assert len(benchmark.questions) == ITEMS and benchmark.protocol["filter"].endswith(
        f"({ITEMS} left out)"
    )
    keys = valse.published_keys(tmp_path)
    assert len(keys) == 2 * ITEMS  # invalid examples have numbers too
    assert keys[("actant-swap", 2)].startswith("actant-swap/example_")
    assert {question.key for question in benchmark.questions} < set(keys.values())
    with pytest.raises(DataError, match="without pictures"):
        benchmark.images[0]


def test_single_cells_are_judged_as_valse_does():
    questions = [Question(str(k), "ab"[k // 2], (k,), ("c", "f")) for k in range(4)]
    scores = [np.array([pair]) for pair in ((2.0, 1.0), (1.0, -1.0), (0.0, 0.0), (-1.0, -2.0))]
    found = rows(made("choice", questions, absolute=True), scores, "itm", resamples=2)
    # at the threshold: no match
    assert (value(found, "all", "p_c"), value(found, "all", "p_f")) == (50.0, 75.0)
    assert (
        value(found, "all", "accuracy_at_0.5") == 62.5
        and value(found, "all", "min_p_c_p_f") == 50.0
    )
    assert value(found, "macro", "min_p_c_p_f") == (50 + 0) / 2  # a: 100 and 50, b: 0 and 100
    captions, foils = np.array([2.0, 1.0, 0.0, -1.0]), np.array([1.0, -1.0, 0.0, -2.0])
    wins = np.mean(np.sign(captions[:, None] - foils[None]) / 2 + 0.5)
    assert value(found, "all", "auroc") == pytest.approx(100 * wins)
    ranked = {
        row.quantity
        for row in rows(made("choice", questions, absolute=True), scores, "itc", resamples=2)
    }
    assert ranked == {"accuracy", "auroc"}  # a cosine has no threshold


def test_svo_counts_each_sentence_and_picture_once():
    shared = [Question("0", "verb", (0, 1), ("s",)), Question("1", "verb", (0, 2), ("s",))]
    benchmark = made("picture", [*shared, Question("2", "object", (0, 1), ("s",))], absolute=True)
    scores = [np.array([[1.0], [-1.0]]), np.array([[1.0], [2.0]]), np.array([[1.0], [-1.0]])]
    found = rows(benchmark, scores, "itm", resamples=2)
    assert value(found, "all", "p_pos") == 100.0 and value(found, "all", "p_neg") == 50.0
    assert value(found, "all", "accuracy_at_0.5") == 75.0
    assert next(row.count for row in found if (row.part, row.quantity) == ("all", "p_pos")) == 1
    # counted in its category though not in all
    assert value(found, "object", "accuracy_at_0.5") == 100.0
    assert value(found, "all", "accuracy") == pytest.approx(200 / 3)


def test_whatsup_pairs_and_sets(tmp_path):
    write_whatsup(tmp_path)
    benchmark = next(b for b in load_benchmark("whatsup", tmp_path) if b.name == "whatsup_b")
    cells = [np.array([[1.0, 0, 0, 0]]) for _ in benchmark.questions]
    cells[0] = np.zeros((1, 4))  # one wrong: its pair and its set are
    found = rows(benchmark, cells, "itc", resamples=2)
    pairs, sets = ITEMS // 2, ITEMS // 4
    assert value(found, "all", "pair") == pytest.approx(100 * (pairs - 1) / pairs)
    assert value(found, "all", "set") == pytest.approx(100 * (sets - 1) / sets)
    row = next(row for row in found if row.quantity == "set")
    assert (row.count, row.chance, row.ties) == (sets, pytest.approx(100 / 4**4), 1)
    assert len(np.unique(units(benchmark))) == sets
    assert {row.part for row in found if row.quantity == "set"} == {"all"}


def test_aro_macro_averages(tmp_path):
    assert len(aro.LEFT_OUT) == 157 and {"near", "of", "wrapped in"} < aro.LEFT_OUT
    write_aro_relation(tmp_path)
    (relation,) = load_benchmark("aro_relation", tmp_path)
    assert relation.macro == ("behind", "eating") and relation.headline == "macro/accuracy"
    entries = json.loads((tmp_path / "visual_genome_relation.json").read_text())
    for number, entry in enumerate(entries):
        entry["attributes"] = ["red", "old"] if number < 25 else ["blue", f"new{number // 24}"]
    dump(tmp_path / "visual_genome_attribution.json", entries)
    (attribution,) = load_benchmark("aro_attribution", tmp_path)
    assert attribution.macro == ("red_old",)  # 24 cases are too few
    assert [benchmark.name for benchmark in load_benchmark("aro", tmp_path)] == [
        "aro_relation",
        "aro_attribution",
    ]


def test_crepe_cuts():
    benchmark = made("choice", [Question("0", "n=4", (0,), tuple("abcdef"))], cuts=(1, 3, 5, 10))
    # one above, one beside it
    found = rows(benchmark, [np.array([[1.0, 2, 1, 0, 0, 0]])], "itc", resamples=2)
    assert [value(found, "all", f"r@{k}") for k in (1, 3, 5, 10)] == [0.0, 100.0, 100.0, 100.0]
    assert [row.chance for row in found if row.quantity.startswith("r@")] == pytest.approx(
        [100 / 6, 50, 500 / 6, 100]
    )


def test_mmvp_takes_the_odd_statement_for_the_first_picture(tmp_path):
    dump_table(
        tmp_path / "Questions.csv",
        ["Question ID", "Type", "Statement"],
        [[2, "Texts", "b"], [1, "Texts", "a"]],
    )
    (benchmark,) = load_benchmark("mmvp", tmp_path)
    assert benchmark.questions[0].texts == ("a photo of a", "a photo of b")


def test_texts_are_cleaned_and_equal_ones_are_counted(tmp_path):
    write_sugarcrepe_pp(tmp_path)
    entries = json.loads((tmp_path / "swap_obj.json").read_text())
    entries[0]["negative_caption"] = entries[0]["caption2"].upper() + "."
    dump(tmp_path / "swap_obj.json", entries)
    for clean in (True, False):
        seen_task, text_task = load_benchmark("sugarcrepe_pp", tmp_path, clean=clean)
        assert ("unanswerable" in text_task.protocol) == clean  # only the full stop differs
        assert seen_task.questions[-1].texts[0] == text_task.questions[-1].texts[0].lower()
    (benchmark,) = [b for b in load_benchmark("sugarcrepe_pp", tmp_path) if b.form == "texts"]
    likeness = [np.ones((3, 3)) for _ in benchmark.questions]
    assert rows(benchmark, likeness, "itc", resamples=2)[0].value == 0.0


def test_bootstrap_draws_pictures_not_questions():
    rng = np.random.default_rng(0)
    single = [Question(str(k), "a", (k,), ("c", "f")) for k in range(400)]
    scores = [rng.normal(size=(1, 2)) for _ in single]
    copies = [Question(f"{q.key}-{n}", "a", q.images, q.texts) for q in single for n in range(4)]
    one = rows(made("choice", single), scores, "itc", resamples=500)[0]
    four = rows(
        made("choice", copies), [cell for cell in scores for _ in range(4)], "itc", resamples=500
    )[0]
    # asking again teaches nothing
    assert (four.low, four.high, four.value) == (one.low, one.high, one.value)
    assert one.high - one.low == pytest.approx(2 * 1.96 * 50 / 20, rel=0.15)


def test_categories_and_answers_of_the_later_benchmarks(tmp_path):
    """What their authors' code reads, by part."""
    parts = {
        "colorswap": {"kind 0", "kind 1"},
        "eqben": {"sets"},
        "negbench": {"positive", "negative", "hybrid"},
        "spec": set(spec.SUBSETS),
        "imagecode": {"image", "video"},
        "vl_checklist": {"Attribute-vg-color", "Attribute-vaw-size", "Relation-swig_action",
                         "Object-Size-vg_size-vg_obj_small"},
    }  # fmt: skip
    for name, want in parts.items():
        WRITERS[name](tmp_path / name)
        for benchmark in load_benchmark(name, tmp_path / name):
            assert {question.category for question in benchmark.questions} == want
    (found,) = load_benchmark("vl_checklist", tmp_path / "vl_checklist")
    assert found.groups["attribute"] == ("Attribute-vaw-size", "Attribute-vg-color")
    assert "more" not in {text for question in found.questions for text in question.texts}
    (found,) = load_benchmark("imagecode", tmp_path / "imagecode")
    shown = [picture.name for picture in found.images.pictures]
    assert shown[:5] == [f"video-0/img{3 * place}.jpg" for place in range(5)]  # 12 after 9
    path = tmp_path / "imagecode" / "games" / "video-0" / "img27.jpg"
    path.unlink()
    lost = load_benchmark("imagecode", tmp_path / "imagecode", SIZE, max_dropped=0.1)[0].dropped
    assert lost == {"no folder of ten pictures": 10}

    write_hard_positives(tmp_path)
    swapped = tmp_path / "swapped_data" / "vl_checklist_attributes.json"
    entries = json.loads(swapped.read_text())
    dump(swapped, [entries[0] | {"false_caption": "another"}, *entries[1:]])
    (found,) = load_benchmark("hard_positives", tmp_path)
    assert found.dropped == {"not the same item in both files": 1}
    dump(swapped, entries[1:])
    with pytest.raises(DataError, match="with 240 items, .* with 239; expected the same items"):
        load_benchmark("hard_positives", tmp_path)


# --------------------------------------------------------------------------- losses and user errors


def test_losses_are_counted_and_limited(tmp_path):
    write_own(tmp_path)
    path = tmp_path / "noto-pairs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["image"] = "gone.png"
    lines[1]["image"] = "broken.png"
    del lines[2]["foil"]
    lines[3]["caption"] = "..."  # nothing is left of it
    (tmp_path / "broken.png").write_bytes(png(1)[:50])
    dump_lines(path, lines)
    (tmp_path / "noto-quads.jsonl").unlink()
    (benchmark,) = load_benchmark("own", tmp_path, SIZE, max_dropped=0.02)
    want = {"missing picture": 1, "damaged image": 1, "no foil": 1, "empty text": 1}
    assert benchmark.dropped == want and len(benchmark.questions) == ITEMS - 4
    assert benchmark.questions[0].key == "5" and benchmark.questions[0].category == "a-0"
    assert not load_benchmark("own", tmp_path, max_dropped=0.02)[0].dropped.keys() & {
        "missing picture",
        "damaged image",
    }
    with pytest.raises(
        DataError, match=r"4 of 240 items cannot be used: .*1 missing picture \(like gone.png\)"
    ):
        load_benchmark("own", tmp_path, SIZE)


def test_pictures_are_found_by_the_end_of_their_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(png(1 if folder == "a" else 2))
    (tmp_path / "b" / "again").symlink_to(tmp_path / "b")  # a circle
    gallery = Gallery(
        Files(tmp_path),
        [PictureRef("far/away/b/1.png"), PictureRef("1.png"), PictureRef("a/1")],
        SIZE,
    )
    assert seen(gallery[0]) == 2 and seen(gallery[2]) == 1
    assert {index: error.reason for index, error in gallery.failures.items()} == {
        1: "several files of one name"
    }
    gallery._cache.clear()
    assert seen(gallery[0]) == 2 and [seen(image) for image in gallery[::2]] == [2, 1]


PAIR = {"caption": "a dog", "foil": "a cat"}
OWN = {
    "array": ("a.jsonl", lambda rows: json.dumps(rows, indent=1)),
    "array in one line": ("a.jsonl", json.dumps),
    "array in json": ("a.json", json.dumps),
    "packed": ("a.jsonl.gz", lambda rows: gzip.compress("\n".join(map(json.dumps, rows)).encode())),
    "utf-16": ("a.ndjson", lambda rows: "\r\n".join(map(json.dumps, rows)).encode("utf-16")),
}


@pytest.mark.parametrize("form", OWN)
def test_own_pairs_in_other_files(tmp_path, form):
    name, write = OWN[form]
    content = write([PAIR | {"image": f"{k}.png"} for k in range(3)])
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    (found,) = load_benchmark("own", tmp_path, SIZE)
    assert found.name == "own:a" and [question.key for question in found.questions] == list("123")
    assert [seen(image) for image in found.images] == [0, 1, 2] and not found.dropped


def test_winoground_needs_no_tag(tmp_path):
    write_winoground(tmp_path)
    path = tmp_path / "examples.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    dump_lines(path, [entries[0] | {"collapsed_tag": None}, entries[1] | {"collapsed_tag": 7}])
    (found,) = load_benchmark("winoground", tmp_path)
    assert [question.category for question in found.questions] == ["none", "7"]


def test_own_categories_and_foils_of_other_types(tmp_path):
    lines = [
        {"category": None},
        {"category": 3},
        {"category": ""},
        {"foil": ["a cat", "a cow"]},
        {"foil": None, "negative_caption": "a cow"},
    ]
    del lines[4]["foil"]
    dump_lines(tmp_path / "a.jsonl", [{"image": 0, **PAIR, **line} for line in lines[:4]])
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write(json.dumps({"image": "0.png", "caption": "a dog"} | lines[4]) + "\n")
    (tmp_path / "0.png").write_bytes(png(0))
    (found,) = load_benchmark("own", tmp_path, SIZE)
    assert [question.category for question in found.questions] == ["none", "3", *["none"] * 3]
    assert found.questions[3].texts == ("a dog", "a cat", "a cow")
    assert found.questions[4].texts == ("a dog", "a cow")
    dump_lines(
        tmp_path / "a.jsonl", [{"image": 0, "caption": "a", "foil": foil} for foil in ([], [3])]
    )
    with pytest.raises(DataError, match="2 no foil"):
        load_benchmark("own", tmp_path, SIZE)


FORMS = {
    "kinds in an object": [{"image": "1", "foils": {"colour": "n2 b", "number": ["n3 b", "n4 b"]}}],
    "kinds in objects": [{"image": "1", "foils": [
        {"foil": "n2 b", "kind": "colour"}, {"foil": "n3 b", "kind": "number"},
        {"foil": "n4 b", "kind": "number"}]}],
    "kinds beside": [{"image": "1", "foils": ["n2 b", "n3 b", "n4 b"],
                      "kinds": ["colour", "number", "number"]}],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("table", [False, True])
def test_own_foils_with_kinds(tmp_path, form, table):
    """A question a foil; all of them together are the caption's, with chance 1 in 4."""
    entries = [{"id": "a", "caption": "n1 b", **entry} for entry in FORMS[form]]
    if table:
        head = [
            "id",
            "caption",
            "image",
            "foil_1",
            "foil_2",
            "foil_3",
            "kind_1",
            "kind_2",
            "kind_3",
        ]
        cells = ["a", "n1 b", 1, "n2 b", "n3 b", "n4 b", "colour", "number", "number"]
        dump_table(tmp_path / "mine.csv", head, [cells])
    else:
        dump_lines(tmp_path / "mine.jsonl", entries)
    dump_pictures(tmp_path, "{}.png")
    (found,) = load_benchmark("own", tmp_path, SIZE)
    assert [(one.key, one.category, one.texts) for one in found.questions] == [
        ("a#0-colour", "colour", ("n1 b", "n2 b")),
        ("a#1-number", "number", ("n1 b", "n3 b")),
        ("a#2-number", "number", ("n1 b", "n4 b")),
    ]
    assert {value(rows(found, ask(found, oracle), "itc", resamples=2), *part) for part in (
        ("all", "accuracy"), ("colour", "accuracy"), ("all", "caption"))} == {100.0}  # fmt: skip
    cells = [np.array([[1.0, other]]) for other in (0.0, 0.0, 2.0)]
    made_rows = rows(found, cells, "itc", resamples=2)
    assert value(made_rows, "number", "accuracy") == 50.0
    assert value(made_rows, "all", "caption") == 0.0
    assert [row.chance for row in made_rows if row.quantity == "caption"] == [25.0]
    assert len(np.unique(units(found))) == 1


def test_own_pictures_boxes_and_labels(tmp_path):
    two = np.concatenate([pixels(1), pixels(2)], axis=1)
    Image.fromarray(two).save(tmp_path / "both.png")
    dump_pictures(tmp_path, "{}.png")
    left, right = [0, 0, SIZE, SIZE], [SIZE, 0, SIZE, SIZE]
    dump_lines(tmp_path / "a_pictures.jsonl", [
        {"caption": "n1 x", "image": "1.png", "foil_images": ["2.png", "3.png"], "category": 7},
        {"caption": "n2 x", "images": ["both", "both", 4], "boxes": [right, left, None]},
    ])  # fmt: skip
    dump_lines(tmp_path / "b_boxes.jsonl", [
        {"image": "both.png", "box": box, "caption": f"n{k}", "foil": f"n{3 - k}"}
        for k, box in ((1, left), (2, right))
    ])  # fmt: skip
    dump_lines(tmp_path / "c_quads.jsonl", [
        {"image_0": "both", "box_0": right, "image_1": "1", "caption_0": "n2", "caption_1": "n1"}
    ])  # fmt: skip
    dump_lines(tmp_path / "d_labels.jsonl", [
        {"image": k, "caption": f"n{said}", "label": label}
        for k, said, label in ((1, 1, True), (1, 2, 0), (2, 2, "yes"), (3, 1, "false"))
    ])  # fmt: skip
    found = load_benchmark("own", tmp_path, SIZE)
    assert [(one.name, one.form, len(one.questions)) for one in found] == [
        ("own:a_pictures", "picture", 2),
        ("own:b_boxes", "choice", 2),
        ("own:c_quads", "quad", 1),
        ("own:d_labels", "yes_no", 4),
    ]
    for benchmark in found:
        quantity = "group" if benchmark.form == "quad" else "accuracy"
        made_rows = rows(benchmark, ask(benchmark, oracle), "itm", resamples=2)
        assert value(made_rows, "all", quantity) == 100.0
        turned = [-cell for cell in ask(benchmark, oracle)]
        assert value(rows(benchmark, turned, "itm", resamples=2), "all", quantity) == 0.0
    assert found[0].questions[0].category == "7"
    chances = [row.chance for row in rows(found[0], ask(found[0], oracle), "itc", resamples=2)]
    assert chances[0] == pytest.approx(100 / 3)


WRONG_OWN = {
    "2 no foil image": {"caption": "a", "image": "1", "foil_images": []},
    "2 no box of four numbers": {"caption": "a", "image": "1", "foil": "b", "box": [1, 2, 3]},
    "2 empty box": {"caption": "a", "image": "1", "foil": "b", "box": [1, 2, 0, 3]},
    "2 no label of true or false": {"caption": "a", "image": "1", "label": "maybe"},
    "2 no kind of each foil": {"caption": "a", "image": "1", "foils": ["b"], "kinds": []},
    "lines without foils.*--benchmark retrieval": {"caption": "a", "image": "1"},
}


@pytest.mark.parametrize("message", WRONG_OWN)
def test_own_lines_that_cannot_be_asked(tmp_path, message):
    dump_lines(tmp_path / "a.jsonl", [WRONG_OWN[message]] * 2)
    with pytest.raises(DataError, match=message):
        load_benchmark("own", tmp_path)


def test_one_lost_picture_of_few_is_told_and_does_not_end_it(tmp_path, caplog):
    lines = [{"image": f"{k}.png", "caption": "a", "foil": "b"} for k in range(PICTURES)]
    dump_lines(tmp_path / "a.jsonl", lines)
    dump_pictures(tmp_path, "{}.png")
    (tmp_path / "3.png").unlink()
    (found,) = load_benchmark("own", tmp_path, SIZE)
    assert len(found.questions) == PICTURES - 1 and found.dropped == {"missing picture": 1}
    assert "own:a: left out 1 of 10 items: 1 missing picture (like 3.png)" in caplog.text
    for share, lost in ((0.0, ()), (0.01, ("4.png",))):
        for name in lost:
            (tmp_path / name).unlink()
        with pytest.raises(DataError, match=r"raise --max-dropped to 0\.[12]"):
            load_benchmark("own", tmp_path, SIZE, max_dropped=share)
    assert len(load_benchmark("own", tmp_path, SIZE, max_dropped=0.2)[0].questions) == 8


def test_other_counts_than_the_published_ones_are_told(tmp_path, caplog):
    write_sugarcrepe(tmp_path)
    (found,) = load_benchmark("sugarcrepe", tmp_path)
    said = "7511; these files have 240 (add_att 35 for 692, add_obj 35 for 2062"
    assert found.protocol["published items"].startswith(said)
    assert f"sugarcrepe: the published files have {said}" in caplog.text
    caplog.clear()
    sizes = Counter(question.category for question in found.questions)
    for counts in (
        sizes,
        {**sizes, "add_att": sizes["add_att"] + 1, "add_obj": sizes["add_obj"] - 1},
    ):
        drafts = [
            assemble.Draft(question.key, question.category, (), question.texts)
            for question in found.questions
        ]
        items = assemble.Items(drafts)
        options = assemble.LoadOptions()
        made_again = assemble.assemble(
            *("x", "choice", items, Files(tmp_path), options), published=counts
        )
        assert ("these files" in made_again.protocol["published items"]) == (counts is not sizes)
    assert caplog.text.count("the published files") == 1


def test_vsr_is_found_where_its_repository_has_it(tmp_path):
    write_vsr(tmp_path)
    for split, count in (("random", 2), ("zeroshot", 3)):
        place = tmp_path / "repository" / "data" / "splits" / split
        lines = (tmp_path / "zeroshot" / "test.jsonl").read_text().splitlines()[:count]
        dump_lines(place / "test.jsonl", list(map(json.loads, lines)))
    found = load_benchmark("vsr", tmp_path / "repository")
    assert {one.name: len(one.questions) for one in found} == {"vsr_random": 2, "vsr_zeroshot": 3}


def test_pictures_of_any_kind_in_zips_and_under_names_in_other_case(tmp_path):
    image = Image.fromarray(pixels(3))
    for name, kind in (("a.tif", "TIFF"), ("b.bmp", "BMP"), ("c.gif", "GIF"), ("D.PNG", "PNG")):
        image.save(tmp_path / name, kind)
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("deep/e.png", png(4))
        packed.writestr("images/f.png", png(5))
    names = ["x/a.tif", "b.bmp", "c", "d.png", "deep/e.png", "far/F.png", "win\\a.tif", "gone.png"]
    gallery = Gallery(Files(tmp_path), list(map(PictureRef, names)), SIZE)
    assert [seen(gallery[k]) for k in range(7)] == [3, 3, 3, 3, 4, 5, 3]
    assert {k: error.reason for k, error in gallery.failures.items()} == {7: "missing picture"}
    (tmp_path / "more.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="more.zip.*a whole zip file"):
        Gallery(Files(tmp_path), [PictureRef("gone.png")], SIZE)


def test_a_number_is_a_picture_with_zeros_in_front(tmp_path):
    (tmp_path / "images").mkdir()
    for name, number in (("000007.png", 7), ("0.png", 0), ("00.png", 1), ("a9.png", 9)):
        (tmp_path / "images" / name).write_bytes(png(number))
    (tmp_path / "009.png").write_bytes(png(3))
    (tmp_path / "images" / "09.png").write_bytes(png(4))
    gallery = Gallery(Files(tmp_path), list(map(PictureRef, ("7", "0", "70", "9"))), SIZE)
    assert [seen(gallery[k]) for k in range(2)] == [7, 0]
    reasons = {k: error.reason for k, error in gallery.failures.items()}
    assert reasons == {2: "missing picture", 3: "several files of one name"}


@pytest.mark.parametrize(
    ("write", "load", "kind", "message"),
    [
        (None, {"name": "vlase"}, ConfigError, "benchmark 'vlase'"),
        (None, {"name": "coco"}, ConfigError, "nas_jax.evals RUN --benchmark NAME"),
        (None, {"name": "valse", "data_dir": "nowhere"}, DataError, "no folder 'nowhere'"),
        (None, {"name": "valse"}, DataError, "no actant-swap.json"),
        (None, {"name": "own"}, DataError, r"no \*.jsonl"),
        (None, {"name": "aro"}, DataError, "none of the files of ARO"),
        (None, {"name": "whatsup"}, DataError, "none of the files of What'sUp"),
        (None, {"name": "crepe"}, DataError, "none of the files of CREPE"),
        (None, {"name": "vsr"}, DataError, "no test.jsonl"),
        (None, {"name": "cola"}, DataError, "no COLA_multiobjects_matching_benchmark.json"),
        (None, {"name": "hard_positives"}, DataError, "none of the files of Hard Positives"),
        (None, {"name": "negbench"}, DataError, "none of the files of NegBench"),
        (None, {"name": "spec"}, DataError, "none of the files of SPEC"),
        (None, {"name": "vl_checklist"}, DataError, "none of the files of VL-CheckList"),
        (None, {"name": "fg_ovd"}, DataError, "none of the files of FG-OVD"),
        (None, {"name": "imagecode"}, DataError, "no valid_data.json"),
        (None, {"name": "own", "image_size": 0}, ConfigError, "image_size=0"),
        (None, {"name": "own", "max_dropped": 2}, ConfigError, "max_dropped=2"),
        (("a.jsonl", "{"), {"name": "own"}, DataError, "line 1"),
        (("a.jsonl", "[{}"), {"name": "own"}, DataError, "a json array"),
        (("a.jsonl", ""), {"name": "own"}, DataError, "no items"),
        (("Questions.csv", "a,b\n1,2\n"), {"name": "mmvp"}, DataError, "without column 'Question "
                                                                       "ID'"),
        (("coco_order.json", "{}"), {"name": "aro_coco_order"}, DataError, "holds a dict"),
        (("coco_order.json", "[1"), {"name": "aro_coco_order"}, DataError, "a json file"),
        (
            ("a.jsonl", '{"image": "a", "caption": "b", "foil": "c", "category": "all"}'),
            {"name": "own"}, DataError, "a category named 'all'",
        ),
        (
            ("a.jsonl", '{"id": 1, "image": "a", "caption": "b", "foil": "c"}\n' * 2),
            {"name": "own"}, DataError, "two items with the id '1'",
        ),
    ],
)  # fmt: skip
def test_user_errors(tmp_path, write, load, kind, message):
    if write:
        (tmp_path / write[0]).write_text(write[1])
    with pytest.raises(kind, match=message):
        load_benchmark(**{"data_dir": tmp_path, **load})


def test_scores_must_fit():
    benchmark = made("choice", [Question("0", "a", (0,), ("c", "f"))])
    with pytest.raises(DataError, match=r"shape \(2, 1\) for question '0'"):
        rows(benchmark, [np.zeros((2, 1))], "itm")
    with pytest.raises(DataError, match="scores of 0 questions"):
        rows(benchmark, [], "itm")


# ---------------------------------------------------------------------------- real annotation files

REAL = os.environ.get("NAS_JAX_BENCHMARKS", "")
SIZES = {
    "valse": {"valse": valse.SIZES},
    "sugarcrepe": {"sugarcrepe": sugarcrepe.SIZES},
    "sugarcrepe_pp": {
        "sugarcrepe_pp": sugarcrepe_pp.SIZES,
        "sugarcrepe_pp_text": sugarcrepe_pp.SIZES,
    },
}


@pytest.mark.parametrize("name", SIZES)
def test_real_files_have_the_published_counts(name):
    folder = Path(REAL) / name
    if not REAL or not folder.is_dir():
        pytest.skip(f"NAS_JAX_BENCHMARKS names no folder with {name}")
    for benchmark in load_benchmark(name, folder, max_dropped=0.0):
        counts = Counter(question.category for question in benchmark.questions)
        assert counts == SIZES[name][benchmark.name]
        # Two negatives of SugarCrepe++ are copies of a caption.
        assert benchmark.protocol.get("unanswerable", "0")[0] == (
            "2" if name == "sugarcrepe_pp" else "0"
        )
