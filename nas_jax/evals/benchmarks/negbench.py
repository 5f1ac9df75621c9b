"""NegBench (Alhamoud et al. 2025), multiple choice: the caption of a picture among four, some of
which deny.

Files, each a benchmark of its own where it is there: csv with image_path (or filepath), caption_0,
caption_1, ..., correct_answer (a number from 0) and correct_answer_template, the category. Its
retrieval files are lists of captions: `--benchmark retrieval`.
"""

from __future__ import annotations

from pathlib import Path

from nas_jax.evals.benchmarks.assemble import Draft, Items, LoadOptions, assemble
from nas_jax.evals.benchmarks.pictures import Files, PictureRef
from nas_jax.evals.benchmarks.reading import (
    Unusable,
    category_of,
    each,
    name_of,
    read_table,
    text,
    whole,
)
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import DataError

FILES = {
    "negbench_coco": "COCO_val_mcq_llama3.1_rephrased.csv",
    "negbench_voc2007": "VOC2007_mcq_llama3.1_rephrased.csv",
    "negbench_synthetic": "synthetic_mcq_llama3.1_rephrased.csv",
}


def load(data_dir: Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """Those of the three tests whose file is there, in the folder or in `images`."""
    files, out = Files(data_dir), []
    for name, file in FILES.items():
        paths = [path for path in (data_dir / file, data_dir / "images" / file) if path.is_file()]
        if paths:
            items = Items()
            table = read_table(paths[0], ("caption_0", "caption_1", "correct_answer"))
            items.drafts += each(enumerate(table), _draft, items.report)
            out.append(assemble(name, "choice", items, files, options))
    if not out:
        expected = ", ".join(FILES.values())
        raise DataError(
            f"none of the files of NegBench in {data_dir}", expected, "see docs/benchmarks.md"
        )
    return tuple(out)


def _draft(number: int, row: dict[str, str]) -> Draft:
    fields = [f"caption_{place}" for place in range(len(row)) if row.get(f"caption_{place}")]
    texts, right = [text(row, field) for field in fields], whole(row, "correct_answer")
    if not 0 <= right < len(texts) or len(texts) < 2:
        raise Unusable("no correct_answer", str(number))
    texts.insert(0, texts.pop(right))
    picture = name_of(row, "image_path" if row.get("image_path") else "filepath")
    category = category_of(row, "correct_answer_template")
    return Draft(str(number), category, (PictureRef(picture),), tuple(texts))
