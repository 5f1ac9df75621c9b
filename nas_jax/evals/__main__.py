"""Scores a checkpoint on benchmarks: the command line of nas_jax.evals.

    python -m nas_jax.evals --checkpoint runs/nas --benchmark valse --data data/valse
    python -m nas_jax.evals --checkpoint runs/nas/checkpoints/2000 --benchmark own \\
        --data data/mine --scorer itm,itc
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nas_jax.data.config import DataConfig
from nas_jax.evals import run as runs
from nas_jax.evals.config import EvalConfig, check_has_scores, check_scorers
from nas_jax.evals.detail import own_results
from nas_jax.evals.functions import ScoredModel, ScoringFunctions
from nas_jax.evals.results import Result, about_checkpoint, write
from nas_jax.evals.scorers import Scorer
from nas_jax.evals.zero_shot import PROMPTS
from nas_jax.parallel.mesh import make_mesh
from nas_jax.storage.paths import as_path, reaching
from nas_jax.train.trained import Trained, open_trained
from nas_jax.train.workdir import EVALS, check_out, writing_out
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.logging import Console, set_up_logging

_DEFAULTS = EvalConfig()
_FLAGS: dict[str, dict] = {
    "--checkpoint": {
        "required": True,
        "metavar": "WORKDIR[/checkpoints/STEP]",
        "help": "default: the newest step",
    },
    "--benchmark": {"required": True, "metavar": "NAME[,NAME]", "help": "see below"},
    "--data": {
        "default": "",
        "metavar": "DIR",
        "help": "its files; of several benchmarks, the folder with one folder each",
    },
    "--out": {
        "default": "",
        "metavar": "DIR",
        "help": "where results go (default: WORKDIR/evals/STEP-NAMES)",
    },
    "--scorer": {
        "default": "",
        "metavar": "NAME[,NAME]",
        "help": "of ALBEF and NAS: itc, itm, itm_logit, itm+itc (default: the method's)",
    },
    "--text-length": {
        "type": int,
        "default": _DEFAULTS.text_length,
        "metavar": "L",
        "help": "tokens of a text (default 64)",
    },
    "--rerank-k": {
        "type": int,
        "default": 0,
        "metavar": "K",
        "help": "retrieval: candidates ranked again (default: published)",
    },
    "--prompts": {
        "default": "photo@1",
        "help": f"classes: {', '.join(PROMPTS)} (default photo@1)",
    },
    "--image-tokens": {
        "default": _DEFAULTS.image_tokens,
        "help": "method (default; NAS: its dictionary's) or encoder",
    },
    "--store": {
        "default": _DEFAULTS.store,
        "help": "keep encoded tokens as the model gives them (default) or in bfloat16",
    },
    "--batch-size": {
        "type": int,
        "default": _DEFAULTS.batch_size,
        "help": "images or texts of a call (default 64)",
    },
    "--match-rows": {
        "type": int,
        "default": _DEFAULTS.match_rows,
        "help": "pairs of a call (default 256)",
    },
    "--fit": {
        "default": _DEFAULTS.fit,
        "help": "pictures: squash (default) or crop, the square in the middle, as CLIP's code does",
    },
    "--subtract-blind": {
        "action": "store_true",
        "help": "also the scores minus those with a blank picture",
    },
    "--max-dropped": {
        "type": float,
        "default": _DEFAULTS.max_dropped,
        "metavar": "SHARE",
        "help": "default 0.01",
    },
}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    own = {runs.OWN_SETS: "the run's own held-out foils and quads (needs no --data)"}
    width = max(map(len, runs.TABLE))
    lines = [f"  {name:<{width}}  {about}" for name, about in (own | runs.TABLE).items()]
    parser = Parser(
        prog="python -m nas_jax.evals",
        description="Scores a checkpoint on benchmarks; writes results.json, .md and .html.",
        epilog="\n".join(["benchmarks:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, options in _FLAGS.items():
        parser.add_argument(name, **options)
    return parser.parse_args(argv)


def run(argv: Sequence[str], console: Console | None = None) -> Path:
    """What the command line does; returns the folder of results. Raises UserError."""
    args = _parse(argv)
    with reaching(args.checkpoint):
        return _run(args, console or Console())


def _run(args: argparse.Namespace, console: Console) -> Path:
    names = [name for name in args.benchmark.split(",") if name]
    public = [name for name in names if name != runs.OWN_SETS]
    runs.check_names(public)
    if public and not args.data:
        raise ConfigError("no --data", f"the files of {', '.join(public)}", "pass --data DIR")
    config = _config(args)
    trained = open_trained(args.checkpoint)
    out = as_path(args.out or trained.workdir / EVALS / f"{trained.step}-{'-'.join(names)}")
    check_out(out)
    asked = tuple(name for name in args.scorer.split(",") if name)
    check_has_scores(trained.method, "a checkpoint")
    config = replace(config, scorers=check_scorers(asked, trained.method, "--scorer"))
    texts = _texts(trained)
    if public:
        runs.check_length(config.text_length, texts, "--text-length")
    scorer = _scorer(trained, config, console)
    results: list[Result] = []
    for name in names:
        if name == runs.OWN_SETS:
            results += _own(scorer, trained)
            continue
        folder = Path(args.data)
        if len(public) > 1 or (folder / name).is_dir():
            folder = folder / name
        size, ends = trained.model.image_size, trained.section(DataConfig, "data").image_range
        for loaded in runs.load(name, folder, size, config, texts, args.prompts, ends):
            results += runs.score(scorer, loaded, config, args.rerank_k)
    name = trained.config.get("name", trained.workdir.name)
    about = about_checkpoint(trained.workdir, trained.step, name, trained.method)
    with writing_out(out):
        write(out, runs.protocol(config, texts, trained.model.image_size, about), results)
    console.close()
    _show(results, out, console)
    return out


def _config(args: argparse.Namespace) -> EvalConfig:
    config = EvalConfig(
        text_length=args.text_length,
        image_tokens=args.image_tokens,
        store=args.store,
        batch_size=args.batch_size,
        match_rows=args.match_rows,
        max_dropped=args.max_dropped,
        fit=args.fit,
        subtract_blind=args.subtract_blind,
    )
    config.validate()
    return config


def _texts(trained: Trained) -> runs.Texts:
    clean = trained.config.get("data", {}).get("clean_captions", DataConfig.clean_captions)
    tokenizer = trained.tokenizer
    return runs.Texts(tokenizer, clean, trained.model.max_text_length, tokenizer.cased)


def _scorer(trained: Trained, config: EvalConfig, console: Console) -> Scorer:
    mesh = make_mesh()
    params, state = trained.load(mesh, console.say)
    functions = ScoringFunctions.of(trained.method, config.image_tokens)
    model = ScoredModel(functions, params, state, trained.tokenizer, trained.model.image_size)
    return Scorer(model, config, mesh, console)


def _own(scorer: Scorer, trained: Trained) -> list[Result]:
    """The run's own foils and quads."""
    # here: it imports grain, which benchmarks do not need
    from nas_jax.data.pipeline import open_eval_sets

    data = trained.section(DataConfig, "data")
    return [
        result
        for eval_set in open_eval_sets(data, trained.seed, trained.tokenizer.cased)
        for result in own_results(scorer.on(eval_set, text_length=data.text_length), scorer.config)
    ]


def _show(results: Sequence[Result], out: Path, console: Console) -> None:
    for row in (row for result in results for row in result.rows):
        if row.part == "all" or "/" in row.part:
            interval = f"{row.low:.1f} to {row.high:.1f}"
            number = f"{row.value:5.1f}  ({interval})  chance {row.chance:.1f}  n {row.count}"
            console.say(f"{row.key:<50} {number}")
    console.say(f"{out}/results.json, .md, .html")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
