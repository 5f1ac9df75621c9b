"""What a training step of each method costs at its base size, beside ALBEF's.

    python -m benchmarks.methods                    counts, of all methods: minutes each
    python -m benchmarks.methods albef tcl          of these
    python -m benchmarks.methods albef --compile    memory and predicted time on TPUs too
    python -m benchmarks.methods --page             the page from what is recorded; seconds

The methods are those of `METHODS`. The base size of one is what a file in configs/ gives with the
arguments `size=base`, `method=NAME,size=base` or `variant=NAME`; a file of the method's own name
comes first. Each method leaves a record in DIR/methods/NAME.json, and the page DIR/methods.md is
written from the records after each. What has a record of today's config is not computed again.

Operations and bytes are counted as by `python -m benchmarks.step --count-only`: in the step of the
largest stage, compiled for this machine in float32 with PAIRS pairs, whatever the batch of the
recipe, and with texts as long as its `data.text_length`. Memory and time are predictions of
--mode=compile for chips that need not be there (needs libtpu): a whole base model takes an hour to
compile, so two shallow ones are, and what the page shows lies on the line through both
(benchmarks/extrapolate.py). The predicted time has no collectives in it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.checkout import ROOT, commit
from benchmarks.extrapolate import FIGURES, LAYERS, extrapolate
from benchmarks.step import costs_of, counts_of, rounded
from benchmarks.study.plan import BASELINE, decisive, run_config, same
from benchmarks.study.records import processor
from nas_jax.config import RunConfig, from_config_dict, mesh_of, to_dict, validate
from nas_jax.methods import METHODS
from nas_jax.models.sizes import model_config
from nas_jax.parallel.mesh import MeshConfig
from nas_jax.parallel.topology import topology_devices
from nas_jax.rehearsal.compiled import abstract_step, largest, rehearse, traced_stages
from nas_jax.storage.files import write_whole
from nas_jax.utils.commands import Parser, exit_code
from nas_jax.utils.errors import ConfigError, DataError, UserError
from nas_jax.utils.tables import markdown
from nas_jax.utils.trees import num_params

FORMAT = 1
PAIRS = 32  # of the counted step, and of each chip
TOPOLOGY = "v5e:16x16"
PARTS = 6  # that the layers of a base model are cut into; the shallow ones have one and two of them
GIB = 2**30
# Machine code that is never run need not be fast; the counted program is the same.
HASTY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

Record = dict[str, Any]  # what is known of a method, as its file has it


# ---------------------------------------------------------------------------------- configs


def base_configs(folder: Path = ROOT / "configs") -> dict[str, str]:
    """Method -> the config of its base size, "configs/FILE.py:ARGUMENTS"."""
    least, found = model_config("base").dim, {}
    for path in sorted(folder.glob("*.py")):
        recipe = runpy.run_path(str(path))["get_config"]
        for argument in _arguments():
            try:
                run = from_config_dict(recipe(argument))
            except ConfigError:  # the file does not take it
                continue
            name = run.method.name
            if run.model.dim >= least and (name not in found or path.stem == name):
                found[name] = f"{folder.name}/{path.name}:{argument}"
    return {name: found[name] for name in METHODS if name in found}


def _arguments() -> Iterator[str]:
    """The last that gives a method counts where a file of its name takes several."""
    yield from (f"variant={name}" for name in METHODS)
    yield from (f"method={name},size=base" for name in METHODS)
    yield "size=base"


# ---------------------------------------------------------------------------------- figures


def count(run: RunConfig, pairs: int = PAIRS) -> dict[str, Any]:
    """Parameters, operations and bytes of a step of `pairs` pairs on one device, in float32."""
    run = replace(
        run,
        data=replace(run.data, batch_size=pairs),
        model=replace(run.model, dtype="float32", remat="none", scan_layers=False),
        train=replace(run.train, accumulate=1),
        mesh=MeshConfig(data=1),
    )
    validate(run)
    platform, mesh = jax.devices()[0].platform, mesh_of(run, jax.devices()[:1])
    abstract = abstract_step(run, mesh)
    stage, traced = largest(traced_stages(abstract, run.train, mesh))
    with jax.set_mesh(mesh):
        lowered = traced.lower()
    compiled = lowered.compile(compiler_options=HASTY if platform == "cpu" else None)
    counts = counts_of(traced, lowered, compiled, pairs)
    return {
        "pairs": pairs,
        "image_size": run.model.image_size,
        "patch_size": run.model.patch_size,
        "text_length": run.data.text_length,
        "stage": "" if stage is None else str(stage),
        "params_M": num_params(abstract.state.params) / 1e6,
        "gflop_per_pair": counts.chosen(platform, loops=False),
        "gflop_per_pair_matmuls": counts.matmuls,
        "mb_per_pair": costs_of(compiled).get("bytes accessed", 0.0) / pairs / 1e6,
        **made_now(),
    }


def shallow(run: RunConfig, parts: int) -> RunConfig:
    """The run with `parts` of PARTS of its layers.

    Raises ConfigError where they cannot be cut so.
    """
    layers = {name: getattr(run.model, name) for name in LAYERS}
    if any(number % PARTS for number in layers.values()):
        listed = ", ".join(f"model.{name}={number}" for name, number in layers.items())
        raise ConfigError(listed, f"multiples of {PARTS}", "compile it with main.py --mode=compile")
    cut = {name: number // PARTS * parts for name, number in layers.items()}
    return replace(run, model=replace(run.model, **cut))


def shallow_pair(run: RunConfig) -> tuple[RunConfig, RunConfig]:
    """The two shallowest forms of a run that its method can have: some read a layer in the middle.

    Raises ConfigError where there are none.
    """
    for parts in range(1, PARTS - 1):
        first = replace(shallow(run, parts), mesh=MeshConfig(data=1))
        try:
            abstract_step(first, mesh_of(first, jax.devices()[:1]))
        except ConfigError:
            continue
        return shallow(run, parts), shallow(run, parts + 1)
    raise ConfigError(f"{run.name} with {PARTS - 2} of {PARTS} parts of its layers", "a model",
                      "compile it with main.py --mode=compile")  # fmt: skip


def on_chips(run: RunConfig, topology: str) -> RunConfig:
    """The run with PAIRS pairs a chip. Hard negatives, where there are any, are drawn on each."""
    chips = len(topology_devices(topology)[0])
    method = run.method
    itm = getattr(method, "itm", None)
    if hasattr(itm, "mining_shards"):
        method = replace(method, itm=replace(itm, mining_shards=chips))
    run = replace(run, data=replace(run.data, batch_size=PAIRS * chips), method=method)
    validate(run)
    return run


def compiled_for(run: RunConfig, topology: str) -> dict[str, Any]:
    """What the compiler says of one shallow model. Raises DataError where it does not fit."""
    result = rehearse(run, topology)
    if result.program is None:
        got = f"{run.name} needs {result.peak_bytes / GIB:.1f} GiB"
        expected = f"{result.capacity_bytes / GIB:.1f} GiB a chip of {topology}"
        raise DataError(got, expected, "name a larger --topology")
    layers = {name: getattr(run.model, name) for name in LAYERS}
    return result.summary() | made_now() | {"config": {"model": layers}}


def made_now() -> dict[str, str]:
    """Where, when and of which code a figure is."""
    packages = {name: _version(name) for name in ("jax", "libtpu")}
    return {
        "hardware": f"{jax.devices()[0].platform.upper()}, {processor()}",
        "date": datetime.date.today().isoformat(),
        "code": commit(),
        "versions": ", ".join(f"{name} {number}" for name, number in packages.items() if number),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# ---------------------------------------------------------------------------------- records


def new_record(name: str, config: str, run: RunConfig) -> Record:
    """A method of which nothing is known yet."""
    fields = decisive(to_dict(run))
    return {"format": FORMAT, "method": name, "config": config, "fields": fields, "programs": {}}


def read_record(folder: Path, name: str, config: str, run: RunConfig) -> Record:
    """What the folder knows of a method; nothing where its config was another then.

    Raises DataError on a file that is no record.
    """
    path, empty = folder / f"{name}.json", new_record(name, config, run)
    if not path.exists():
        return empty
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise ValueError("another format")
        current = found["method"] == name and same(found["fields"], empty["fields"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{path}: {error!r}"
        raise DataError(got, "a record of this command", "delete it") from error
    return found | {"config": config} if current else empty


def write_record(folder: Path, record: Record) -> None:
    """NAME.json, whole or not at all. Figures are rounded, fields of the config are not."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(record) | {"fields": record["fields"]}, indent=1)
    write_whole(folder / f"{record['method']}.json", text + "\n")


