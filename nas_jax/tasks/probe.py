"""Classification with frozen features: a linear probe, and classes by their names beside it.

    python -m nas_jax.tasks.probe runs/demo/albef
    python -m nas_jax.tasks.probe RUN --train DIR/train --test DIR/test
    python -m nas_jax.tasks.probe RUN --train tfds:cifar10:train --test tfds:cifar10:test

Without --train and --test the pictures are scenes of three shapes, whose class is the one that is
big. The probe is logistic regression on features of the image encoder, fitted by L-BFGS; its weight
decay is the best on a part of the training pictures that is held out for that (Radford
et al. 2021, CLIP, appendix A.3). Beside it stand the same probe on the encoder with random weights
(`untrained`), and the classes by their names, without a probe (nas_jax/evals/zero_shot.py). Writes
results.json, .md and .html.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import SCENES
from nas_jax.data.worlds import WORLDS
from nas_jax.evals import results as evaluation_results
from nas_jax.evals.benchmarks.assemble import LoadOptions
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.detail import question_result
from nas_jax.evals.encodings import BLANK_RGB
from nas_jax.evals.functions import ScoredModel, ScoringFunctions
from nas_jax.evals.labelled import DrawnThings, Labelled, read_labelled
from nas_jax.evals.metrics import Metric, format_table
from nas_jax.evals.questions import Scored
from nas_jax.evals.run import Texts, protocol
from nas_jax.evals.scorers import Scorer
from nas_jax.evals.zero_shot import PROMPTS, Classes, class_scores, classes_of
from nas_jax.methods.method import Method, MethodState
from nas_jax.parallel.mesh import batch_sharding, make_mesh, num_row_shards
from nas_jax.storage.paths import as_path, reaching
from nas_jax.tasks.logistic import fit_best
from nas_jax.train.trained import Trained, open_trained
from nas_jax.train.workdir import EVALS, check_out, writing_out
from nas_jax.typing import Params
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError, DataError
from nas_jax.utils.logging import Console, set_up_logging

FEATURES = ("mean", "cls", "itc")
DRAWN = {"train": 2000, "val": 1000}  # scenes
WORDS = 64  # tokens of a class's sentence

Weights = tuple[Params, MethodState]


# ---------------------------------------------------------------------------------------- features


class Features:
    """The features of an encoder that is not trained any more."""

    def __init__(self, method: Method, patches: int, kind: str, batch: int):
        """patches: of a picture. kind: of FEATURES. batch: pictures of one call."""
        self._mesh = make_mesh()
        shards = num_row_shards(self._mesh)
        self._batch = -(-batch // shards) * shards

        def read(params, state, image_BxHxWx3):
            found = method.encode_image(params, state, image_BxHxWx3, tokens="encoder")
            # tasks with a head of their own have tokens alone
            tokens_BxTxD, feature_BxE = found if isinstance(found, tuple) else (found, None)
            if kind == "itc":
                if feature_BxE is None or feature_BxE.ndim != 2:
                    raise ConfigError(f"--features itc of {method.config.name}",
                                      "a method with one ITC vector a picture",
                                      "pass --features mean")  # fmt: skip
                return feature_BxE
            if kind == "cls" and tokens_BxTxD.shape[1] == patches:
                raise ConfigError("--features cls of an encoder without [CLS]", "mean or itc",
                                  "pass --features mean")  # fmt: skip
            return tokens_BxTxD[:, 0] if kind == "cls" else tokens_BxTxD.mean(1)

        self._read = jax.jit(read)

    def of(
        self, weights: Weights, images: Sequence[np.ndarray], console: Console, name: str
    ) -> np.ndarray:
        """(N, F) float32 of N pictures, uint8 (H, W, 3). Raises ConfigError: no [CLS], no ITC."""
        found = []
        for start in range(0, len(images), self._batch):
            shown = np.stack(images[start : start + self._batch])
            padding = ((0, self._batch - len(shown)), *[(0, 0)] * 3)
            rows = jax.device_put(np.pad(shown, padding), batch_sharding(self._mesh))
            with jax.set_mesh(self._mesh):
                found.append(np.asarray(self._read(*weights, rows))[: len(shown)])
            done = start + len(shown)
            console.progress(f"{name}: {done}/{len(images)} pictures", due=done == len(images))
        return np.concatenate(found).astype(np.float32)


# ----------------------------------------------------------------------------------------- command


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    args, console = _parse(argv), Console()
    with reaching(args.checkpoint):
        trained = open_trained(args.checkpoint)
        folder = check_out(as_path(args.out or trained.workdir / EVALS / f"{trained.step}-probe"))
        train, test = _classes(trained, args)
        mesh = make_mesh()
        params, state = trained.load(mesh, console.say)
        found, penalties = _probed(trained, args, (train, test), (params, state), console)
        if trained.method.feature_scores:
            model = ScoredModel(
                ScoringFunctions.of(trained.method), params, state, trained.tokenizer,
                trained.model.image_size,
            )  # fmt: skip
            config = EvalConfig(batch_size=args.batch_size)
            name = trained.method.feature_scores[0]
            sentences = [text for texts in test.sentences for text in texts]
            length = min(WORDS, trained.model.max_text_length)
            scores = Scorer(model, config, mesh, console).on(test.benchmark, sentences, length)
            found.append(class_scores(scores, test, name))
        rules = _rules(args, train, test)
        rows = _written(folder, trained, args, test, found, rules, penalties)
    console.close()
    print(format_table(rows))
    print(f"results: {folder}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    flags = Parser("python -m nas_jax.tasks.probe", description=__doc__.split("\n\n")[0])
    flags.add_argument("checkpoint", help="work directory, or WORKDIR/checkpoints/STEP")
    where = "a folder a class, labels.jsonl, or tfds:NAME:SPLIT"
    flags.add_argument("--train", default=SCENES, metavar="DIR", help=f"{where} (default: scenes)")
    flags.add_argument("--test", default=SCENES, metavar="DIR", help=f"{where} (default: scenes)")
    flags.add_argument("--features", default="mean", choices=FEATURES,
                       help="of the encoder the mean of all tokens or [CLS], or ITC's")  # fmt: skip
    flags.add_argument("--prompts", default="", help=f"{', '.join(PROMPTS)} (default photo@1; "
                       "scenes: plain@1)")  # fmt: skip
    flags.add_argument("--batch-size", type=int, default=EvalConfig.batch_size, metavar="N",
                       help="pictures of a call (default 64)")  # fmt: skip
    flags.add_argument("--max-dropped", type=float, default=EvalConfig.max_dropped, metavar="SHARE",
                       help="of pictures that cannot be read (default 0.01)")  # fmt: skip
    flags.add_argument("--out", default="", metavar="DIR", help="default: in the run")
    args = flags.parse_args(argv)
    if (args.train == SCENES) != (args.test == SCENES):
        raise ConfigError(f"--train {args.train} with --test {args.test}", "both, or neither",
                          "pass the other one too")  # fmt: skip
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size {args.batch_size}", "1 or more", "64 is usual")
    return args


def _classes(trained: Trained, args: argparse.Namespace) -> tuple[Classes, Classes]:
    """Training and test pictures, of the same classes in the same order."""
    data, tokenizer = trained.section(DataConfig, "data"), trained.tokenizer
    size = trained.model.image_size
    options = LoadOptions(
        size, args.max_dropped, data.clean_captions, cased=tokenizer.cased,
        image_range=tuple(data.image_range),
    )  # fmt: skip
    prompts = args.prompts or ("plain@1" if args.train == SCENES else "photo@1")

    def read(split: str, source: str) -> Labelled:
        if source != SCENES:
            return read_labelled(source)
        world, seed = WORLDS[data.scene_world], trained.seed
        return DrawnThings(world, split, DRAWN[split], seed, size).labelled

    train, test = read("train", args.train), read("val", args.test)
    if unknown := sorted(set(test.names) - set(train.names)):
        got = f"class {unknown[0]!r} of {args.test}, which is not in {args.train}"
        raise DataError(got, "the classes of the training pictures", "check both folders")
    test = replace(test, names=train.names)
    found = classes_of(train, options, prompts), classes_of(test, options, prompts)
    if len(found[0].benchmark.questions) < 2:
        got = f"one training picture in {args.train}"
        raise DataError(got, "two or more, one of which is held out", "add pictures of each class")
    return found


def _probed(
    trained: Trained,
    args: argparse.Namespace,
    sets: tuple[Classes, Classes],
    weights: Weights,
    console: Console,
) -> tuple[list[Scored], dict[str, str]]:
    """Scores of the test under a probe on the encoder, trained and untrained; and penalties."""
    (train_I, train_N), (test_I, test_N) = map(_shown, sets)
    names = sets[0].names
    rows = [_order(names, name) for name in names]  # of each class: its number first
    out, penalties = [], {}
    start = jax.jit(trained.method.init)(jax.random.key(trained.seed))
    model = trained.model
    features = Features(trained.method, model.num_patches, args.features, args.batch_size)
    grey = np.broadcast_to(np.array(BLANK_RGB, np.uint8), (model.image_size,) * 2 + (3,))
    for name, weights_of in (("probe", weights), ("untrained", start)):
        train_NxF = features.of(weights_of, train_I, console, f"{name}, training")
        test_NxF = features.of(weights_of, test_I, console, f"{name}, test")
        probe = fit_best(train_NxF, train_N, len(names), trained.seed)
        penalties[name] = f"{probe.penalty:g}"
        seen_NxC = probe.logits(test_NxF)
        blind_C = probe.logits(features.of(weights_of, [grey], console, name))[0]
        found = [
            [table[rows[label]][None] for label, table in zip(test_N, tables, strict=True)]
            for tables in (seen_NxC, np.broadcast_to(blind_C, seen_NxC.shape))
        ]
        out.append(Scored(name, *found))
    return out, penalties


def _rules(args: argparse.Namespace, train: Classes, test: Classes) -> dict[str, str]:
    """What two models need in common to be compared."""
    asked = test.benchmark.questions
    ((common, count),) = Counter(question.texts[0] for question in asked).most_common(1)
    return {
        "features": args.features,
        "training pictures": str(len(train.benchmark.questions)),
        "most frequent class": f"{common}, {100 * count / len(asked):.1f} %",
    }


def _shown(classes: Classes) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Pictures, and their classes (N,) int32, of all questions."""
    questions, images = classes.benchmark.questions, classes.benchmark.images
    column = {name: number for number, name in enumerate(classes.names)}
    labels_N = np.array([column[one.texts[0]] for one in questions], np.int32)
    return [images[one.images[0]] for one in questions], labels_N


def _order(names: tuple[str, ...], first: str) -> list[int]:
    """Columns with that of `first` before the others, as `Question.texts` has them."""
    number = names.index(first)
    return [number, *(k for k in range(len(names)) if k != number)]


def _written(
    folder: Path,
    trained: Trained,
    args: argparse.Namespace,
    test: Classes,
    found: list[Scored],
    rules: dict[str, str],
    penalties: dict[str, str],
) -> list[Metric]:
    """Writes the results; returns the rows over all pictures."""
    config = EvalConfig(batch_size=args.batch_size)
    benchmark = replace(test.benchmark, protocol={**test.benchmark.protocol, **rules})
    result = question_result(benchmark, found, config.bootstrap, ranks_only=True)
    about = evaluation_results.about_checkpoint(
        trained.workdir,
        trained.step,
        trained.config.get("name", trained.workdir.name),
        trained.method,
    )
    data = trained.section(DataConfig, "data")
    texts = Texts(trained.tokenizer, data.clean_captions, trained.model.max_text_length)
    how = protocol(config, texts, trained.model.image_size, about) | {"penalty": penalties}
    with writing_out(folder):
        evaluation_results.write(folder, how, [result])
    return [row for row in result.rows if row.part == "all"]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
