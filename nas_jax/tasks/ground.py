"""Which of some boxes a text names, by Grad-CAM of the matching score of a trained run.

    python -m nas_jax.tasks.ground runs/demo/nas
    python -m nas_jax.tasks.ground RUN --data refcoco+_val.json --image_root COCO --layer 2

Without --data the texts name shapes of drawn scenes. Writes results.json, .md and .html.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import SCENES
from nas_jax.evals import results as evaluation_results
from nas_jax.evals.config import EvalConfig
from nas_jax.evals.metrics import format_table
from nas_jax.evals.results import Result
from nas_jax.evals.run import Texts, protocol
from nas_jax.methods.match_map import MIDDLE, check_fusion, fusion_layer
from nas_jax.parallel.mesh import make_mesh
from nas_jax.storage.paths import as_path, reaching
from nas_jax.tasks.evaluation import make_task_evaluator
from nas_jax.tasks.grounding import GroundingTask
from nas_jax.tasks.task import Asker
from nas_jax.train.trained import open_trained
from nas_jax.train.workdir import EVALS, check_out, writing_out
from nas_jax.utils.commands import exit_code
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.logging import Console, set_up_logging


def run(argv: Sequence[str]) -> None:
    """What the command line does. Raises UserError."""
    flags = argparse.ArgumentParser("nas_jax.tasks.ground", description=__doc__.split("\n\n")[0])
    flags.add_argument("checkpoint", help="work directory, or WORKDIR/checkpoints/STEP")
    flags.add_argument("--data", nargs="+", action="extend", default=[],
                       help="lists (default: scenes)")  # fmt: skip
    flags.add_argument("--image_root", default="", help="folder of the pictures")
    flags.add_argument(
        "--layer", type=int, default=MIDDLE, help="fusion layer (default: the middle)"
    )
    flags.add_argument("--out", default="", help="folder of results.json (default: in the run)")
    args = flags.parse_args(argv)
    with reaching(args.checkpoint):
        trained = open_trained(args.checkpoint)
        folder = check_out(as_path(args.out or trained.workdir / EVALS / "grounding"))
        method, task, mesh = trained.method, GroundingTask(args.layer), make_mesh()
        check_fusion(method)
        layer = fusion_layer(method, args.layer)
        data = _test_data(trained.section(DataConfig, "data"), args)
        tests = task.tests(data, trained.seed)
        results: list[Result] = []
        asker = Asker(method, trained.tokenizer, data)
        evaluate = make_task_evaluator(
            task,
            asker,
            tests,
            EvalConfig(),
            mesh,
            lambda *got: results.extend(got[1]),
            Console(),
        )
        rows = evaluate(*trained.load(mesh), trained.step)
        about = evaluation_results.about_checkpoint(
            trained.workdir, trained.step, trained.config.get("name", trained.workdir.name), method
        )
        texts = Texts(trained.tokenizer, data.clean_captions, trained.model.max_text_length)
        rules = protocol(EvalConfig(), texts, data.image_size, about) | {"fusion_layer": layer}
        rules["text_length"] = data.text_length
        with writing_out(folder):
            evaluation_results.write(folder, rules, results)
    print(format_table(rows))
    print(f"results: {folder}")


def _test_data(data: DataConfig, args: argparse.Namespace) -> DataConfig:
    """The data section of the run, with the tests that are asked for."""
    if args.data in ([], [SCENES]):
        return replace(data, train=(SCENES,), val=())
    if SCENES in args.data:
        raise ConfigError("--data with scenes and files", "one of the two", "leave out scenes")
    return replace(data, val=tuple(args.data), image_root=args.image_root)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
