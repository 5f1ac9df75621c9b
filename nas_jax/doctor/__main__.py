"""Says in seconds what of this machine can be used, what is missing, and which command fits.

    python -m nas_jax doctor

Ends with a block for a bug report, without the names of user, home folder and host. Exit code 0:
nothing stops a training; 2: a line says ERROR.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence

from nas_jax import __version__
from nas_jax.doctor import libraries, machine
from nas_jax.doctor.report import ERROR, OK, WARNING, Finding, anonymous, block
from nas_jax.utils.commands import Parser, exit_code, is_installed
from nas_jax.utils.memory import ACCELERATORS

GIB = 2**30
OLDEST = (3, 11)
LITTLE_MEMORY, LITTLE_DISK = 3 * GIB, 2 * GIB
CHECKOUT = not is_installed()


def pip(extra: str = "") -> str:
    """The line that installs nas_jax with an extra."""
    name = "." if CHECKOUT else "nas_jax"
    target = f"{name}[{extra}]" if extra else name
    return f"python -m pip install {'-e ' if CHECKOUT else ''}{target!r}"


def python() -> Finding:
    """Its version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST:
        return Finding("python", ERROR, f"{found}; needs 3.11 or newer: install one")
    return Finding("python", OK, found)


def cores() -> Finding:
    """How many this process may use, and why not all."""
    found = machine.cores()
    text = f"{found.usable:g} of {found.installed}"
    if found.allowed < found.installed:
        text += f"; {found.allowed} allowed to this process (taskset, cpuset)"
    if found.quota:
        text += f"; the time of {found.quota:g} (limit of the container)"
    return Finding("cores", OK, text)


def memory() -> Finding:
    """How much a process may hold."""
    found = machine.memory()
    if found.usable is None:
        return Finding("memory", WARNING, "this system does not say how much there is")
    text = f"{found.usable / GIB:.1f} GiB"
    if found.limit and found.limit == found.usable:
        text += " (limit of the container or shell)"
    if found.available is not None:
        text += f", {found.available / GIB:.1f} GiB of the machine's are free"
    if min(found.usable, found.available or found.usable) < LITTLE_MEMORY:
        return Finding("memory", WARNING, f"{text}; the demo needs about 2 GiB, most else more")
    return Finding("memory", OK, text)


def folders() -> Iterator[Finding]:
    """Where runs write."""
    remedies = {
        "current": "pass --workdir=FOLDER that can be written",
        "temporary": "set TMPDIR to a folder that can be written",
        "home": "set HOME to a folder that can be written, or go on: only caches are kept there",
    }
    for folder in machine.folders():
        what = f"the {folder.what} folder"
        if folder.free is None:
            verdict = ERROR if folder.what == "temporary" else WARNING
            text = f"{what} cannot be written: {anonymous(folder.why)}; {remedies[folder.what]}"
        else:
            text = f"{folder.free / GIB:.1f} GiB free for {what}"
            verdict = WARNING if folder.free < LITTLE_DISK else OK
        yield Finding("disk", verdict, text)


def packages(found: libraries.Probe) -> Iterator[Finding]:
    """Libraries that are missing, too old or too new, or do not import."""
    absent = [name for name in libraries.REQUIRED if libraries.version(name) is None]
    if absent:
        yield Finding("library", ERROR, f"missing: {', '.join(absent)}; {pip()}")
    good = 0
    for name, (wanted, _) in libraries.REQUIRED.items():
        have = libraries.version(name)
        if have is None:
            continue
        if not libraries.in_range(have, wanted):
            text = f"{name} {have}, but {wanted} is needed; {pip()}"
        elif name in found.failed:
            again = f"python -m pip install --force-reinstall --no-deps '{name}{wanted}'"
            why = anonymous(found.failed[name])
            text = f"{name} {have} does not import: {why}; mend that, or {again}"
        else:
            good += 1
            continue
        yield Finding("library", ERROR, text)
    if found.stopped and found.at != libraries.DEVICES:
        verdict = WARNING if found.slow else ERROR
        remedy = "--wait=60 waits longer" if found.slow else f"install {found.at} anew; {pip()}"
        text = f"{anonymous(found.stopped)} when {found.at} is imported; {remedy}"
        yield Finding("library", verdict, text)
    yield Finding("libraries", OK, f"{good} of {len(libraries.REQUIRED)} as they should be")