def counted(record: Record) -> Mapping[str, Any] | None:
    """The counts of a record, if it has them for as many pairs as today."""
    found = record.get("counts")
    return found if found and found["pairs"] == PAIRS else None


def predicted(record: Record, topology: str) -> dict[str, Any] | None:
    """The figures of the whole model on chips, on the line through the two shallow ones, and
    `rest_seconds`, on the same line at no layers.
    """
    start = f"{topology}, {PAIRS} pairs a chip, "
    programs = [one for key, one in record["programs"].items() if key.startswith(start)]
    if len(programs) != 2:
        return None
    layers = tuple(record["fields"]["model"][name] for name in LAYERS)
    whole, rest = extrapolate(*programs, layers), extrapolate(*programs, (0,) * len(layers))
    found = {name: whole[name] for name in (*FIGURES, "devices", "capacity_bytes")}
    return found | {"rest_seconds": rest["predicted_seconds"]}


def program_name(run: RunConfig, topology: str) -> str:
    """E.g. "v5e:16x16, 32 pairs a chip, 2 + 1 + 1 layers": image, text, fusion."""
    layers = " + ".join(str(getattr(run.model, name)) for name in LAYERS)
    return f"{topology}, {PAIRS} pairs a chip, {layers} layers"


# ---------------------------------------------------------------------------------- page


