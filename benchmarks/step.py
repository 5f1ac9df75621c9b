"""How fast one training step is, what it computes and what memory it needs.

    python -m benchmarks.step --preset tiny --threads 1      one CPU thread, to compare with others
    python -m benchmarks.step --preset base --dtype bfloat16 --batch 256 --steps 20
    python -m benchmarks.step --preset base --count-only     compiles and counts, runs nothing
    python -m benchmarks.step --preset tiny --batch-file F.npz      a real batch: image
            (B, 3, H, W), normalised float32; input_ids and attention_mask (B, L)

F.npz holds image (B, 3, H, W), normalised float32, and input_ids and attention_mask (B, L). Prints
one line of JSON; progress goes to stderr. The step is that of a training run with every stage on:
forward, backward, AdamW, teacher, queue, on the first device and from random weights. NAS runs with
its dictionary and NVA; the dictionary stands still unless --update-dictionary, as in the authors'
stage with NVA. Every step gets the same batch.

Words of the result: `gflop_per_pair` is counted in the compiled program. On GPUs, where that count
leaves out the libraries' matmuls, and with --scan-layers, it is that of the matmuls in the traced
step. `matmul_share` is the speed of the step, in those operations, over that of one dense matmul of
the same dtype in this process, which runs after each step for as long: `min` is the fastest step
over the fastest of these matmuls, `median` that of all steps, each over the matmuls before and
after it, which a clock that comes and goes disturbs less. `peak_share` is the fastest step's over
the published peak of the chip (dense bfloat16). `gflop_equivalent_per_pair` is what such a matmul
computes in the time of one pair. The reference is the NAS authors' PyTorch step on one CPU thread,
whose texts are always padded to 25: its operations a pair over its own matmul share. On CPUs all
but `pairs_per_second` is from the CPU time of the process, which other programs disturb less.
Imports jax, flax, optax and numpy only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

from benchmarks.step_batch import (
    cut_probability,
    enough_masked,
    random_batch,
    read_batch,
    trimmed,
    vocabulary,
)
from benchmarks.timing import Timing, dense_matmul, limit_threads, measure, peak_memory
from nas_jax.kernels import KERNELS, plain_only
from nas_jax.methods import make_method
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig, MlmConfig, NasMlmConfig
from nas_jax.methods.method import Method, Setting
from nas_jax.methods.nas import NasConfig, Stage
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.models.sizes import DTYPES, IMPLEMENTATIONS, POLICIES, ModelConfig, model_config
from nas_jax.negatives.nta import NtaConfig
from nas_jax.parallel.mesh import MeshConfig, make_mesh, put_batch
from nas_jax.parallel.rules import state_shardings
from nas_jax.train.machine import matmul_flops, peak_flops
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.state import TrainState, init_state
from nas_jax.train.step import make_train_step, sharded_step
from nas_jax.typing import HostBatch
from nas_jax.utils.errors import ConfigError, UserError
from nas_jax.utils.fields import validate_tree
from nas_jax.utils.memory import cpu_only, keep_freed_memory
from nas_jax.utils.trees import num_params


@dataclass(frozen=True)
class Preset:
    """A size, and what the reference needs for it."""

    size: str  # row of models/sizes.py
    batch: int
    vocab_size: int
    queue_size: int
    reference_gflop: float  # a pair
    reference_share: float  # of its own dense matmul speed

    @property
    def reference_equivalent(self) -> float:
        """GFLOP that a dense matmul computes while the reference computes one pair."""
        return self.reference_gflop / self.reference_share


PRESETS = {
    "tinybody": Preset("tiny", 16, 2048, 1024, 2.10, 0.63),
    "tiny": Preset("tiny", 16, 30522, 65536, 3.46, 0.445),
    "small": Preset("small", 16, 30522, 65536, 17.9, 0.68),
    "base": Preset("base", 4, 30522, 65536, 311.8, 0.84),
}
REFERENCE_LENGTH = 25
CODES = 2048
# of a step's, for the dense matmul after it: the fastest of both are then of windows alike
MATMUL_TIME = 1.0
EPOCHS, STEPS_PER_EPOCH = 30, 1000  # of the schedule; any


class Counts(NamedTuple):
    """GFLOP of a pair, counted in three places."""

    compiled: float
    lowered: float
    matmuls: float

    def chosen(self, platform: str, loops: bool) -> float:
        """The one that leaves nothing large out: not libraries' matmuls on GPUs, nor all but one
        pass of a loop.
        """
        return self.matmuls if platform == "gpu" or loops else self.compiled


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


class Built(NamedTuple):
    """All that a run of the step needs."""

    method: Method
    init: Callable[[], TrainState]
    step: Any  # jitted
    stage: Hashable
    batch: HostBatch
    mesh: jax.sharding.Mesh
    shardings: Any


def build(options: argparse.Namespace) -> Built:
    """Method, step and batch as the options say.

    Raises UserError on options that contradict each other.
    """
    preset, nas = PRESETS[options.preset], options.method == "nas"
    if options.nta and not nas:
        raise ConfigError("--nta with --method=albef", "--method=nas", "leave out one of the two")
    model = model_config(
        preset.size,
        vocab_size=preset.vocab_size,
        dtype=options.dtype,
        remat=options.remat,
        scan_layers=options.scan_layers,
        cls_apart=options.cls_apart,
        attention=options.attention,
    )
    model.validate()
    batch = make_batch(options, model)
    config = make_config(options, batch)
    validate_tree(config, "method")
    setting = Setting(vocabulary(model.vocab_size), EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
    method = make_method(config, model, setting)
    optimizer, schedule = make_optimizer(
        OptimizerConfig(), EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH
    )
    mesh = make_mesh(MeshConfig(data=1))
    init = partial(init_state, method, optimizer, 0)
    shardings = state_shardings(jax.eval_shape(init), mesh)
    step = sharded_step(make_train_step(method, optimizer, schedule), mesh, shardings).jitted
    stage = method.stage(0)
    if nas:
        stage = Stage(nva=True, nta=options.nta, dictionary_frozen=not options.update_dictionary)
    return Built(method, init, step, stage, batch, mesh, shardings)


def make_batch(options: argparse.Namespace, model: ModelConfig) -> HostBatch:
    """The batch that the options ask for. Raises ConfigError where it does not fit the queue."""
    preset, vocab = PRESETS[options.preset], model.vocab_size
    if options.batch_file:
        trim = not options.plain
        batch = read_batch(options.batch_file, model.image_size, vocab, options.length, trim)
        if options.batch not in (None, len(batch["image_id_B"])):
            raise ConfigError(
                f"--batch={options.batch} with a file of {len(batch['image_id_B'])} pairs",
                "the same",
                "leave it out",
            )
    else:
        size, length = options.batch or preset.batch, options.length or REFERENCE_LENGTH
        batch = random_batch(size, length, model.image_size, vocab)
        if options.length is None and not options.plain:
            batch = trimmed(batch)
    size = len(batch["image_id_B"])
    if size < 2 or preset.queue_size % size:
        raise ConfigError(
            f"a batch of {size}",
            f"at least 2, and a divisor of the queue's {preset.queue_size}",
            "take another",
        )
    return batch


def make_config(options: argparse.Namespace, batch: HostBatch) -> AlbefConfig:
    """ALBEF, or NAS with dictionary and NVA; of the masked positions, as few as are enough."""
    max_masked = 0 if options.plain else enough_masked(batch, MlmConfig().probability)
    itc = ItcConfig(queue_size=PRESETS[options.preset].queue_size)
    if options.method == "albef":
        return AlbefConfig(itc=itc, mlm=MlmConfig(max_masked=max_masked))
    return NasConfig(
        itc=itc,
        mlm=NasMlmConfig(max_masked=max_masked),
        dictionary=DictionaryConfig(codes=CODES),
        nta=NtaConfig(enabled=options.nta),
    )


def compile_step(built: Built, plain: Collection[str] = ()) -> tuple[Any, Counts, dict[str, float]]:
    """The compiled step, its operations a pair, and the seconds that tracing and compiling took.

    plain: kernels in whose place their plain twins are.
    """
    size, cpu, wall = len(built.batch["image_id_B"]), time.process_time(), time.perf_counter()
    with jax.set_mesh(built.mesh), plain_only(*plain) if plain else nullcontext():
        traced = built.step.trace(
            jax.eval_shape(built.init), put_batch(built.batch, built.mesh), built.stage
        )
        lowered = traced.lower()
        compiled = lowered.compile()
    seconds = {
        "compile_seconds": time.perf_counter() - wall,
        "compile_cpu_seconds": time.process_time() - cpu,
    }
    return compiled, counts_of(traced, lowered, compiled, size), seconds


def counts_of(traced: Any, lowered: Any, compiled: Any, pairs: int) -> Counts:
    """The operations of a step of so many pairs, in each of its forms."""
    counted = _flops(compiled), _flops(lowered), matmul_flops(traced.jaxpr.jaxpr)
    return Counts(*(flops / pairs / 1e9 for flops in counted))


def twins(options: argparse.Namespace) -> Collection[str]:
    """The kernels that run their plain twins."""
    return KERNELS if options.plain else tuple(filter(None, options.twins.split(",")))


def costs_of(program: Any) -> dict[str, float]:
    """What the compiler counts in a program, e.g. "flops" and "bytes accessed"."""
    costs = program.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return costs or {}


def _flops(program: Any) -> float:
    return costs_of(program).get("flops", 0.0)


# ----------------------------------------------------------------------------------------- the run


class Run(NamedTuple):
    """What was seen while the steps ran."""

    timing: Timing
    rates: list[float]  # of the dense matmul, GFLOP a second: before the first step and after each
    loss: float  # of the first step, which is not timed
    memory: dict[str, Any]


def time_steps(built: Built, compiled: Any, steps: int, matmul: Callable[[float], float]) -> Run:
    """Some steps after a first one, and the matmul between them.

    The state is overwritten by each.
    """
    with jax.set_mesh(built.mesh):
        state = jax.jit(built.init, out_shardings=built.shardings)()
        batch = put_batch(built.batch, built.mesh)
        state, metrics = compiled(state, batch)
        loss, used = float(metrics["loss"]), peak_memory()

        def run() -> Any:
            nonlocal state
            state, metrics = compiled(state, batch)
            return state, metrics

        timing, rates = Timing([], [], []), [matmul(0)]
        for _ in range(steps):
            for values, value in zip(timing, measure(run, 1), strict=True):
                values += value
            rates.append(matmul(timing.wall[-1] * MATMUL_TIME))
        return Run(timing, rates, loss, used)


# ------------------------------------------------------------------------------------------- result


def describe(options: argparse.Namespace, built: Built) -> dict[str, Any]:
    """What is measured."""
    config, device = built.method.config, jax.devices()[0]
    return {
        "preset": options.preset,
        "method": options.method,
        "nta": options.nta,
        "plain": options.plain,
        "twins": options.twins,
        "batch": len(built.batch["image_id_B"]),
        "batch_file": options.batch_file.name if options.batch_file else None,
        "length": built.batch["token_ids_BxL"].shape[1],
        "real_tokens": float(built.batch["token_mask_BxL"].sum(-1).mean()),
        "dtype": options.dtype,
        "remat": options.remat,
        "scan_layers": options.scan_layers,
        "cls_apart": options.cls_apart,
        "attention": options.attention,
        "dictionary_frozen": options.method == "nas" and not options.update_dictionary,
        "max_masked": config.mlm.max_masked,
        "cut_probability": cut_probability(
            built.batch,
            config.mlm.probability,
            config.mlm.max_masked or built.batch["token_ids_BxL"].shape[1],
        ),
        "params_M": num_params(jax.eval_shape(built.init).params) / 1e6,
        "device": device.device_kind,
        "platform": device.platform,
        "threads": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "jax": jax.__version__,
    }


def speeds(known: dict[str, Any], timing: Timing, rates: list[float]) -> dict[str, Any]:
    """Speed of the step. rates: GFLOP a second of a matmul, before and after each step."""
    on_cpu, batch = known["platform"] == "cpu", known["batch"]
    times = [seconds / batch for seconds in (timing.cpu if on_cpu else timing.wall)]
    peak, preset = peak_flops(known["device"]), PRESETS[known["preset"]]
    alike = (
        on_cpu and known["method"] == "nas" and not known["nta"] and known["dtype"] == "float32"
        and known["length"] <= REFERENCE_LENGTH
    )  # fmt: skip
    around = [(before + after) / 2 for before, after in zip(rates, rates[1:], strict=False)]
    equivalent = {
        "min": min(times) * max(rates),
        "median": median(seconds * rate for seconds, rate in zip(times, around, strict=True)),
    }
    return {
        "cpu_seconds": {"min": min(timing.cpu), "median": median(timing.cpu)},
        "wall_seconds": {"min": min(timing.wall), "median": median(timing.wall)},
        "pairs_per_second": batch / min(timing.wall),
        "matmul_gflops": {"max": max(rates), "median": median(rates)},
        "peak_share": known["gflop_per_pair"] * 1e9 / min(times) / peak if peak else None,
        "gflop_equivalent_per_pair": equivalent,
        "matmul_share": {
            name: known["gflop_per_pair"] / value for name, value in equivalent.items()
        },
        "reference_equivalent": preset.reference_equivalent,
        "times_reference": {
            name: preset.reference_equivalent / value for name, value in equivalent.items()
        }
        if alike
        else None,
    }


def memory(compiled: Any) -> dict[str, float]:
    """Megabytes (10^6 bytes) that the compiler plans."""
    planned = compiled.memory_analysis()
    return {
        "temporaries_MB": planned.temp_size_in_bytes / 1e6,
        "arguments_MB": planned.argument_size_in_bytes / 1e6,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    built = build(options)
    result = describe(options, built)
    say(f"{options.preset}: {result['params_M']:.1f} M parameters on {result['device']}; compiling")
    compiled, counts, seconds = compile_step(built, twins(options))
    result |= {
        "gflop_per_pair": counts.chosen(result["platform"], options.scan_layers),
        "gflop_per_pair_compiled": counts.compiled,
        "gflop_per_pair_lowered": counts.lowered,
        "gflop_per_pair_matmuls": counts.matmuls,
        **seconds,
        **memory(compiled),
    }
    say(
        f"compiled in {seconds['compile_seconds']:.0f} s: {result['gflop_per_pair']:.4g} GFLOP a "
        "pair"
    )
    if options.count_only:
        return result | peak_memory()
    seen = time_steps(
        built, compiled, options.steps, dense_matmul(options.dtype, result["platform"])
    )
    result |= {
        "steps": options.steps,
        "loss": seen.loss,
        "page_faults": int(median(seen.timing.faults)),
        **seen.memory,
        **speeds(result, seen.timing, seen.rates),
    }
    say(
        f"{result['pairs_per_second']:.4g} pairs a second, {result['matmul_share']['median']:.1%} "
        "of a matmul"
    )
    return result


def rounded(value: Any) -> Any:
    """Numbers with five digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _number(at_least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if int(text) < at_least:
            raise argparse.ArgumentTypeError(f"{text}; expected at least {at_least}")
        return int(text)

    parse.__name__ = "number"  # argparse names it where the text is none
    return parse


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--batch", type=_number(2), help="pairs; default: the preset's")
    parser.add_argument("--batch-file", type=Path, help="npz with image, input_ids, attention_mask")
    parser.add_argument("--method", choices=("albef", "nas"), default="nas")
    parser.add_argument("--nta", action="store_true", help="NAS with NTA too")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="the plain twins of all kernels; texts padded, and all positions to the vocabulary",
    )
    parser.add_argument(
        "--twins",
        default="",
        metavar="NAME,...",
        help="the plain twins of these kernels (docs/notes/kernels.md), to measure what each gains",
    )
    parser.add_argument(
        "--update-dictionary", action="store_true", help="move the dictionary in each step"
    )
    parser.add_argument(
        "--length", type=_number(4), help="positions a text; default: the longest, 25 for --plain"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--remat", choices=POLICIES, default="none")
    parser.add_argument("--scan-layers", action="store_true", help="layers as a loop")
    parser.add_argument(
        "--cls-apart", action="store_true", help="the ViT keeps [CLS] beside the patches"
    )
    parser.add_argument("--attention", choices=IMPLEMENTATIONS, default="xla")
    parser.add_argument(
        "--steps", type=_number(1), default=10, help="timed steps, after one that is not"
    )
    parser.add_argument("--threads", type=int, help="CPUs of this process, of those it may use")
    parser.add_argument(
        "--return-memory", action="store_true", help="on CPUs, let freed memory go to the system"
    )
    parser.add_argument(
        "--small-pages", action="store_true", help="on CPUs, keep memory in pages of 4 kB"
    )
    parser.add_argument("--count-only", action="store_true", help="compile and count, run nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    options = parse(argv)
    if cpu_only() and not options.return_memory:
        keep_freed_memory(huge_pages=not options.small_pages)  # as main.py does
    try:
        if options.threads is not None:
            limit_threads(options.threads)
        print(json.dumps(rounded(run(options))), flush=True)
    except UserError as error:
        say(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