def devices(found: libraries.Probe) -> Iterator[Finding]:
    """What jax computes on, and what it leaves aside."""
    if found.no_devices or found.at == libraries.DEVICES:
        remedy = "JAX_PLATFORMS=cpu trains on the CPU"
        if found.slow:
            remedy = f"--wait=60 waits longer; {remedy}"
        elif platforms := os.environ.get("JAX_PLATFORMS"):
            remedy = f"JAX_PLATFORMS is {platforms}: unset it, or {remedy}"
        text = f"{anonymous(found.no_devices or found.stopped)}; {remedy}"
        yield Finding("devices", ERROR, f"jax has none: {text}")
    elif not found.devices:
        yield Finding("devices", ERROR, "not asked for: jax is not usable, see above")
    kinds: dict[str, int] = {}
    for device in found.devices:
        size = f", {device['memory'] / GIB:.1f} GiB for jax" if device["memory"] else ""
        text = f"{device['kind']} ({device['platform']}{size})"
        kinds[text] = kinds.get(text, 0) + 1
    for text, count in kinds.items():
        yield Finding("devices", OK, f"{count} x {text}")
    seen = sorted(name for pattern in ACCELERATORS for name in glob.glob(pattern))
    only_cpu = found.devices and all(one["platform"] == "cpu" for one in found.devices)
    if seen and only_cpu and os.environ.get("JAX_PLATFORMS") != "cpu":
        extra = "gpu" if "nvidia" in seen[0] else "tpu"
        text = f"{seen[0]} is here, but jax has only the CPU; {pip(extra)}"
        yield Finding("devices", WARNING, text)


def extras() -> Iterator[Finding]:
    """What else can be installed, what for and how."""
    for name, (purpose, _) in libraries.EXTRAS.items():
        lacking = libraries.missing(name)
        text = f"{purpose}: missing {', '.join(lacking)}; {pip(name)}" if lacking else purpose
        yield Finding(f"[{name}]", "-" if lacking else OK, text)


def advice(found: libraries.Probe) -> list[str]:
    """The commands that fit these devices."""
    run = "python main.py --config=configs/{}.py" if CHECKOUT else "nas_jax train --config={}"
    demo = f"{run.format('demo')} --workdir=runs/demo"
    chips = [one for one in found.devices if one["platform"] != "cpu"]
    base = run.format("nas_base_4m")
    lines = [f"to try it, minutes on a CPU:   {demo}"]
    if not chips:
        return [*lines, "for models of base size:       a GPU or TPU; a CPU would take years"]
    lines.append(f"before a long run, in seconds: {base} --workdir=runs/nas --mode=check")
    lines.append(f"what memory it needs:          {base} --mode=compile")
    if len(chips) > 1:
        lines.append(
            f"on {len(chips)} devices:                  data.batch_size is split over all of them; "
            f"if the state does not fit, --config.mesh.fsdp={len(chips)}"
        )
    return lines


def run(argv: Sequence[str]) -> int:
    """Prints all; returns the exit code."""
    parser = Parser("python -m nas_jax doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--wait", type=float, default=8.0, help="seconds for jax and the libraries (8)"
    )
    found = libraries.probe(parser.parse_args(argv).wait)
    machines = [python(), *folders(), cores(), memory(), *packages(found), *devices(found)]
    errors = sum(finding.verdict == ERROR for finding in machines)
    warnings = sum(finding.verdict == WARNING for finding in machines)
    lines = [
        *map(str, (*machines, *extras())),
        f"\n{errors} errors, {warnings} warnings\n",
        *(["mend what says ERROR, then ask again"] if errors else advice(found)),
        f"\nfor a bug report:\n\n{block(__version__, libraries.versions(), machines)}",
    ]
    print("\n".join([*lines, ""]), end="")  # one write, which `| head` cannot cut in two
    return 2 if errors else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
