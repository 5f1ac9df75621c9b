"""Runs, and sweeps over config fields, through XManager.

    python -m launch.xmanager.experiment --to=local --workdir=runs/sweep \
        --run_arg=--config=configs/demo.py --sweep=optimizer.lr=1e-3,3e-3 --sweep=seed=0,1
    python -m launch.xmanager.experiment --dry-run --to=vertex --gpu=A100 --gpus=8 --image=IMAGE \
        --workdir=gs://BUCKET/sweep --run_arg=--config=configs/nas_base_4m.py \
        --sweep=optimizer.lr=1e-4,3e-4

One work unit for each combination, each in a folder of its own below --workdir: launching again
continues them.

--to=local       processes of this machine, without Docker
--to=vertex      one Vertex AI machine a work unit; gs://BUCKET/... is /gcs/BUCKET/... there
--to=kubernetes  one pod with GPUs a work unit. XManager gives it no volume, so what it writes goes
                 with the node
--to=gke         a JobSet of launch/gke for each: TPU slices, several nodes, buckets. XManager's own
                 executor for Kubernetes ignores requests for TPUs
"""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import app, flags

from launch.gke import submit
from launch.gke.manifests import Run, jobset, mounted
from launch.gke.topologies import nodes
from nas_jax.utils.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("local", "vertex", "kubernetes", "gke")
RETRIES = 20  # of one process, in the same work directory; of a JobSet see launch/gke
# What XManager 0.8.5 can get. On GKE it asks for nodes labelled nvidia-tesla-NAME, and newer GPUs
# have another label; on Vertex it knows the right machine for A100 alone, and takes n1-standard-4
# for most others.
GPUS = {"vertex": ("A100",), "kubernetes": ("P4", "T4", "P100", "V100", "A100")}

# of this launcher alone: main.py has a --workdir too, in the same process of tests
FLAGS = flags.FlagValues()
_TO = flags.DEFINE_enum("to", "local", PLACES, "Where the work units run.", FLAGS)
_NAME = flags.DEFINE_string("name", "nas-jax", "Of the experiment.", FLAGS)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the experiment; each work unit has one below it.", flag_values=FLAGS
)
_RUN_ARG = flags.DEFINE_multi_string(
    "run_arg", [], "One of main.py, like --run_arg=--config=configs/demo.py.", flag_values=FLAGS
)
_SWEEP = flags.DEFINE_multi_string(
    "sweep", [], "FIELD=VALUE,VALUE,...: a config field and its values.", flag_values=FLAGS
)
_IMAGE = flags.DEFINE_string(
    "image", "", "Container image, built from launch/gke/Dockerfile.gpu or .tpu.", flag_values=FLAGS
)
_GPU = flags.DEFINE_string(
    "gpu", "A100", "For vertex and kubernetes: the GPU, as XManager calls it.", flag_values=FLAGS
)
_GPUS = flags.DEFINE_integer(
    "gpus", 1, "For vertex and kubernetes: GPUs of a work unit.", flag_values=FLAGS
)
_ACCELERATOR = flags.DEFINE_string(
    "accelerator",
    "",
    "For gke: a TPU slice like v5e:4x4, or GPU nodes like h100:2.",
    flag_values=FLAGS,
)
_QUEUE = flags.DEFINE_string(
    "queue", "nas-jax", "For gke: LocalQueue of Kueue; empty: none.", FLAGS
)
_DRY_RUN = flags.DEFINE_bool(
    "dry-run", False, "Print what would be launched, and do nothing.", FLAGS
)


@dataclass(frozen=True)
class Unit:
    """One work unit."""

    name: str  # 0-seed=1, 1-seed=2, ...
    arguments: tuple[str, ...]  # of main.py