def page_text(records: Sequence[Record], missing: Sequence[str], topology: str = TOPOLOGY) -> str:
    """The page, by operations a pair; the same records give the same text.

    missing: methods without a config of base size, or without a record.
    """
    known = sorted(
        (one for one in records if counted(one)),
        key=lambda one: (counted(one)["gflop_per_pair"], one["method"]),
    )
    base = next((one for one in known if one["method"] == BASELINE), None)
    lines = [
        "# What each method costs",
        "",
        "    python -m benchmarks.methods --compile",
        "",
        "One training step of each [method](../methods.md) at its base size: forward, backward, "
        "AdamW, teacher and queue where there are any, in the stage with most operations. Pictures "
        "and texts are as large as the method's recipe has them, so that a method of two encoders "
        "may cost less for its smaller pictures alone.",
        "",
        f"GFLOP and MB a pair are counted in the program for {PAIRS} pairs that is compiled for "
        "this machine in float32 (`python -m benchmarks.step --count-only`); MB are what its "
        "operations read and write, as fused there, so compare them with each other only.",
        "",
    ]
    head = ("method", "M parameters", "picture, patch, tokens", "GFLOP a pair", "times ALBEF",
            "MB a pair", "times ALBEF", "recipe")  # fmt: skip
    lines += markdown(head, [_count_row(one, base) for one in known])
    lines += _predictions(known, base, topology)
    if missing:
        lines += [f"Not counted: {', '.join(f'`{name}`' for name in missing)}.", ""]
    return "\n".join([*lines, *_made(known)]).rstrip() + "\n"


def _count_row(record: Record, base: Record | None) -> tuple[str, ...]:
    one, other = counted(record), base and counted(base)
    return (
        f"`{record['method']}`",
        f"{one['params_M']:.1f}",
        f"{one['image_size']}, {one['patch_size']}, {one['text_length']}",
        f"{one['gflop_per_pair']:.1f}",
        _ratio(one, other, "gflop_per_pair"),
        f"{one['mb_per_pair']:,.0f}",
        _ratio(one, other, "mb_per_pair"),
        f"`{record['config']}`",
    )


def _predictions(known: Sequence[Record], base: Record | None, topology: str) -> list[str]:
    found = {one["method"]: predicted(one, topology) for one in known}
    found = {name: figures for name, figures in found.items() if figures}
    if not found:
        return []
    other = found.get(BASELINE)
    first = next(iter(found.values()))
    head = ("method", "predicted ms a step", "times ALBEF", "not in layers", "arguments",
            "temporaries", f"both, of {first['capacity_bytes'] / GIB:.0f} GiB")  # fmt: skip
    rows = []
    for name, one in found.items():
        memory = [one[f"{part}_bytes"] / GIB for part in ("arguments", "temporaries")]
        rows.append(
            (
                f"`{name}`",
                f"{1e3 * one['predicted_seconds']:.1f}",
                _ratio(one, other, "predicted_seconds"),
                f"{1e3 * one['rest_seconds']:.1f} ms",
                *(f"{size:.2f} GiB" for size in memory),
                f"{sum(memory):.2f} GiB",
            )
        )
    text = (
        f"**Predicted** for {topology} ({first['devices']} chips), {PAIRS} pairs a chip, in the "
        "precision of the recipe, nothing recomputed unless it says so: the compiler's cycle "
        "estimates and memory of two shallow models, extrapolated to all layers; without the time "
        "of collectives ([scaling](../scaling.md)). No TPU was used. *Not in layers*: embeddings, "
        "heads, losses and AdamW's part of them. It is much where the loss compares tokens of all "
        f"pairs of the batch ({PAIRS * first['devices']:,} here; the count above has {PAIRS}, and "
        "hardly shows it)."
    )
    return [text, "", *markdown(head, rows)]


