"""The run's own foils that its model judges worst and best.

    python -m nas_jax.inspect.foils runs/demo/nas
    python -m nas_jax.inspect.foils runs/demo/nas/checkpoints/500 --set heldout --out foils

Writes foils.json and foils.png, which the report of the run shows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax

from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.functions import ScoredModel, ScoringFunctions
from nas_jax.evals.scorers import Scorer
from nas_jax.inspect.foils_measure import (
    CLOSE,
    SURE,
    WRONG,
    check_matching,
    chosen_set,
    headline,
    numbers,
    score_foils,
    sorted_out,
)
from nas_jax.inspect.foils_picture import draw_foils
from nas_jax.inspect.picture_files import keep, parser, run_name
from nas_jax.inspect.picture_names import FOILS
from nas_jax.parallel.mesh import make_mesh
from nas_jax.storage.paths import reaching
from nas_jax.train.trained import Trained, open_trained
from nas_jax.utils.commands import exit_code
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.logging import Console, set_up_logging


def make_scorer(trained: Trained) -> Scorer:
    """As the run's evaluations are configured, on one device."""
    config = trained.section(EvalConfig, "eval")
    mesh, console = make_mesh(devices=jax.devices()[:1]), Console()
    functions = ScoringFunctions.of(trained.method, config.image_tokens)
    arrays = trained.load(mesh, console.say)
    model = ScoredModel(functions, *arrays, trained.tokenizer, trained.model.image_size)
    return Scorer(model, config, mesh, console)


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    # here: it imports grain, which pictures and reports do not need
    from nas_jax.data.pipeline import open_eval_sets

    flags = parser(FOILS, "The run's own foils that its model judges worst and best.")
    flags.add_argument("--set", default="", metavar="NAME", help="default: the first with foils")
    flags.add_argument("--each", type=int, default=WRONG, metavar="N",
                       help=f"at most, of a kind (default: {WRONG}, {CLOSE}, {SURE})")  # fmt: skip
    args = flags.parse_args(argv)
    if args.each < 1:
        raise ConfigError(f"--each {args.each}", "1 or more", "2 makes a small picture")
    with reaching(args.checkpoint):
        trained = open_trained(args.checkpoint)
        check_matching(trained.method)
        data = trained.section(DataConfig, "data")
        sets = open_eval_sets(data, trained.seed, trained.tokenizer.cased)
        chosen = chosen_set(sets, args.set)
        scorer = make_scorer(trained)
        items = score_foils(scorer, chosen, data.text_length, scorer.config.max_pairs)
        scorer.console.close()
        found = sorted_out(items, run_name(trained), chosen.name, args.each)
        folder = args.out or trained.workdir
        line = keep(
            FOILS, folder, numbers(found), lambda path: draw_foils(path, found, chosen.images)
        )
    print(f"{found.run}: {headline(found)}\n{line}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
