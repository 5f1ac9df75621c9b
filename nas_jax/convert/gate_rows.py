"""What a gate compares: arrays of both sides by name, the largest difference, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from nas_jax.convert.gate_inputs import CASES
from nas_jax.models.towers import IMAGE_STD
from nas_jax.utils.errors import UserError

TOLERANCE = 1e-4  # largest difference / largest value of an array
RESIZE_LEVELS = 8  # of 255, by which another resize than Pillow's may differ on a drawn picture
_EXACT = ("input_ids", "attention_mask", "processor_input_ids", "code_ids", "missing")
_ROWS = 12  # of the table of a refusal
_SHOWN = (
    "image_embeds", "text_embeds", "dictionary_tokens", "itm_logits", "mlm_logits",
    "generator_logits", "plain_cosine", "pipeline_itc", "pipeline_itm",
)  # fmt: skip


class GateRefused(UserError):
    """The two sides of an export do not agree; nothing was written."""

    exit_code = 7


@dataclass(frozen=True)
class OutputRow:
    """One array on both sides."""

    name: str  # case/what
    error: float  # largest difference / largest value; entries that differ where equality is asked
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class GateReport:
    """What was compared."""

    rows: tuple[OutputRow, ...]  # in the order in which they are computed
    transformers: str
    ties: int  # patches equally near to two codes, of which the sides chose different ones
    torch_peak_bytes: int

    @property
    def failed(self) -> list[OutputRow]:
        """The rows above their tolerance."""
        return [row for row in self.rows if not row.passed]

    @property
    def worst(self) -> OutputRow:
        """The largest difference among what need not be equal to the bit."""
        return max(
            (row for row in self.rows if row.tolerance == TOLERANCE), key=lambda row: row.error
        )

    def table(self, rows: Iterable[OutputRow]) -> str:
        """Lines of name, difference and tolerance."""
        lines = [f"{'array':<64}{'difference':>12}{'allowed':>10}"]
        lines += [f"{row.name:<64}{row.error:>12.1e}{row.tolerance:>10.0e}" for row in rows]
        return "\n".join(lines)


def judge(report: GateReport, say: Callable[[str], None]) -> None:
    """Says what was found. Raises GateRefused where an array is above its tolerance."""
    refuse(report, say)
    say(report.table(row for row in report.rows if row.name.split("/")[1] in _SHOWN))
    say(
        f"{len(report.rows)} arrays agree with transformers {report.transformers}; worst: "
        f"{report.worst.name}; {report.ties} ties"
    )


def refuse(report: GateReport, say: Callable[[str], None]) -> None:
    """Raises GateRefused where an array is above its tolerance, after a table of these."""
    if report.failed:
        say(report.table(report.failed[:_ROWS]))
        first, more = report.failed[0], len(report.failed) - 1
        raise GateRefused(
            f"the export differs from the checkpoint, first in {first.name} by {first.error:.1e} "
            f"of its scale, and in {more} more arrays",
            f"at most {TOLERANCE:.0e}",
            "it was deleted; the table above says where the difference starts",
        )


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], plain: bool
) -> Iterable[OutputRow]:
    """A row for each array of ours, in the order in which the model computes them."""
    for name in sorted(ours, key=_place):
        what = name.split("/")[1]
        if what == "plain_cosine" and not plain:
            continue
        if name not in theirs:
            yield OutputRow(f"{name} (not there)", np.inf, 0)
        elif what in _EXACT:
            yield OutputRow(name, _unequal(ours[name], theirs[name]), 0)
        elif what == "resized":
            yield OutputRow(
                name, difference(ours[name], theirs[name], 1 / min(IMAGE_STD)), RESIZE_LEVELS / 255
            )
        else:
            yield OutputRow(name, difference(ours[name], theirs[name]), TOLERANCE)
    if plain:
        yield OutputRow("plain/missing", float(theirs["plain/missing"]), 0)


def _unequal(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.count_nonzero(ours != theirs)) if ours.shape == theirs.shape else np.inf


def difference(ours: np.ndarray, theirs: np.ndarray, scale: float | None = None) -> float:
    """Largest difference over our largest value, or over `scale`; infinity if shapes differ."""
    if ours.shape != theirs.shape:
        return np.inf
    scale = max(float(np.abs(ours).max()), 1e-30) if scale is None else scale
    return float(np.abs(np.subtract(ours, theirs, dtype=np.float64)).max()) / scale


_ORDER = (
    "missing",
    "input_ids",
    "attention_mask",
    "pixel_values",
    "resized",
    "processor_input_ids",
    "processor_pixel_values",
    "patch_embed",
    "image_encoder",
    "image_tokens",
    "image_embeds",
    "features",
    "distances",
    "code_ids",
    "dictionary_tokens",
    "text_encoder.embedding_norm",
    "text_encoder",
    "text_tokens",
    "text_embeds",
    "logits_per_image",
    "plain_cosine",
    "fusion_encoder",
    "itm_logits",
    "mlm_logits",
    "generator_logits",
    "pipeline_itc",
    "pipeline_itm",
)
# a pre-norm block; the layer itself comes last
_WITHIN = ("attention_norm", "attention", "cross_attention", "")


def _place(name: str) -> tuple:
    """Where an array stands in the computation."""
    case, what = name.split("/")
    key, number, module = what.removesuffix(" (mlm)"), -1, ""
    if what.endswith("patch_embed"):
        key = "patch_embed"
    elif key not in _ORDER:
        key, _, rest = key.partition(".")
        if rest[:1] in "bl":  # blocks.0.attention, layers.0
            _, block, *inner = rest.split(".")
            number = int(block)
            module = inner[0] if inner else ""
        else:
            number = 10**6  # the norm behind all blocks
    within = _WITHIN.index(module) if module in _WITHIN else 0
    return CASES.index(case), _ORDER.index(key), what.endswith(" (mlm)"), number, within, what
