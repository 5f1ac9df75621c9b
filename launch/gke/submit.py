"""Submits a run to GKE as a JobSet, sets up its queues, or hands it to xpk.

    python -m launch.gke.submit job --name=nas --accelerator=v5e:4x4 --image=IMAGE -- \
        --config=configs/nas_base_4m.py --workdir=gs://BUCKET/runs/nas
    python -m launch.gke.submit queues --accelerator=v5e:4x4 --slices=2
    python -m launch.gke.submit xpk --name=nas --accelerator=v5e:4x4 --image=IMAGE \
        --cluster=CLUSTER -- ...

`--dry-run` prints the manifest, or the command, and does nothing. What is behind `--` goes to
main.py.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence

import yaml

from launch.gke.manifests import Run, jobset, mounted, queues
from launch.gke.topologies import names, nodes
from nas_jax.utils.errors import ConfigError, UserError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m launch.gke.submit", description=__doc__.splitlines()[0]
    )
    commands = top.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--accelerator", required=True, help=f"{', '.join(names())} (N nodes)")
    common.add_argument("--dry-run", action="store_true", help="print, and do nothing")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--namespace", default="default")
    place.add_argument("--queue", default="nas-jax", help="LocalQueue of Kueue; empty: none")
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("--name", required=True)
    run.add_argument("--image", required=True, help="built from launch/gke/Dockerfile.tpu or .gpu")
    run.add_argument("--spot", action="store_true", help="nodes that may be taken away")
    run.add_argument(
        "--restarts", type=int, default=100, help="of all processes after one of them failed"
    )
    job = commands.add_parser("job", parents=[common, place, run], help="a JobSet")
    job.add_argument("--service-account", default="", help="that may read and write the buckets")
    job.add_argument("--claim", default="", help="PersistentVolumeClaim to mount at /shared")
    made = commands.add_parser(
        "queues", parents=[common, place], help="Kueue's queues, once a cluster"
    )
    made.add_argument("--slices", type=int, default=1, help="runs of that size at a time")
    xpk = commands.add_parser("xpk", parents=[common, run], help="a workload of xpk")
    xpk.add_argument("--cluster", required=True, help="made by xpk")
    xpk.add_argument(
        "--storage", default="", help="that `xpk storage attach` mounts at /gcs/BUCKET, by its name"
    )
    return top


def xpk_command(options: argparse.Namespace, arguments: Sequence[str]) -> list[str]:
    """The command of xpk. Its pods learn from GKE who they are (launch/worker.sh)."""
    machines = nodes(options.accelerator)
    if machines.hardware == "gpu" and machines.count > 1:
        raise ConfigError(
            f"xpk with --accelerator={options.accelerator}",
            "a TPU slice or one GPU node",
            "use `job` for several nodes",
        )
    words = [f"HARDWARE={machines.hardware}", *(["GPUS=8"] if machines.hardware == "gpu" else [])]
    words += ["bash", "launch/worker.sh", *(mounted(argument) for argument in arguments)]
    command = [
        "xpk",
        "workload",
        "create",
        f"--cluster={options.cluster}",
        f"--workload={options.name}",
    ]
    command += [
        *machines.xpk,
        f"--docker-image={options.image}",
        f"--max-restarts={options.restarts}",
    ]
    command += [
        "--restart-on-exit-codes=1,6,134,137,139,143",
        *(["--spot"] if options.spot else []),
    ]
    return [
        *command,
        *([f"--storage={options.storage}"] if options.storage else []),
        f"--command={shlex.join(words)}",
    ]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    options, arguments = parser().parse_args(argv[:cut]), tuple(argv[cut + 1 :])
    try:
        if options.command == "xpk":
            command = xpk_command(options, arguments)
            print(shlex.join(command))
            return 0 if options.dry_run else subprocess.run(command, check=False).returncode
        machines = nodes(options.accelerator)
        if options.command == "queues":
            objects = queues(machines, options.queue, options.namespace, options.slices)
        else:
            run = Run(
                name=options.name,
                nodes=machines,
                image=options.image,
                arguments=arguments,
                namespace=options.namespace,
                queue=options.queue,
                service_account=options.service_account,
                claim=options.claim,
                spot=options.spot,
                restarts=options.restarts,
            )
            objects = [jobset(run)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return apply(objects, options.dry_run)


def apply(objects: Sequence[dict], dry_run: bool) -> int:
    """Hands the objects to kubectl, or prints what it would get; returns the exit code."""
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    if dry_run:
        print("# kubectl apply --filename=- <<'END'", text, "# END", sep="\n")
        return 0
    return subprocess.run(
        ["kubectl", "apply", "--filename=-"], input=text, text=True, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
