"""Whether each term of each loss falls: a table from the curves of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_jax.utils.tables import markdown

STEPS = 200  # after so many, a loss that can be learned has fallen
TERM = "loss/"


def section(folder: Path, variants: tuple[str, ...]) -> list[str]:
    """Lines with the loss of each variant in its first window, around STEPS and at its end.

    folder: of the curves, as `nas_jax.inspect.compare --write` leaves them.
    """
    rows = []
    for variant in variants:
        path = folder / f"{variant}.json"
        if path.exists():
            found = falls(json.loads(path.read_text())["runs"][0])
            parts = [f"{name} {', '.join(f'{one:.3g}' for one in found[name])}" for name in found]
            rows.append((f"`{variant}`", parts[0].split(" ", 1)[1], "; ".join(parts[1:]) or "-"))
    if not rows:
        return []
    text = (
        f"The loss of seed 0 in the first 25 steps, around step {STEPS} and at the end, and each "
        "of its terms. A matching loss stays at what guessing gives for some hundreds of steps "
        "(0.637 where one row of three is a true pair). The threshold of CE-CLIP's rank loss "
        "follows the model, so that loss may rise."
    )
    return [text, "", *markdown(("variant", "loss", "terms"), rows)]


def falls(run: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Loss, and term -> its mean in the first window, the one nearest to STEPS, and the last."""
    ends = run["ends"]
    late = min(range(len(ends)), key=lambda index: abs(ends[index] - STEPS))
    return {
        name.removeprefix(TERM): (values[0][0], values[0][late], values[0][-1])
        for name, values in run["train"].items()
        if name == "loss" or name.startswith(TERM)
    }
