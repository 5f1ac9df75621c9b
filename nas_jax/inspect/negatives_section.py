"""The diagnosis of negatives as a part of the report of a run."""

from __future__ import annotations

import html

from nas_jax.inspect.negatives_found import (
    LEGEND,
    NEGATIVES_PICTURE,
    all_kinds,
    cells,
    header,
    headline,
    percent,
    truth_lines,
)
from nas_jax.inspect.page import facts, picture, table
from nas_jax.inspect.run_files import RunFiles


def diagnosis_section(run: RunFiles) -> str:
    """The table and the picture; "" where no diagnosis was made."""
    found = run.negatives
    if found is None:
        return ""
    rows = [[html.escape(cell) for cell in cells(one)] for one in all_kinds(found)]
    notes = "".join(
        f'<p class="note">{html.escape(line)}</p>' for line in (headline(found), *LEGEND)
    )
    truth = ""
    if found.truth:
        lines = [(text, percent(share)) for text, share in truth_lines(found.truth)]
        if found.published_truth:
            other = [percent(share) for _, share in truth_lines(found.published_truth)]
            lines = [
                (text, f"{share} (published form: {beside})")
                for (text, share), beside in zip(lines, other, strict=True)
            ]
        truth = f"<h3>What the scenes say of the changed pictures</h3>{facts(lines)}"
    pictures = [picture(path) for path in run.pictures if path.name == NEGATIVES_PICTURE]
    return notes + table(header(), rows, len(header()) - 1) + truth + "".join(pictures)
