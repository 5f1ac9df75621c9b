"""What every source yields: one picture with its captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Record:
    """One picture with its captions.

    A source offers ``len(source)`` and ``source[i] -> Record``, is picklable, and is cheap to open
    in a worker.
    """

    key: str  # unique within the source
    image: bytes | np.ndarray  # an encoded file, or uint8 (H, W, 3) RGB
    captions: tuple[str, ...]  # alternatives, each true of the picture
    image_id: int  # equal for records that show the same picture content