def _ratio(one: Mapping[str, Any], other: Mapping[str, Any] | None, name: str) -> str:
    return f"{one[name] / other[name]:.2f}" if other and other[name] else "-"


def _made(known: Sequence[Record]) -> list[str]:
    """Where, when and of which code the figures are."""
    made = [counted(one) for one in known]
    made += [program for one in known for program in one["programs"].values()]
    names = ("hardware", "date", "code", "versions")
    texts = {name: ", ".join(sorted({one[name] for one in made})) for name in names}
    texts["versions"] = ", ".join(sorted({x for one in made for x in one["versions"].split(", ")}))
    return [
        f"{texts['date']}; counted and compiled on: {texts['hardware']}; {texts['versions']}; code "
        f"{texts['code']}. The record of each method, with its config, is beside this page."
    ] * bool(made)


# ---------------------------------------------------------------------------------- command


class Table:
    """The records of some methods, and the page of all."""

    def __init__(self, out: Path, topology: str, again: bool):
        """again: figures are computed anew where they are known."""
        self.out, self.folder, self.topology, self.again = out, out / "methods", topology, again
        self.configs = base_configs()
        self.runs = {name: run_config(config) for name, config in self.configs.items()}

    def record(self, name: str) -> Record:
        """What is known of a method today."""
        return read_record(self.folder, name, self.configs[name], self.runs[name])

    def count(self, name: str) -> None:
        """Counts a method, unless its counts are known."""
        record = self.record(name)
        if counted(record) and not self.again:
            say(f"{name}: counted before")
            return
        say(f"{name}: compiling {self.configs[name]} for this machine")
        counts = record["counts"] = count(self.runs[name])
        self._keep(record)
        say(
            f"{name}: {counts['params_M']:.1f} M parameters, {counts['gflop_per_pair']:.1f} GFLOP "
            "a pair"
        )

    def compile(self, name: str) -> None:
        """Compiles the two shallow models of a method, unless they are known."""
        run = self.runs[name]
        for part in shallow_pair(run):
            record, key = self.record(name), program_name(part, self.topology)
            if key in record["programs"] and not self.again:
                say(f"{name}: {key} compiled before")
                continue
            say(f"{name}: compiling {key}: minutes")
            found = compiled_for(on_chips(part, self.topology), self.topology)
            record["programs"][key] = found
            self._keep(record)
            seconds = found["compile_seconds"]
            say(f"{name}: {key} compiled in {seconds:.0f} s")

    def write(self) -> Path:
        """The page, of all methods with a record of today's config."""
        records = [self.record(name) for name in self.configs]
        known = [one for one in records if counted(one)]
        missing = [name for name in METHODS if name not in {one["method"] for one in known}]
        page = self.out / "methods.md"
        write_whole(page, page_text(known, missing, self.topology))
        return page

    def _keep(self, record: Record) -> None:
        write_record(self.folder, record)
        self.write()


def run(argv: Sequence[str]) -> int:
    """What the command line does; 1 where a method failed. Raises UserError."""
    parser = Parser(
        prog="python -m benchmarks.methods", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="methods; default: all")
    add("--compile", action="store_true", help="memory and predicted time on chips too")
    add("--topology", default=TOPOLOGY, help=f"of --compile and of the page (default {TOPOLOGY})")
    add("--again", action="store_true", help="also what is recorded")
    add("--page", action="store_true", help="write the page from the records, compute nothing")
    add("--out", default="docs/results", metavar="DIR", help="of page and records (docs/results)")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in METHODS:
            raise ConfigError(f"{name!r}", f"some of {', '.join(METHODS)}", "name one of them")
    if args.compile:
        topology_devices(args.topology)  # without libtpu nothing begins; before JAX looks for chips
    table, failed = Table(Path(args.out), args.topology, args.again), []
    steps = [] if args.page else [table.count, *[table.compile] * args.compile]
    for step in steps:
        for name in args.names or METHODS:
            if name not in table.configs:
                say(f"{name}: no file in configs/ gives its base size")
                failed += [name] * bool(args.names)
                continue
            try:
                step(name)
            except UserError as error:
                failed.append(name)
                say(f"{name}: failed: {error}")
            except Exception as error:  # of one method; the others go on
                failed.append(name)
                say(f"{name}: failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            jax.clear_caches()
    say(f"page: {table.write()}")
    if failed:
        say(f"failed: {', '.join(dict.fromkeys(failed))}")
    return int(bool(failed))


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv, "interrupted: the same command goes on from the last record")


if __name__ == "__main__":
    sys.exit(main())
