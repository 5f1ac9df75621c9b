"""How fast one training step is, what it computes and what memory it needs.

    python -m benchmarks.step --preset tiny --threads 1          one CPU thread
    python -m benchmarks.step --preset base --dtype bfloat16 --batch 256 --steps 20
    python -m benchmarks.step --preset base --count-only         compiles and counts, runs nothing
    python -m benchmarks.step --preset tiny --batch-file F.npz   a real batch

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
import math
import os
import resource
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.losses.mlm import SpecialTokens
from nas_jax.methods import Method, make_method
from nas_jax.methods.albef import Stage
from nas_jax.methods.config import ItcConfig, MethodConfig, MlmConfig
from nas_jax.models.sizes import DTYPES, IMPLEMENTATIONS, POLICIES, model_config
from nas_jax.models.visual_dictionary import DictionaryConfig
from nas_jax.negatives.nta import NtaConfig, WordTables
from nas_jax.negatives.nva import NvaConfig
from nas_jax.parallel.mesh import MeshConfig, make_mesh, put_batch
from nas_jax.parallel.rules import state_shardings
from nas_jax.train.machine import matmul_flops, peak_flops
from nas_jax.train.optimizer import OptimizerConfig, make_optimizer
from nas_jax.train.state import TrainState, init_state
from nas_jax.train.step import make_train_step, sharded_step
from nas_jax.typing import Batch
from nas_jax.utils.errors import ConfigError, DataError, UserError
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
CUT_AT_MOST = 0.01  # share of captions that may lose a masked position to `max_masked`
SPECIAL = SpecialTokens(pad=0, cls=101, sep=102, mask=103)  # BERT's
FIRST_WORD = 1000  # in BERT's vocabulary; ids below are not used by random captions
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


class Timing(NamedTuple):
    """Seconds and page faults of each repetition."""

    cpu: list[float]
    wall: list[float]
    faults: list[int]


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------- the batch


def random_batch(size: int, length: int, image_size: int, vocab_size: int) -> Batch:
    """Noise pictures, and captions of random words, as long as COCO's (13 +- 2.5) and padded."""
    rng = np.random.default_rng(0)
    counts_B = np.clip(np.round(rng.normal(13.0, 2.5, size)), min(8, length), length).astype(int)
    mask_BxL = np.arange(length) < counts_B[:, None]
    ids_BxL = rng.integers(
        min(FIRST_WORD, vocab_size // 2), vocab_size, (size, length), dtype=np.int32
    )
    ids_BxL[:, 0] = SPECIAL.cls
    ids_BxL[np.arange(size), counts_B - 1] = SPECIAL.sep
    return {
        "image_BxHxWx3": rng.integers(0, 256, (size, image_size, image_size, 3), dtype=np.uint8),
        "token_ids_BxL": np.where(mask_BxL, ids_BxL, SPECIAL.pad).astype(np.int32),
        "token_mask_BxL": mask_BxL,
        "image_id_B": np.arange(size, dtype=np.int32),
    }


def read_batch(
    path: Path, image_size: int, vocab_size: int, length: int | None, trim: bool
) -> Batch:
    """The batch of a file, its texts padded to `length` or cut to the longest of them.

    Raises DataError on a file without the arrays, or whose arrays are not those of the preset.
    """
    try:
        with np.load(path) as file:
            image, ids_BxL, mask_BxL = (
                file[name] for name in ("image", "input_ids", "attention_mask")
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _bad_file(
            path,
            " ".join(str(error).split())[:120],
            "an .npz with image, input_ids, attention_mask",
        ) from error
    size = len(image)
    if image.shape != (size, 3, image_size, image_size) or image.dtype != np.float32:
        raise _bad_file(
            path,
            f"image {image.dtype}{list(image.shape)}",
            f"float32 [B, 3, {image_size}, {image_size}] of the preset",
        )
    if ids_BxL.ndim != 2 or ids_BxL.shape != mask_BxL.shape or len(ids_BxL) != size:
        raise _bad_file(
            path,
            f"input_ids {list(ids_BxL.shape)}, attention_mask {list(mask_BxL.shape)}",
            f"both [{size}, L]",
        )
    mask_BxL = mask_BxL.astype(bool)
    if not mask_BxL[:, 0].all() or ids_BxL.min() < 0 or ids_BxL.max() >= vocab_size:
        raise _bad_file(
            path,
            f"ids {ids_BxL.min()} to {ids_BxL.max()}, {(~mask_BxL[:, 0]).sum()} empty texts",
            f"ids below {vocab_size} and no empty text",
        )
    longest = int(np.flatnonzero(mask_BxL.any(0))[-1]) + 1
    target = length or (longest if trim else ids_BxL.shape[1])
    if target < longest:
        raise ConfigError(
            f"--length={target} for a text of {longest} tokens", f"at least {longest}", "raise it"
        )
    wider = ((0, 0), (0, max(0, target - ids_BxL.shape[1])))
    return {
        "image_BxHxWx3": np.ascontiguousarray(image.transpose(0, 2, 3, 1)),
        "token_ids_BxL": np.pad(ids_BxL, wider)[:, :target].astype(np.int32),
        "token_mask_BxL": np.pad(mask_BxL, wider)[:, :target],
        "image_id_B": np.arange(size, dtype=np.int32),
    }


def trimmed(batch: Batch) -> Batch:
    """The batch with its texts cut to the longest of them."""
    longest = int(batch["token_mask_BxL"].sum(-1).max())
    return batch | {name: batch[name][:, :longest] for name in ("token_ids_BxL", "token_mask_BxL")}


def _bad_file(path: Path, got: str, expected: str) -> DataError:
    error = DataError(f"{path}: {got}", expected, "write another file, or leave out --batch-file")
    error.exit_code = 2
    return error


def cut_probability(batch: Batch, probability: float, max_masked: int) -> float:
    """Mean probability that a caption of the batch has more picks than `max_masked`."""
    ids_BxL = batch["token_ids_BxL"]
    words_B = (
        batch["token_mask_BxL"] & ~np.isin(ids_BxL, (SPECIAL.cls, SPECIAL.sep, SPECIAL.pad))
    ).sum(-1)

    def above(words: int) -> float:
        q = 1 - probability
        return sum(
            math.comb(words, k) * probability**k * q ** (words - k)
            for k in range(max_masked + 1, words + 1)
        )

    return float(np.mean([above(int(words)) for words in words_B]))


def enough_masked(batch: Batch, probability: float) -> int:
    """The smallest `max_masked` that cuts at most CUT_AT_MOST of the captions."""
    length = batch["token_ids_BxL"].shape[1]
    return next(
        picks
        for picks in range(1, length + 1)
        if cut_probability(batch, probability, picks) <= CUT_AT_MOST
    )


# ----------------------------------------------------------------------------------------- the step


class Built(NamedTuple):
    """All that a run of the step needs."""

    method: Method
    init: Callable[[], TrainState]
    step: Any  # jitted
    stage: Stage
    batch: Batch
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
    if options.batch_file:
        trim = not options.plain
        batch = read_batch(
            options.batch_file, model.image_size, model.vocab_size, options.length, trim
        )
        if options.batch not in (None, len(batch["image_id_B"])):
            raise ConfigError(
                f"--batch={options.batch} with a file of {len(batch['image_id_B'])} pairs",
                "the same",
                "leave it out",
            )
    else:
        batch = random_batch(
            options.batch or preset.batch,
            options.length or REFERENCE_LENGTH,
            model.image_size,
            model.vocab_size,
        )
        if options.length is None and not options.plain:
            batch = trimmed(batch)
    size = len(batch["image_id_B"])
    if size < 2 or preset.queue_size % size:
        raise ConfigError(
            f"a batch of {size}",
            f"at least 2, and a divisor of the queue's {preset.queue_size}",
            "take another",
        )
    mlm = MlmConfig()
    config = MethodConfig(
        name=options.method,
        itc=ItcConfig(queue_size=preset.queue_size),
        mlm=MlmConfig(max_masked=0 if options.plain else enough_masked(batch, mlm.probability)),
        dictionary=DictionaryConfig(enabled=nas, codes=CODES),
        nva=NvaConfig(enabled=nas),
        nta=NtaConfig(enabled=options.nta),
        plain=options.plain,
    )
    config.validate()
    words_V = np.arange(model.vocab_size) >= min(FIRST_WORD, model.vocab_size // 2)
    tables = WordTables(words_V, words_V, np.zeros_like(words_V))
    method = make_method(config, model, tables, SPECIAL, EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
    optimizer, schedule = make_optimizer(
        OptimizerConfig(), EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH
    )
    mesh = make_mesh(MeshConfig(data=1))
    init = partial(init_state, method, optimizer, 0)
    shardings = state_shardings(jax.eval_shape(init), mesh)
    step = sharded_step(make_train_step(method, optimizer, schedule), mesh, shardings).jitted
    stage = Stage(nva=nas, nta=options.nta, dictionary_frozen=nas and not options.update_dictionary)
    return Built(method, init, step, stage, batch, mesh, shardings)


def compile_step(built: Built) -> tuple[Any, Counts, dict[str, float]]:
    """The compiled step, its operations a pair, and the seconds that tracing and compiling took."""
    size, cpu, wall = len(built.batch["image_id_B"]), time.process_time(), time.perf_counter()
    with jax.set_mesh(built.mesh):
        traced = built.step.trace(
            jax.eval_shape(built.init), put_batch(built.batch, built.mesh), built.stage
        )
        lowered = traced.lower()
        compiled = lowered.compile()
    seconds = {
        "compile_seconds": time.perf_counter() - wall,
        "compile_cpu_seconds": time.process_time() - cpu,
    }
    counted = [_flops(compiled), _flops(lowered), matmul_flops(traced.jaxpr.jaxpr)]
    return compiled, Counts(*(flops / size / 1e9 for flops in counted)), seconds


def _flops(program: Any) -> float:
    costs = program.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return (costs or {}).get("flops", 0.0)


# ------------------------------------------------------------------------------------------- timing


def measure(run: Callable[[], Any], times: int) -> Timing:
    """CPU time of the process and wall time of each call; waits for what `run` returns."""
    timing = Timing([], [], [])
    for _ in range(times):
        faults, cpu, wall = page_faults(), time.process_time(), time.perf_counter()
        jax.block_until_ready(run())
        timing.cpu.append(time.process_time() - cpu)
        timing.wall.append(time.perf_counter() - wall)
        timing.faults.append(page_faults() - faults)
    return timing


def page_faults() -> int:
    """How often the system has given this process a page that it did not have to read."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def dense_matmul(dtype: str, platform: str) -> Callable[[float], float]:
    """A function that multiplies for at least so many seconds and returns GFLOP a second.

    On CPUs it is a second of CPU time.
    """
    side, together = (2048, 1) if platform == "cpu" else (8192, 10)
    left, right = (
        jax.random.normal(jax.random.key(seed), (side, side), jnp.dtype(dtype)) for seed in range(2)
    )

    @jax.jit
    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        # Several at a time where one is short: what is measured is the device, not the way to it.
        for _ in range(together):
            left = left @ right
        return left

    right = right * side**-0.5  # the product stays as large as it was
    measure(lambda: multiply(left, right), 1)  # compiles

    def rate(seconds: float) -> float:
        spent: list[float] = []
        while sum(spent) < seconds or not spent:
            timing = measure(lambda: multiply(left, right), 1)
            spent += timing.cpu if platform == "cpu" else timing.wall
        return together * 2 * side**3 / 1e9 * len(spent) / sum(spent)

    return rate


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
    config, device = built.method.ctx.config, jax.devices()[0]
    return {
        "preset": options.preset,
        "method": options.method,
        "nta": options.nta,
        "plain": options.plain,
        "batch": len(built.batch["image_id_B"]),
        "batch_file": options.batch_file.name if options.batch_file else None,
        "length": built.batch["token_ids_BxL"].shape[1],
        "real_tokens": float(built.batch["token_mask_BxL"].sum(-1).mean()),
        "dtype": options.dtype,
        "remat": options.remat,
        "scan_layers": options.scan_layers,
        "cls_apart": options.cls_apart,
        "attention": options.attention,
        "dictionary_frozen": built.stage.dictionary_frozen,
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


def peak_memory() -> dict[str, Any]:
    """Megabytes that were in use at most: on the device where it says so, else by this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_MB": stats["peak_bytes_in_use"] / 1e6, "peak_memory_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_MB": used / 1e6, "peak_memory_of": "process"}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    built = build(options)
    result = describe(options, built)
    say(f"{options.preset}: {result['params_M']:.1f} M parameters on {result['device']}; compiling")
    compiled, counts, seconds = compile_step(built)
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


def limit_threads(count: int) -> None:
    """Leaves this process `count` of its CPUs.

    Must come before the first use of a device: it counts them then.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--threads on this system", "Linux", "leave it out")
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(allowed):
        raise ConfigError(
            f"--threads={count}", f"1 to {len(allowed)}, the CPUs of this process", "change it"
        )
    os.sched_setaffinity(0, allowed[:count])


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
        "--plain", action="store_true", help="every pass by itself, all positions to the vocabulary"
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
