"""CREPE (Ma et al. 2023): the caption of a region among hard negatives, by complexity or by what
training has seen.

Files, each kind a benchmark of its own where it is there, below the folder or in
`prod_hard_negatives` and `syst_hard_negatives`:
`{atom,swap,negate}/prod_vg_hard_negs_KIND_complexity_N.csv` for N = 4 to 12 (productivity), and
`syst_vg_hard_negs_{seen,unseen}_compounds_in_{cc12m,yfcc,laion}.csv` (systematicity, for models
trained on that collection only). Columns: image_id, caption, x, y, width, height and lists of
negatives. Pictures are Visual Genome's `ID.jpg`, cut to the region (CREPE code,
crepe_eval_utils.py).
"""

from __future__ import annotations

import ast
from pathlib import Path

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import Unusable, each, name_of, read_table, text, whole
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

CUTS = (1, 3, 5, 10)
COMPLEXITIES = range(4, 13)
COLLECTIONS = ("cc12m", "yfcc", "laion")
BOX = ("x", "y", "width", "height")
COLUMNS = ("image_id", "caption", *BOX)


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """One benchmark a kind of negative: "crepe_prod_atom", ..., "crepe_syst_cc12m_combined"."""
    files = Files(data_dir)
    out: list[Benchmark] = []
    for kind in ("atom", "swap", "negate"):
        names = {
            f"n={n}": f"{kind}/prod_vg_hard_negs_{kind}_complexity_{n}.csv" for n in COMPLEXITIES
        }
        out += _benchmark(
            f"crepe_prod_{kind}", _present(data_dir, "prod", names), "hard_negs", files, options
        )
    for collection in COLLECTIONS:
        names = {
            split: f"syst_vg_hard_negs_{split}_compounds_in_{collection}.csv"
            for split in ("seen", "unseen")
        }
        paths = _present(data_dir, "syst", names)
        for kind in ("atom", "comp", "combined"):
            name = f"crepe_syst_{collection}_{kind}"
            out += _benchmark(name, paths, f"valid_hard_negs_{kind}", files, options)
    if not out:
        expected = "prod_hard_negatives or syst_hard_negatives"
        raise DataError(
            f"none of the files of CREPE in {data_dir}", expected, "unpack its two zip files there"
        )
    return tuple(out)


def _present(data_dir: Path, test: str, names: dict[str, str]) -> dict[str, Path]:
    folders = (data_dir, data_dir / f"{test}_hard_negatives")
    paths = {category: folder / name for category, name in names.items() for folder in folders}
    paths |= {
        category: data_dir / name for category, name in names.items() if (data_dir / name).is_file()
    }
    return {category: path for category, path in paths.items() if path.is_file()}


def _benchmark(
    name: str, paths: dict[str, Path], negatives: str, files: Files, options: LoadOptions
) -> tuple[Benchmark, ...]:
    """One benchmark, or none where no file is there."""
    items = Items()
    for category, path in paths.items():
        table = read_table(path, (*COLUMNS, negatives))

        def draft(number: int, row: dict[str, str], category: str = category) -> Draft:
            left, top, width, height = (whole(row, field) for field in BOX)
            if width < 1 or height < 1:
                raise Unusable("empty region", f"{category}/{number}")
            picture = PictureRef(f"{name_of(row, 'image_id')}.jpg", (left, top, width, height))
            return Draft(
                f"{category}/{number}",
                category,
                (picture,),
                (text(row, "caption"), *_texts(row, negatives)),
            )

        items.drafts += each(enumerate(table), draft, items.report)
    if not paths:
        return ()
    protocol = {
        "crop": "x, y, width, height",
        "published scorer": "itc (CREPE code, crepe_prod_eval_albef.py)",
    }
    return (
        assemble(name, "choice", items, files, options, protocol, headline="all/r@1", cuts=CUTS),
    )


def _texts(row: dict[str, str], column: str) -> tuple[str, ...]:
    """The negatives, which are written as a Python list."""
    try:
        texts = ast.literal_eval(row[column])
    except (ValueError, SyntaxError) as error:
        raise Unusable(f"no {column}") from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Unusable(f"no {column}")
    return tuple(texts)
