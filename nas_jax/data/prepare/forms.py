"""The forms of files that can be prepared, and how they are told apart.

    *.tar                    WebDataset shards as img2dataset writes them; *.tar.gz, *.tgz
    *.parquet                a column of pictures {bytes, path}, bytes or paths; one of captions
    *.json                   ALBEF's list [{image, caption}]; COCO's captions {images, annotations};
                             Karpathy's {images: [{filename, split, sentences}]}; an object a line
    *.jsonl, *.ndjson        an object a line, or a list as above
    *.csv, *.tsv, *.txt      a table with a header; PICTURE#NUMBER<tab>CAPTION of Flickr8k
    DIR                      with one of these, metadata.csv|jsonl (imagefolder), tars, parquet
                             files, or KEY.jpg beside KEY.txt|json, in it or one folder below
    tfds:NAME[:SPLIT]        a TensorFlow Datasets data set
    hf://, https://, s3://   tars or parquet files elsewhere (`remote`)

Any list may be packed (.gz, .bz2, .xz) or in UTF-16. What a file is follows from its first bytes
where these tell, and from its name where they do not. `nas_jax.data.list_fields` has the names of
fields.
"""

from __future__ import annotations

import codecs
import glob
import os
import shlex
from collections.abc import Sequence

from nas_jax.data.patterns import expand_braces
from nas_jax.data.prepare.json_streams import holds_lines
from nas_jax.data.prepare.pair_folders import is_pair, parts_of
from nas_jax.data.prepare.remote import is_remote, list_remote
from nas_jax.data.prepare.streams import PACKED_SUFFIXES, open_bytes, open_text, unpacking
from nas_jax.data.prepare.tables import TOKEN, delimiter_of
from nas_jax.data.prepare.tars import BLOCK, check_tar
from nas_jax.data.tar_names import picture_of
from nas_jax.utils.errors import DataError

LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".tab", ".txt", ".token")
LISTS = (*LINES, ".csv", ".tsv", ".tab", ".token", ".json")
_KNOWN = (
    "*.tar, *.parquet, *.json, *.jsonl, *.csv, *.tsv, a folder with one of these, or tfds:NAME "
    "(docs/what_do_you_have.md)"
)
Found = tuple[str, str]  # kind, path


def list_inputs(inputs: Sequence[str], groups: bool = False) -> list[Found]:
    """(kind, path) of each file in the given order, globs and braces expanded; cheap: of each file
    the beginning is read. groups: each input is a folder of groups.

    Raises:
      DataError: an input that is missing, empty or of no known form.
    """
    if groups:
        return [("groups", _group_folder(given)) for given in dict.fromkeys(inputs)]
    found: list[Found] = []
    for given in inputs:
        if is_remote(given):
            listed = list_remote(given)
        else:
            listed = [("tfds", given)] if given.startswith("tfds:") else _listed(given)
        found += [entry for entry in dict.fromkeys(listed) if entry not in set(found)]
    return found


def _group_folder(given: str) -> str:
    folder = os.path.expanduser(given)
    if not os.path.isdir(folder):
        raise DataError(
            f"--groups with {given}",
            "a folder that holds a folder for each group",
            "name that folder; in a list or a tar the field `group` names the group",
        )
    return folder


def _listed(given: str) -> list[Found]:
    pattern = os.path.expanduser(given)
    # Files with brackets or braces in their names are themselves, not patterns.
    patterns = [pattern] if os.path.exists(pattern) else expand_braces(pattern)
    found = []
    for one in patterns:
        paths = [one] if os.path.exists(one) else sorted(glob.glob(one))
        if not paths:
            among = f", one of {given!r}" if len(patterns) > 1 else ""
            raise DataError(
                f"no file {one if among else given!r}{among}",
                "a path or a glob that matches",
                "check the INPUT arguments",
            )
        for path in paths:
            found += _of_folder(path) if os.path.isdir(path) else [(kind_of(path), path)]
    return found


# ------------------------------------------------------------------------------------------ folders


