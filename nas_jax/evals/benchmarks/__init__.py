"""Benchmarks: one small file each turns published annotation files into `questions.Benchmark`.

A loader takes a folder and `LoadOptions` and returns one or more benchmarks. `reading` opens
annotation files, `pictures` finds and decodes pictures, `assemble` puts both together and counts
what is lost. docs/benchmarks.md says where the files come from.
`python -m nas_jax.evals.benchmarks NAME --data DIR` says what a folder holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nas_jax.evals.benchmarks import (
    aro,
    crepe,
    fg_ovd,
    hard_positives,
    imagecode,
    mmvp,
    negbench,
    own,
    quads,
    spec,
    sugarcrepe,
    sugarcrepe_pp,
    svo,
    valse,
    vl_checklist,
    vsr,
    whatsup,
    winoground,
)
from nas_jax.evals.benchmarks.assemble import LoadOptions
from nas_jax.evals.questions import Benchmark
from nas_jax.utils.errors import ConfigError, DataError

__all__ = ["BENCHMARKS", "Loader", "LoadOptions", "load_benchmark", "load_with"]


@dataclass(frozen=True)
class Loader:
    """A line of the table of benchmarks."""

    load: Callable[[Path, LoadOptions], tuple[Benchmark, ...]]
    about: str  # for --help


BENCHMARKS = {
    "valse": Loader(valse.load, "VALSE: caption or foil, 11 pieces of language"),
    "sugarcrepe": Loader(sugarcrepe.load, "SugarCrepe: caption or negative, 7 splits"),
    "sugarcrepe_pp": Loader(
        sugarcrepe_pp.load,
        "SugarCrepe++: two captions against a negative, with and without picture",
    ),
    "aro": Loader(aro.load_all, "ARO: those of its four tests whose files are there"),
    "aro_relation": Loader(aro.load_relation, "ARO VG-Relation"),
    "aro_attribution": Loader(aro.load_attribution, "ARO VG-Attribution"),
    "aro_coco_order": Loader(aro.load_coco_order, "ARO COCO-Order"),
    "aro_flickr_order": Loader(aro.load_flickr_order, "ARO Flickr30k-Order"),
    "winoground": Loader(
        winoground.load, "Winoground: two pictures, two captions of the same words"
    ),
    "svo": Loader(svo.load, "SVO-Probes: subject, verb or object"),
    "mmvp": Loader(mmvp.load, "MMVP-VLM: pairs of pictures that CLIP takes for alike"),
    "whatsup": Loader(whatsup.load, "What'sUp: where things are, 6 sets"),
    "crepe": Loader(crepe.load, "CREPE: the caption of a region among hard negatives"),
    "vsr": Loader(vsr.load, "VSR: is this sentence about places true?"),
    "colorswap": Loader(quads.loader("colorswap"), "ColorSwap: colours change places"),
    "cola": Loader(quads.loader("cola"), "COLA: objects with their attributes, two pictures"),
    "bivlc": Loader(quads.loader("bivlc"), "BiVLC: SugarCrepe with a picture of each negative"),
    "vismin": Loader(quads.loader("vismin"), "VisMin: pictures with one small change"),
    "eqben": Loader(quads.loader("eqben"), "EqBen: frames of videos and drawings, little changed"),
    "coco_counterfactuals": Loader(
        quads.loader("coco_counterfactuals"), "COCO-Counterfactuals: another noun, another picture"
    ),
    "naturalbench_retrieval": Loader(
        quads.loader("naturalbench_retrieval"), "NaturalBench-Retrieval: two pictures, two captions"
    ),
    "hard_positives": Loader(
        hard_positives.load, "Hard Positives: two captions of one meaning against a negative"
    ),
    "negbench": Loader(negbench.load, "NegBench: four captions, some of which deny"),
    "spec": Loader(spec.load, "SPEC: size, position, existence, count, in both directions"),
    "vl_checklist": Loader(vl_checklist.load, "VL-CheckList: objects, attributes, relations"),
    "fg_ovd": Loader(fg_ovd.load, "FG-OVD: the caption of an object among others"),
    "imagecode": Loader(imagecode.load, "ImageCoDe: one of ten nearly equal pictures"),
    "own": Loader(own.load, "your own pairs, quads and more, from jsonl, csv or json"),
}


def load_benchmark(
    name: str,
    data_dir: str | Path,
    image_size: int | None = None,
    max_dropped: float = 0.01,
    clean: bool = True,
    cased: bool = False,
    image_range: tuple[float, ...] = (),
) -> tuple[Benchmark, ...]:
    """Loads a benchmark; some are several.

    Args:
      name: a key of BENCHMARKS.
      data_dir: folder with its annotation files, and the pictures anywhere below it or in .tar
      files in it.
      image_size: height and width of the pictures, pixels; None: annotations only.
      max_dropped: a larger share of items that cannot be used is an error.
      clean: whether texts are cleaned as ALBEF cleans them (lower case, no punctuation).
      cased: then too capitals stay, for a tokenizer that tells them apart.
      image_range: values that are black and white in pictures of more than 8 bits; () = as the file
      says.

    Raises:
      ConfigError: an unknown name, or an option without sense.
      DataError: files that are missing or malformed, or too many items that cannot be used.
    """
    ends = tuple(image_range)
    options = LoadOptions(image_size, max_dropped, clean, cased=cased, image_range=ends)
    return load_with(name, data_dir, options)


def load_with(name: str, data_dir: str | Path, options: LoadOptions) -> tuple[Benchmark, ...]:
    """`load_benchmark` with all options. Errors: the same."""
    if name not in BENCHMARKS:
        raise ConfigError(
            f"benchmark {name!r}",
            f"one of {', '.join(BENCHMARKS)}",
            "check the spelling; coco, flickr30k, urban1k, retrieval and classes need a model: "
            "python -m nas_jax.evals RUN --benchmark NAME --data DIR",
        )
    folder = Path(data_dir).expanduser()
    if not folder.exists():
        raise DataError(
            f"no folder {str(data_dir)!r}", f"the files of {name}", "see docs/benchmarks.md"
        )
    options.validate()
    return BENCHMARKS[name].load(folder, options)
