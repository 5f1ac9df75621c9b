"""The predicted step of a deep model from two shallow ones, of which each compiles in minutes
instead of an hour.

    python main.py --config=configs/nas_base_4m.py --mode=compile --topology=v5e:16x16 --workdir=a \
        --config.model.image_layers=2 --config.model.text_layers=1 --config.model.fusion_layers=1
    python main.py ... --workdir=b        # the same with 4, 2 and 2
    python -m benchmarks.extrapolate a/compile-v5e-16x16.json b/compile-v5e-16x16.json

Prints the reports' figures and those on the straight line through both, at the layers of the base
model. Layers of a kind are alike, so operations and memory lie on the line; the compiler's cycles
do as far as it treats them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nas_jax.models.sizes import model_config
from nas_jax.parallel.topology import topology_devices
from nas_jax.utils.errors import ConfigError, UserError

LAYERS = ("image_layers", "text_layers", "fusion_layers")
FIGURES = ("predicted_seconds", "flops", "arguments_bytes", "temporaries_bytes", "peak_bytes")


def layers_of(report: dict) -> tuple[int, ...]:
    """Image, text and fusion layers."""
    return tuple(report["config"]["model"][name] for name in LAYERS)


def extrapolate(first: dict, second: dict, layers: tuple[int, ...]) -> dict:
    """The figures at `layers` on the line through two reports.

    Raises ConfigError if the three are not on a line.
    """
    a, b = layers_of(first), layers_of(second)
    steps = {
        (end - start) / (middle - start)
        for start, middle, end in zip(a, b, layers, strict=True)
        if middle != start
    }
    if (
        len(steps) != 1
        or first["batch"] != second["batch"]
        or first["topology"] != second["topology"]
    ):
        got = f"reports of {a} and {b} layers, batches {first['batch']} and {second['batch']}"
        raise ConfigError(
            got, f"two on a line to {layers}, alike in all else", "compile (2, 1, 1) and (4, 2, 2)"
        )
    (share,) = steps
    return first | {name: first[name] + share * (second[name] - first[name]) for name in FIGURES}


def line(name: str, report: dict, peak_flops: float) -> str:
    """One report in a line."""
    pairs, seconds = report["batch"] / report["devices"], report["predicted_seconds"]
    return (
        f"{name:<14} {1e3 * seconds:8.1f} ms {pairs / seconds:8.0f} pairs/s a chip "
        f"MFU {report['flops'] / seconds / peak_flops:6.1%} {report['flops'] / pairs / 1e9:7.1f} "
        "GFLOP a pair "
        f"temporaries {report['temporaries_bytes'] / 2**30:5.2f} GiB peak "
        f"{report['peak_bytes'] / 2**30:5.2f} GiB"
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "reports", nargs=2, type=Path, help="compile-*.json of a shallow and a deeper model"
    )
    options = parser.parse_args()
    try:
        first, second = (json.loads(path.read_text()) for path in options.reports)
        base = model_config("base")
        whole = extrapolate(first, second, tuple(getattr(base, name) for name in LAYERS))
        _, chip = topology_devices(first["topology"])
        for name, report in (("compiled", first), ("compiled", second), ("EXTRAPOLATED", whole)):
            print(line(name, report, chip.peak_flops))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
