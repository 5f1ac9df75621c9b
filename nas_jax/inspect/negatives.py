"""Diagnosis of the negatives of a run: what each kind of rows of the matching loss teaches.

    python -m nas_jax.inspect.negatives runs/demo/nas
    python -m nas_jax.inspect.negatives runs/demo/nas/checkpoints/500 --out diagnosis --pairs 256
    python -m nas_jax.inspect.negatives runs/demo/nas --nva similarity=gradient --out gradient

Prints a table and writes negatives.json and negatives.png, which the report of the run shows.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import jax

from nas_jax.data.config import DataConfig
from nas_jax.inspect.negatives_found import (
    NEGATIVES,
    NEGATIVES_PICTURE,
    Found,
    SceneTruth,
    as_text,
    at_moments,
    curves,
    to_json,
)
from nas_jax.inspect.negatives_measure import Model, kinds_found, scene_truth, score_pairs
from nas_jax.inspect.negatives_picture import draw_negatives
from nas_jax.inspect.run_files import read_run
from nas_jax.inspect.validation import validation_pairs
from nas_jax.methods.method import Method
from nas_jax.negatives.nva import NvaConfig
from nas_jax.parallel.mesh import make_mesh
from nas_jax.storage.files import make_folder, through_disk, write_whole
from nas_jax.storage.paths import as_path, reaching
from nas_jax.train.trained import Trained, open_trained
from nas_jax.train.workdir import writing_out
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.fields import build, validate_tree
from nas_jax.utils.logging import set_up_logging

PAIRS = 512
PUBLISHED = "nva"  # the kind that `Method.with_published_negatives` makes in another form
MOST_ROWS = 64  # pairs of a batch, where the run had more


def with_nva(method: Method, settings: Sequence[str]) -> Method:
    """The method with other fields of `method.nva`, each as "name=value".

    Raises ConfigError where there is no such field or the method has no NVA.
    """
    if not settings:
        return method
    nva = getattr(method.config, "nva", None)
    if nva is None or not method.config.dictionary.enabled:
        got = f"--nva and a run of {method.config.name} without a dictionary"
        raise ConfigError(got, "a dictionary, whose codes come in", "leave out --nva")
    fields = asdict(nva)
    for setting in settings:
        name, _, text = setting.partition("=")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    config = replace(method.config, nva=build(NvaConfig, fields, "method.nva"))
    validate_tree(config, "method")
    return replace(method, config=config)


def diagnose(
    trained: Trained,
    count: int = PAIRS,
    nva: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Found:
    """Reads a checkpoint and up to `count` validation pairs. nva: see `with_nva`.

    Raises UserError.
    """
    method = with_nva(trained.method, nva)
    data = trained.section(DataConfig, "data")
    teacher = trained.has("teacher")
    mesh = make_mesh(devices=jax.devices()[:1])
    params, state = trained.load(mesh, say, ("teacher",) if teacher else ())
    cased = trained.tokenizer.cased
    pairs = validation_pairs(data, trained.seed, count, cased)
    model = Model(method, params, state, trained.tokenizer.encode, data.text_length)
    size = min(data.batch_size, MOST_ROWS, len(pairs.captions))
    scored, made = score_pairs(model, pairs, size)

    def truth_of(made: list | None) -> SceneTruth | None:
        if not made or not pairs.scenes:
            return None
        return scene_truth(pairs, made, trained.model.patch_size)

    steps, curve = curves(read_run(trained.workdir).train, trained.step)
    kinds = [
        replace(one, history=at_moments(steps, curve.get(one.name, ())))
        for one in kinds_found(scored)
    ]
    published, published_truth = None, None
    other = method.with_published_negatives()
    if other:
        scored_other, made_other = score_pairs(replace(model, method=other), pairs, size)
        published = next(one for one in kinds_found(scored_other) if one.name == PUBLISHED)
        published = replace(published, name=f"{PUBLISHED}, published")
        published_truth = truth_of(made_other)
    return Found(
        run=str(trained.config.get("name", trained.workdir.name)),
        step=trained.step,
        pairs=len(pairs.captions) // size * size,
        batch_size=size,
        data=pairs.name,
        teacher="teacher" if teacher else "student",
        kinds=tuple(kinds),
        truth=truth_of(made),
        published=published,
        published_truth=published_truth,
        steps=steps,
        curves=curve,
    )


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    parser = Parser(
        prog="python -m nas_jax.inspect.negatives",
        description="What each kind of negative of a run teaches: a table, JSON and a picture.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="WORKDIR[/checkpoints/STEP]")
    parser.add_argument("--out", default="", metavar="DIR", help="default: the work directory")
    parser.add_argument(
        "--pairs", type=int, default=PAIRS, help=f"validation pairs read (default {PAIRS})"
    )
    parser.add_argument(
        "--nva",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another method.nva than the run was trained with, any number of times; needs --out",
    )
    args = parser.parse_args(argv)
    if args.nva and not args.out:
        raise ConfigError("--nva without --out", "another place than the run's own", "set --out")
    if args.pairs < 2:
        raise ConfigError(f"--pairs {args.pairs}", "2 or more", f"leave it out for {PAIRS}")
    with reaching(args.checkpoint):
        trained = open_trained(args.checkpoint)
        found = diagnose(trained, args.pairs, args.nva)
        folder = as_path(args.out) if args.out else trained.workdir
        with writing_out(folder):
            make_folder(folder)
            write_whole(folder / NEGATIVES, to_json(found))
            with through_disk(folder / NEGATIVES_PICTURE) as file:
                draw_negatives(file, found)
    print(as_text(found))
    print(f"written: {folder / NEGATIVES}, {folder / NEGATIVES_PICTURE}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
