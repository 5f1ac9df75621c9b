"""Collections that number their pictures alike: ids, foils and quads of the evaluation set."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from data import hostile

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import open_corpus
from nas_jax.data.pair_files import file_eval_sets
from nas_jax.data.prepare import prepare
from nas_jax.utils.errors import DataError
from nas_jax.utils.logging import Console

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """first/00000.tar and second/00000.tar with the same keys and other pictures, as two runs of a
    downloader make them; prepared folders of each; foils of the second, quads of the first.
    """
    folder = tmp_path_factory.mktemp("downloads")
    for seed, name in ((0, "first"), (100, "second")):
        members = []
        for i in range(COUNT):
            members += hostile.sample(f"{i:09d}", hostile.jpeg(seed + i), f"{name} {i}")
        (folder / name).mkdir()
        tar = hostile.write_tar(folder / name / "00000.tar", members)
        prepare((tar,), folder / f"P_{name}", workers=0, console=Console(enabled=False))
    foils = [
        {"image": f"{i:09d}", "caption": f"second {i}", "foil": f"no {i}", "category": "swap"}
        for i in range(COUNT)
    ]
    quads = [
        {"image_0": f"{i:09d}.jpg", "image_1": f"{i + 1:09d}.jpg"}
        | {"caption_0": f"first {i}", "caption_1": f"first {i + 1}"}
        for i in range(0, COUNT, 2)
    ]
    for name, lines in (("second-foils", foils), ("first-quads", quads), ("any-foils", foils)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def config_of(folder: Path, *entries: str, foils: str = "second-foils", **changes) -> DataConfig:
    """With a holdout the entries are data.train, without one data.val."""
    paths = tuple(str(folder / entry) for entry in entries)
    return DataConfig(
        **({"train": paths} if "holdout" in changes else {"val": paths}),
        foils=(str(folder / f"{foils}.jsonl"),),
        quads=(str(folder / "first-quads.jsonl"),),
        image_size=16,
        **changes,
    )


def asked(eval_set):
    """Of each foil and quad, the captions of its pictures and the captions that it calls true."""
    shown = [eval_set.captions[foil.image][0] for foil in eval_set.foils]
    shown += [eval_set.captions[quad.image_0][0] for quad in eval_set.quads]
    shown += [eval_set.captions[quad.image_1][0] for quad in eval_set.quads]
    true = [foil.caption for foil in eval_set.foils]
    true += [quad.caption_0 for quad in eval_set.quads]
    return shown, true + [quad.caption_1 for quad in eval_set.quads]


FOLDERS = "P_first", "P_second"
TARS = "first/00000.tar", "second/00000.tar"


@pytest.mark.parametrize(
    ("entries", "changes"),
    [
        (FOLDERS, {}),
        (FOLDERS[::-1], {"holdout": 0.6}),
        ((TARS[0], FOLDERS[1]), {}),
        (TARS, {"holdout": 0.6, "weights": (2.0, 1.0)}),
    ],
)
def test_two_collections_numbered_alike(folder, entries, changes):
    """Different pictures have different ids, as in training, and each file asks about its own."""
    config = config_of(folder, *entries, **changes)
    (eval_set,) = file_eval_sets(config)
    source = open_corpus(config, "val", 0)
    assert list(eval_set.image_ids) == [source[i].image_id for i in range(len(source))]
    count = len({source.key(i) for i in range(len(source))})
    assert len(set(eval_set.image_ids)) == len(eval_set.images) == 2 * count > 8
    assert len(eval_set.foils) == count and eval_set.quads
    shown, true = asked(eval_set)
    assert shown == true


def test_a_key_of_two_pictures_is_refused(folder):
    config = config_of(folder, *FOLDERS, foils="any-foils")
    with pytest.raises(
        DataError, match="any-foils.jsonl: the picture '000000000' is in .*first/00000.tar and in"
    ) as caught:
        file_eval_sets(config)
    assert "\n" not in str(caught.value)
    # Where a key is one picture, either of them will do: in one collection, or if the user says so.
    shared = replace(config, shared_keys=True)
    joined = replace(config, val=tuple(str(folder / tar) for tar in TARS))
    for same in (shared, joined):
        (eval_set,) = file_eval_sets(same)
        assert len(eval_set.image_ids) == 2 * len(set(eval_set.image_ids)) == 2 * COUNT
        assert [foil.image for foil in eval_set.foils] == list(range(COUNT))
    # A file that is named like one of several tars of a name is still about both of them.
    (folder / "00000-foils.jsonl").write_text((folder / "any-foils.jsonl").read_text())
    with pytest.raises(DataError, match="00000-foils.jsonl: the picture"):
        file_eval_sets(replace(config, foils=(str(folder / "00000-foils.jsonl"),)))


@pytest.mark.parametrize("named", ["cats/0.jpg", "./cats/0", "1.jpg", "v1.2.jpg", "dogs/v1.2"])
def test_pictures_in_folders_of_a_tar_are_found_by_path_or_by_a_name_of_their_own(tmp_path, named):
    members = []
    for seed, key in enumerate(("cats/0", "dogs/0", "dogs/1", "dogs/v1.2", "dogs/v1.3")):
        members += hostile.sample(key, hostile.jpeg(seed), f"{key} true")
    hostile.write_tar(tmp_path / "pets.tar", members)
    foil = {"image": named, "caption": "a\u2028b", "foil": "b", "category": "swap"}
    (tmp_path / "pets-foils.jsonl").write_text(json.dumps(foil, ensure_ascii=False))
    config = DataConfig(
        val=(str(tmp_path / "pets.tar"),),
        foils=(str(tmp_path / "pets-foils.jsonl"),),
        image_size=16,
    )
    (found,) = file_eval_sets(config)
    key = {"1.jpg": "dogs 1", "v1.2.jpg": "dogs v12", "dogs/v1.2": "dogs v12"}.get(named, "cats 0")
    assert found.captions[found.foils[0].image] == (f"{key} true",)
    (tmp_path / "pets-foils.jsonl").write_text(json.dumps(foil | {"image": "0.jpg"}))
    with pytest.raises(DataError, match="the picture '0.jpg' is in"):
        file_eval_sets(config)


def test_neighbouring_tars_that_number_other_pictures_alike_are_said(folder, caplog):
    """They are one collection without weights, in which both pictures would have one id."""
    config = config_of(folder, *TARS, foils="any-foils")
    with caplog.at_level("WARNING", logger="absl"):
        open_corpus(replace(config, val=(str(folder / TARS[0]),) * 2), "val", 0)
        open_corpus(config_of(folder, *TARS, holdout=0.6, weights=(1.0, 1.0)), "val", 0)
        assert not caplog.records
        open_corpus(config, "val", 0)
    (record,) = caplog.records
    assert "000000000 is in" in record.message and "'second 0'" in record.message
    assert "give data.weights, or prepare each" in record.message


@pytest.mark.parametrize("form", ["cats/{}.jpg", "{}.jpg", "./cats/{}", "cats/{}"])
@pytest.mark.parametrize("key", ["n{}", "scan v1.{}"])
def test_the_pictures_of_a_quad_stay_on_one_side_whatever_they_are_called(tmp_path, form, key):
    """In folders of a tar, with dots in their names, by the last part of the name alone."""
    keys = [key.format(i) for i in range(40)]
    members = []
    for seed, one in enumerate(keys):
        members += hostile.sample(f"cats/{one}", hostile.jpeg(seed), f"a cat {seed}")
    hostile.write_tar(tmp_path / "pets.tar", members)
    quads = [
        {
            "image_0": form.format(keys[i]),
            "image_1": form.format(keys[i + 1]),
            "caption_0": f"a cat {i}",
            "caption_1": f"a cat {i + 1}",
        }
        for i in range(0, 40, 2)
    ]
    (tmp_path / "quads.jsonl").write_text("\n".join(map(json.dumps, quads)))
    config = DataConfig(
        train=(str(tmp_path / "pets.tar"),),
        quads=(str(tmp_path / "quads.jsonl"),),
        holdout=0.5,
        image_size=16,
    )
    for split in ("train", "val"):
        source = open_corpus(config, split, 0)
        kept = {int(source.captions(i)[0].removeprefix("a cat ")) for i in range(len(source))}
        assert 0 < len(kept) < 40
        assert all((i in kept) == (i + 1 in kept) for i in range(0, 40, 2))
    (found,) = file_eval_sets(config)
    assert len(found.quads) == len(source) // 2
