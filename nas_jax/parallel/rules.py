"""Which dimension of which array of the state is split over which axis of the mesh.

One table from patterns of names to axes; the first match wins, and a name without a match is an
error. The teacher and the optimizer's moments have the names of the parameters they belong to, so
they are split alike.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nas_jax.typing import PyTree
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.trees import named_leaves

FSDP, TENSOR = "fsdp", "tensor"

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # attention: kernels (D, parts, H, F), out (H, F, D)
    (r"attention/(qkv|query|key_value)/kernel$", (FSDP, None, TENSOR, None)),
    (r"attention/(qkv|query|key_value)/bias$", (None, TENSOR, None)),
    (r"attention/out/kernel$", (TENSOR, None, FSDP)),
    # feed-forward: (D, 4 D) and back
    (r"mlp_in/kernel$", (FSDP, TENSOR)),
    (r"mlp_in/bias$", (TENSOR,)),
    (r"mlp_out/kernel$", (TENSOR, FSDP)),
    # tables (rows, D), and every other kernel by its first dimension
    (r"embedding/embedding$", (None, FSDP)),
    (r"/kernel$", (FSDP,)),
    # small or read whole: norms, biases, class token, temperature, gates
    (r"(scale|bias|cls_token|mask_token|position_embedding|temp|log_scale)$", ()),
    (r"(^step|^rng|/count)$", ()),
    # what else a method keeps is read whole by every device
    (r"^method_state/", ()),
)


class Placement(NamedTuple):
    """Where one array of the state lives."""

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes_per_device: int
    # dimensions that the rule would split, but that the axis does not divide
    whole: tuple[int, ...]


Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
"""(pattern of names, axis for each dimension)."""


def placements(abstract_state: PyTree, mesh: Mesh, own: Rules = ()) -> list[Placement]:
    """A row for each array, in the order of the tree's leaves.

    own: rules of the method, which come before the table.
    Raises ConfigError for a name that no rule matches.
    """
    arrays, rules = named_leaves(abstract_state), own + RULES
    return [_place(name, leaf, mesh, rules) for name, leaf in arrays.items()]


def _place(name: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh, rules: Rules) -> Placement:
    axes = next((axes for pattern, axes in rules if re.search(pattern, name)), None)
    if axes is None:
        raise ConfigError(
            f"the array {name} of the state",
            "a name that a rule matches",
            "add one to Method.sharding of the method",
        )
    whole = tuple(d for d, axis in enumerate(axes) if axis and leaf.shape[d] % mesh.shape[axis])
    spec = PartitionSpec(*(None if d in whole else axis for d, axis in enumerate(axes)))
    parts = math.prod(mesh.shape[axis] for axis in spec if axis)
    size = math.prod(leaf.shape) * leaf.dtype.itemsize // parts
    return Placement(name, tuple(leaf.shape), spec, size, whole)


def state_shardings(abstract_state: PyTree, mesh: Mesh, own: Rules = ()) -> PyTree:
    """The tree of NamedSharding of a state. own: rules of the method."""
    specs = [placement.spec for placement in placements(abstract_state, mesh, own)]
    structure = jax.tree.structure(abstract_state)
    return jax.tree.unflatten(structure, [NamedSharding(mesh, spec) for spec in specs])


def with_shardings(abstract_state: PyTree, shardings: PyTree) -> PyTree:
    """The abstract state with the sharding of each leaf, as a restore needs it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state,
        shardings,
    )


def format_placements(rows: list[Placement], mesh: Mesh) -> str:
    """The table a run prints, a line for equal rows of many layers; * marks unsplit dimensions."""
    groups: dict[tuple, list[Placement]] = {}
    for row in rows:
        name = re.sub(r"^(params|method_state/teacher|opt_state/.*?/(mu|nu))/", "", row.name)
        name = re.sub(r"(block|layer)_\d+", r"\1_*", name)
        groups.setdefault((name, row.shape, str(row.spec), row.whole), []).append(row)
    lines = [
        (
            name,
            "x".join(map(str, shape)) or "-",
            _spec(shape, found[0]),
            str(len(found)),
            _mega(found),
        )
        for (name, shape, _, _), found in groups.items()
    ]
    lines.insert(0, ("array", "shape", "split over", "times", "MB a device"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>", widths, strict=True))
    body = "\n".join(form.format(*line) for line in lines)
    total, whole = sum(row.bytes_per_device for row in rows), sum(_bytes(row, mesh) for row in rows)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return (
        f"{body}\nmesh {sizes}: {total / 1e6:.1f} MB of state a device, {whole / 1e6:.1f} MB in all"
    )


def _spec(shape: tuple[int, ...], row: Placement) -> str:
    cells = [("*" if d in row.whole else "") + (axis or "-") for d, axis in enumerate(row.spec)]
    return " ".join(cells) if any(cell != "-" for cell in cells) else "whole"


def _bytes(row: Placement, mesh: Mesh) -> int:
    return row.bytes_per_device * math.prod(mesh.shape[axis] for axis in row.spec if axis)


def _mega(rows: list[Placement]) -> str:
    return f"{sum(row.bytes_per_device for row in rows) / 1e6:.3f}"
