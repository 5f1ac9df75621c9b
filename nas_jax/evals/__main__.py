"""Scores a checkpoint on benchmarks: the command line of nas_jax.evals.

python -m nas_jax.evals --checkpoint runs/nas --benchmark valse --data data/valse python -m
nas_jax.evals --checkpoint runs/nas/checkpoints/2000 --benchmark own --data data/mine --scorer
itm,itc
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.data.config import DataConfig
from nas_jax.data.tokenizer import load_tokenizer, token_tables
from nas_jax.evals import run as runs
from nas_jax.evals.config import EvalConfig, check_scorers
from nas_jax.evals.results import Result, digest, write
from nas_jax.evals.scorers import Scorer, ScoringFunctions
from nas_jax.evals.zero_shot import PROMPTS
from nas_jax.losses.mlm import SpecialTokens
from nas_jax.methods import Method, make_method
from nas_jax.methods.albef import MethodState
from nas_jax.methods.config import MethodConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.negatives.nta import WordTables
from nas_jax.parallel.mesh import make_mesh, replicated
from nas_jax.parallel.rules import with_shardings
from nas_jax.storage.paths import as_path, check_bucket, reaching
from nas_jax.train.workdir import CHECKPOINTS, CONFIG, EVALS, TOKENIZER, read_config
from nas_jax.typing import Params
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import CheckpointError, ConfigError
from nas_jax.utils.fields import build
from nas_jax.utils.logging import Console, set_up_logging


@dataclass(frozen=True)
class Trained:
    """A method with the weights of a checkpoint, and how its run prepared texts."""

    method: Method
    params: Params
    method_state: MethodState  # with the dictionary alone
    texts: runs.Texts
    image_size: int
    saved: Mapping[str, Any]  # config.json
    step: int
    info: dict[str, Any]  # for the protocol


def open_checkpoint(path: str | Path, say=print) -> Trained:
    """The model of a work directory, or of WORKDIR/checkpoints/STEP; default: the newest
    checkpoint.

    Only parameters and dictionary are read, and config and tokenizer of the work directory. Raises
    CheckpointError.
    """
    workdir, step = _parts_of(as_path(path))
    saved = read_config(workdir)
    model, method = _section(ModelConfig, saved, "model"), _section(MethodConfig, saved, "method")
    tokenizer = load_tokenizer(str(workdir / TOKENIZER))
    tables = WordTables(*token_tables(tokenizer))
    special = SpecialTokens(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    built = make_method(method, model, tables, special, 1, 1)
    mesh = make_mesh()
    abstract = jax.eval_shape(built.init, jax.random.key(0))
    params, state = with_shardings(abstract, jax.tree.map(lambda leaf: replicated(mesh), abstract))
    with CheckpointManager(workdir / CHECKPOINTS, read_only=True, say=say) as manager:
        if step is None:
            step = manager.latest_step()
        params = manager.restore_params(params, step)
        dictionary = None
        if method.dictionary.enabled:
            dictionary = manager.restore_params(state.dictionary, step, "dictionary")
    info = {
        "name": saved.get("name", workdir.name),
        "method": method.name,
        "path": f"{workdir.name}/{CHECKPOINTS}/{step}",
        "step": step,
        "digest": digest(workdir / CHECKPOINTS / str(step)),
    }
    clean = saved.get("data", {}).get("clean_captions", DataConfig.clean_captions)
    texts = runs.Texts(tokenizer, clean, model.max_text_length)
    return Trained(
        built,
        params,
        MethodState(None, None, dictionary),
        texts,
        model.image_size,
        saved,
        step,
        info,
    )


def _parts_of(path: Path) -> tuple[Path, int | None]:
    """Work directory and step of --checkpoint."""
    if path.name.isdecimal() and path.parent.name == CHECKPOINTS:
        return path.parent.parent, int(path.name)
    check_bucket(path)
    if not (path / CONFIG).is_file():
        expected = f"a work directory with {CONFIG}, or WORKDIR/{CHECKPOINTS}/STEP"
        raise CheckpointError(f"--checkpoint {path}", expected, "pass the --workdir of a run")
    return path, None


def _section(kind: type, saved: Mapping[str, Any], name: str) -> Any:
    """A config dataclass from its section of config.json; fields that the file lacks keep their
    defaults.
    """
    try:
        return build(kind, saved.get(name, {}), name)
    except ConfigError as error:
        remedy = "evaluate with the version that trained it"
        raise CheckpointError(
            f"{CONFIG} of the run: {error.got}", error.expected, remedy
        ) from error


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    width = max(map(len, runs.TABLE))
    listed = {
        runs.OWN_SETS: "the run's own held-out foils and quads (needs no --data)"
    } | runs.TABLE
    parser = Parser(
        prog="python -m nas_jax.evals",
        description="Scores a checkpoint on benchmarks; writes results.json, .md and .html.",
        epilog="benchmarks:\n"
        + "\n".join(f"  {name:<{width}}  {about}" for name, about in listed.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults, add = EvalConfig(), parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="WORKDIR[/checkpoints/STEP]",
        help="default: the newest step",
    )
    add("--benchmark", required=True, metavar="NAME[,NAME]", help="see below")
    add(
        "--data",
        default="",
        metavar="DIR",
        help="its files; of several benchmarks, the folder with one folder each",
    )
    add(
        "--out",
        default="",
        metavar="DIR",
        help="where results go (default: WORKDIR/evals/STEP-NAMES)",
    )
    add(
        "--scorer",
        default=",".join(defaults.scorers),
        metavar="NAME[,NAME]",
        help="itc, itm, itm_logit, itm+itc",
    )
    add(
        "--text-length",
        type=int,
        default=defaults.text_length,
        metavar="L",
        help="tokens of a text (default 64)",
    )
    add(
        "--rerank-k",
        type=int,
        default=0,
        metavar="K",
        help="retrieval: candidates ranked again (default: published)",
    )
    add("--prompts", default="photo@1", help=f"classes: {', '.join(PROMPTS)} (default photo@1)")
    add(
        "--image-tokens",
        default=defaults.image_tokens,
        help="method (default; NAS: its dictionary's) or encoder",
    )
    add(
        "--store",
        default=defaults.store,
        help="keep encoded tokens as the model gives them (default) or in bfloat16",
    )
    add(
        "--batch-size",
        type=int,
        default=defaults.batch_size,
        help="images or texts of a call (default 64)",
    )
    add("--match-rows", type=int, default=defaults.match_rows, help="pairs of a call (default 256)")
    add(
        "--max-dropped",
        type=float,
        default=defaults.max_dropped,
        metavar="SHARE",
        help="default 0.01",
    )
    return parser.parse_args(argv)


def run(argv: Sequence[str], console: Console | None = None) -> Path:
    """What the command line does; returns the folder of results. Raises UserError."""
    args = _parse(argv)
    with reaching(args.checkpoint):
        return _run(args, console)


def _run(args: argparse.Namespace, console: Console | None) -> Path:
    console = console or Console()
    names = [name for name in args.benchmark.split(",") if name]
    public = [name for name in names if name != runs.OWN_SETS]
    runs.check_names(public)
    if public and not args.data:
        raise ConfigError("no --data", f"the files of {', '.join(public)}", "pass --data DIR")
    scorers = tuple(name for name in args.scorer.split(",") if name)
    check_scorers(scorers, "--scorer")
    config = EvalConfig(
        scorers=scorers,
        text_length=args.text_length,
        image_tokens=args.image_tokens,
        store=args.store,
        batch_size=args.batch_size,
        match_rows=args.match_rows,
        max_dropped=args.max_dropped,
    )
    config.validate()
    trained = open_checkpoint(args.checkpoint, console.say)
    if public:
        runs.check_length(config.text_length, trained.texts, "--text-length")
    scorer = Scorer(
        ScoringFunctions.of(trained.method, config.image_tokens),
        trained.params,
        trained.method_state,
        trained.texts.tokenizer,
        config.text_length,
        config.batch_size,
        trained.image_size,
        match_rows=config.match_rows,
        mesh=make_mesh(),
        store=config.store,
        device_gib=config.device_gib,
        console=console,
    )
    results: list[Result] = []
    for name in names:
        results += _score(name, scorer, trained, config, args, alone=len(public) == 1)
    protocol = runs.protocol(config, trained.texts, trained.image_size, trained.info)
    workdir, _ = _parts_of(as_path(args.checkpoint))
    out = as_path(args.out) if args.out else workdir / EVALS / f"{trained.step}-{'-'.join(names)}"
    write(out, protocol, results)
    console.close()
    for row in (
        row for result in results for row in result.rows if row.part == "all" or "/" in row.part
    ):
        interval = f"{row.low:.1f} to {row.high:.1f}"
        console.say(
            f"{row.key:<50} {row.value:5.1f}  ({interval})  chance {row.chance:.1f}  n {row.count}"
        )
    console.say(f"{out}/results.json, .md, .html")
    return out


def _score(
    name: str,
    scorer: Scorer,
    trained: Trained,
    config: EvalConfig,
    args: argparse.Namespace,
    alone: bool,
) -> list[Result]:
    if name == runs.OWN_SETS:
        # here: it imports grain, which benchmarks do not need
        from nas_jax.data.pipeline import open_eval_sets

        data = _section(DataConfig, trained.saved, "data")
        scored = [
            scorer.on(one, text_length=data.text_length)
            for one in open_eval_sets(data, trained.saved["seed"])
        ]
        return [result for scores in scored for result in runs.own_results(scores, config)]
    root = Path(args.data)
    folder = root if alone and not (root / name).is_dir() else root / name
    loaded = runs.load(name, folder, trained.image_size, config, trained.texts, args.prompts)
    return [result for one in loaded for result in runs.score(scorer, one, config, args.rerank_k)]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    set_up_logging()
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