def units(workdir: str, arguments: Sequence[str], sweep: Sequence[str]) -> list[Unit]:
    """Every combination of the values in `sweep` ("FIELD=VALUE,VALUE"), each in its own folder.

    The folders are below `workdir`. Raises ConfigError on an entry of another form, a field that
    comes twice, or one that the config does not have.
    """
    axes = {}
    for entry in sweep:
        field, _, values = entry.partition("=")
        if not field or not all(values.split(",")) or field.startswith("-"):
            raise ConfigError(
                f"--sweep={entry}", "FIELD=VALUE,VALUE", "write --sweep=optimizer.lr=1e-3,3e-3"
            )
        field = field.removeprefix("config.")
        if field in axes:
            raise ConfigError(
                f"--sweep={field} twice", "each field once", "write all its values behind one ="
            )
        check_field(field)
        axes[field] = values.split(",")
    found = []
    for number, values in enumerate(itertools.product(*axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        name = "-".join([str(number), *(f"{field}={value}" for field, value in chosen.items())])
        fields = (f"--config.{field}={value}" for field, value in chosen.items())
        found.append(Unit(name, (*arguments, *fields, f"--workdir={workdir.rstrip('/')}/{name}")))
    return found


def check_field(field: str) -> None:
    """Raises ConfigError if no config has that field."""
    from nas_jax import config  # here: imports of seconds, which only a sweep needs

    config.check_field(field)


def there(to: str, arguments: Sequence[str]) -> list[str]:
    """The arguments as they hold where the unit runs: Vertex AI mounts every bucket at /gcs."""
    return [mounted(argument) for argument in arguments] if to == "vertex" else list(arguments)


def environment(to: str, gpus: int) -> dict[str, str]:
    """What launch/worker.sh reads."""
    if to == "local":
        return {"RETRIES": str(RETRIES)}
    return {"RETRIES": str(RETRIES), "HARDWARE": "gpu", "GPUS": str(gpus)}


def check(to: str, workdir: str, image: str, gpu: str) -> None:
    """Raises ConfigError on what the place would refuse, or lose, later."""
    if not workdir:
        raise ConfigError(
            "no --workdir", "a folder for the experiment", "pass --workdir=runs/sweep"
        )
    if to != "local" and not image:
        raise ConfigError(
            f"--to={to} without --image",
            "a container image",
            "build launch/gke/Dockerfile.gpu or .tpu",
        )
    if to == "vertex" and not workdir.startswith("gs://"):
        raise ConfigError(
            f"--workdir={workdir} on Vertex",
            "a bucket, which outlives the machine",
            "pass gs://BUCKET/sweep",
        )
    if to in ("local", "kubernetes") and workdir.startswith("gs://"):
        raise ConfigError(
            f"--workdir={workdir} with --to={to}",
            "a path",
            "use --to=gke or --to=vertex for buckets",
        )
    if to in GPUS and gpu.upper() not in GPUS[to]:
        remedy = "use --to=gke --accelerator=h100:1"
        raise ConfigError(f"--gpu={gpu} with --to={to}", f"one of {', '.join(GPUS[to])}", remedy)


def launch_with_xmanager(
    to: str, name: str, work: Sequence[Unit], image: str, gpu: str, gpus: int
) -> None:
    """Creates the experiment and adds its work units."""
    try:
        from xmanager import xm, xm_local  # here: --dry-run and --to=gke do without XManager
    except ImportError as error:
        raise ConfigError(
            f"no XManager ({error})", "its package", "pip install xmanager 'kubernetes<36'"
        ) from error

    with xm_local.create_experiment(experiment_title=name) as experiment:
        executor = make_executor(to, gpu, gpus, xm, xm_local)
        if to == "local":
            package = xm.binary(executor_spec=executor.Spec(), path=str(ROOT / "launch/worker.sh"))
        else:
            package = xm.container(executor_spec=executor.Spec(), image_path=image)
        [executable] = experiment.package([package])
        for unit in work:
            experiment.add(
                xm.Job(
                    executable=executable,
                    executor=executor,
                    # As one text each: XManager would write a dict with its own idea of quotes and
                    # booleans.
                    args=there(to, unit.arguments),
                    env_vars=environment(to, gpus),
                )
            )


def make_executor(to: str, gpu: str, gpus: int, xm, xm_local):
    """XManager's executor for a place."""
    if to == "local":
        return xm_local.Local()
    requirements = xm.JobRequirements({xm.ResourceType[gpu.upper()]: gpus})
    return {"vertex": xm_local.Vertex, "kubernetes": xm_local.Kubernetes}[to](
        requirements=requirements
    )


def described(to: str, work: Sequence[Unit], image: str, gpu: str, gpus: int) -> str:
    """What `launch_with_xmanager` would launch."""
    lines = []
    for unit in work:
        settings = [f"{key}={value}" for key, value in environment(to, gpus).items()]
        where = "launch/worker.sh" if to == "local" else f"{image} on {gpus} x {gpu}"
        lines.append(f"# {to}: {where}")
        lines.append(shlex.join([*settings, "launch/worker.sh", *there(to, unit.arguments)]))
    return "\n".join(lines)


def launch_jobsets(
    name: str, work: Sequence[Unit], image: str, accelerator: str, queue: str, dry_run: bool
) -> int:
    """A JobSet for each work unit; returns the exit code of kubectl."""
    machines = nodes(accelerator)
    runs = [
        Run(
            name=f"{name}-{number}",
            nodes=machines,
            image=image,
            arguments=unit.arguments,
            queue=queue,
        )
        for number, unit in enumerate(work)
    ]
    return submit.apply([jobset(run) for run in runs], dry_run)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    try:
        if len(argv) > 1:
            raise ConfigError(
                f"argument {argv[1]!r}",
                "only flags",
                "write --run_arg=... for what main.py shall get",
            )
        to, name, image, gpu, gpus = _TO.value, _NAME.value, _IMAGE.value, _GPU.value, _GPUS.value
        check(to, _WORKDIR.value, image, gpu)
        work = units(_WORKDIR.value, _RUN_ARG.value, _SWEEP.value)
        if to == "gke":
            return launch_jobsets(
                name, work, image, _ACCELERATOR.value, _QUEUE.value, _DRY_RUN.value
            )
        if _DRY_RUN.value:
            print(described(to, work, image, gpu, gpus))
        else:
            launch_with_xmanager(to, name, work, image, gpu, gpus)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(FLAGS)  # beside XManager's own
    FLAGS.mark_as_parsed()
    app.run(main)