def _of_folder(folder: str) -> list[Found]:
    """What is meant by a folder. Raises DataError where that is nothing, or several things."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    _check_owner(folder, names)
    metadata = [name for name in names if name in ("metadata.csv", "metadata.jsonl")]
    if len(metadata) == 1:
        return _kinds(folder, metadata)
    parts = parts_of(names)
    pairs = {key for key, found in parts.items() if is_pair(found)}
    tars = [name for name in names if _suffix(name) == ".tar"]
    inner = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    # img2dataset writes a table and a json of each shard beside it
    shards = {_stem(name) for name in tars} | set(inner)
    tables = [name for name in names if name.endswith(".parquet") and _stem(name) not in shards]
    lists = [
        name
        for name in names
        if _suffix(name) in LISTS and _stem(name) not in pairs and not name.endswith("_stats.json")
    ]
    forms = {"*.tar": tars, "*.parquet": tables, "list": lists, "pair": sorted(pairs)}
    forms = {form: found for form, found in forms.items() if found}
    if len(forms) > 1 or len(lists) > 1:
        if "pair" in forms:
            forms["KEY.jpg with KEY.txt or KEY.json"] = forms.pop("pair")
        counts = [f"{len(found)} {form}" for form, found in forms.items() if form != "list"]
        counts += [_count_lists(lists)] if lists else []
        path = os.path.join(folder, lists[0] if lists else next(iter(forms.values()))[0])
        raise DataError(
            f"the folder {folder} with {', '.join(counts)}",
            "exactly one list, or files of one form",
            f"name the one that is meant, like {shlex.quote(path)}",
        )
    if pairs:
        return [("files", folder)]
    if forms:
        return _kinds(folder, next(iter(forms.values())))
    return _of_inner(folder, names, inner)


def _count_lists(lists: list[str]) -> str:
    suffixes = " or ".join(f"*{suffix}" for suffix in sorted({_suffix(name) for name in lists}))
    return f"{len(lists)} files {suffixes}"


def _check_owner(folder: str, names: list[str]) -> None:
    """Raises DataError for the folder of a data set that is read otherwise."""
    if "manifest.json" in names:
        raise DataError(
            f"{folder} is prepared already",
            "files to prepare",
            "use the folder in data.train as it is",
        )
    if any(name.endswith(".arrow") for name in names):
        raise DataError(
            f"the folder {folder} of datasets.save_to_disk",
            "parquet files",
            f'write one with python -c "import datasets; datasets.load_from_disk({folder!r})'
            ".to_parquet('data.parquet')\"",
        )
    if "dataset_info.json" in names:
        raise DataError(
            f"the folder {folder} of a TFDS data set", "tfds:DIR", f"write tfds:{folder}"
        )


def _of_inner(folder: str, names: list[str], inner: list[str]) -> list[Found]:
    """The folders of pairs in a folder, or its folder `data` of parquet files."""
    paths = [os.path.join(folder, name) for name in inner]
    of_pairs = [path for path in paths if any(map(is_pair, parts_of(os.listdir(path)).values()))]
    if of_pairs:
        return [("files", path) for path in of_pairs]
    if os.path.isdir(data := os.path.join(folder, "data")):
        return _of_folder(data)
    fit = next((path for path in paths if _may_hold(path)), None)
    pictures = sum(picture_of(parts) is not None for parts in parts_of(names).values())
    if fit:
        raise DataError(
            f"the folder {folder} with {len(inner)} folders", "one", f"name one, like {fit}"
        )
    raise DataError(
        f"the folder {folder} with {pictures} pictures and no captions"
        if pictures
        else f"the folder {folder} without a list of pictures",
        "a list, or KEY.txt beside each KEY.jpg",
        "name the list with INPUT and the folder with --image-root"
        if pictures
        else "name the files",
    )


def _may_hold(folder: str) -> bool:
    try:
        return bool(_of_folder(folder))
    except DataError:
        return False


def _kinds(folder: str, names: Sequence[str]) -> list[Found]:
    paths = [os.path.join(folder, name) for name in names]
    return [(kind_of(path), path) for path in paths]


# -------------------------------------------------------------------------------------------- files


def _suffix(name: str) -> str:
    """The suffix of a name in lower case, of what is packed where it is; .tar for .tgz."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in PACKED_SUFFIXES:
        suffix = os.path.splitext(stem)[1]
    return ".tar" if suffix in (".tgz", ".tbz2", ".txz") else suffix


def _stem(name: str) -> str:
    """The name without its suffix, which may be two where it is packed."""
    stem, suffix = os.path.splitext(name)
    return os.path.splitext(stem)[0] if suffix.lower() in PACKED_SUFFIXES else stem


def kind_of(path: str) -> str:
    """webdataset, parquet, albef, coco, jsonl, csv, tsv or token.

    Raises DataError for a file that cannot be read, or of another form.
    """
    with unpacking(path), open_bytes(path) as file:
        block = file.read(BLOCK)
    suffix = _suffix(path)
    if block.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if suffix == ".tar":
        check_tar(path, block)
        return "webdataset"
    if block.startswith(b"PK\3\4"):
        raise _zip_error(path)
    if suffix in (*LINES, ".json"):
        if kind := _json_kind(path, suffix):
            return kind
    elif suffix in TABLES:
        delimiter = delimiter_of(path, suffix)
        if delimiter == TOKEN:
            return "token"
        if delimiter or suffix in (".csv", ".tsv", ".tab"):  # what a header lacks is said later
            return "tsv" if (delimiter or suffix) in ("\t", ".tsv", ".tab") else "csv"
    raise DataError(
        f"{path}, which begins with {block.lstrip()[:20]!r}"
        if suffix == ".json"
        else f"{path} of no known form",
        _KNOWN,
        "convert it to one of these",
    )


def _json_kind(path: str, suffix: str) -> str:
    with unpacking(path), open_text(path) as file:
        head = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if head == b"[":
        return "albef"
    if suffix in LINES:
        return "jsonl"
    if head == b"{":
        return "jsonl" if holds_lines(path) else "coco"  # or Karpathy's: the whole file shows
    return ""


def _zip_error(path: str) -> DataError:
    folder = os.path.splitext(path)[0]
    return DataError(
        f"{path}, a zip file",
        "the list of its pictures, with --image-root ZIP; or files that are unpacked",
        f"name the list with INPUT, or unpack it with python -m zipfile -e {shlex.quote(path)} "
        f"{shlex.quote(folder)} and name the folder",
    )
