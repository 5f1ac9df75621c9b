"""Why a picture cannot be used."""

from __future__ import annotations

UNKNOWN_RANGE = {mode: f"unknown range of mode {mode}" for mode in ("F", "I", "I;16", "RGB")}
"""Pillow's mode -> the reason where nothing says which values of it are black and white."""
# what ImageError.reason may be
REASONS = (
    "empty file",
    "not an image",
    "image too large",
    "damaged image",
    *UNKNOWN_RANGE.values(),
)


class ImageError(ValueError):
    """Bytes that are no usable picture. `reason` is one of REASONS, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason} ({detail})")

    def __reduce__(self):
        # Exception would pass on the one joined string
        return type(self), (self.reason, self.detail)
