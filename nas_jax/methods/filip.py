"""FILIP: Fine-grained Interactive Language-Image Pre-Training (Yao et al., ICLR 2022).

Pictures and texts are compared token by token: each patch looks for its best word and each word for
its best patch. So a dual encoder learns which words belong to which places, and its features can
still be computed beforehand.

Source: the loss as reports of the paper give it, with padding left out. Not checked against the
paper: which tokens are kept (`share`), the optimizer. DeCLIP's code (Sense-GVT/DeCLIP) keeps the 16
best tokens of one side and does not mask padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.losses.late import Tokens, every_token, late_loss, late_similarity
from nas_jax.methods.dual import BlockConfig, DualEncoder
from nas_jax.methods.method import MethodState
from nas_jax.models.towers import unit
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree
from nas_jax.utils.errors import ConfigError

SCORES = ("late", "late_image", "late_text")
ROWS, COLUMNS = 16, 64  # pictures and texts that an evaluation compares at once


@dataclass(frozen=True)
class FilipConfig(BlockConfig):
    """How many tokens travel, and how many samples are compared at once."""

    name: str = "filip"
    # of a sample's tokens that other samples see; 1 = all. Not checked against the paper
    share: float = 0.25
    block: int = 32  # of (B, patches, block, words) numbers at a time

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
        if not 0 < self.share <= 1:
            raise ConfigError(f"share={self.share}", "0 < share <= 1", "0.25 is the default")


@dataclass(frozen=True)
class Filip(DualEncoder):
    """Scores: late_image is s^I, late_text is s^T, late is their mean."""

    Config = FilipConfig
    feature_scores = SCORES
    default_scores = ("late",)

    def read(self, params: Params, rows: dict[str, Any]) -> PyTree:
        """Unit features of all patches and of all words; [CLS] of the picture is none."""
        net = self.apply(params)
        image_BxTxD, _ = net.encode_image(rows["image_BxHxWx3"])
        mask_BxL = rows["token_mask_BxL"]
        text_BxLxD, _ = net.encode_text(rows["token_ids_BxL"], mask_BxL, rows["seeds_B"])
        image = every_token(unit(net.image_proj(image_BxTxD[:, 1:])))
        return image, Tokens(unit(net.text_proj(text_BxLxD)), mask_BxL)

    def compare_batch(
        self, params: Params, read: PyTree, temp: Array, batch: Batch
    ) -> tuple[Array, Metrics]:
        """See `losses/late.py`."""
        image, text = read
        return late_loss(image, text, temp, self.config.share, self.config.block), {}

    # ---------------------------------------------------------------------------------- scoring

    def encode_image(
        self, params: Params, state: MethodState, image_BxHxWx3: Array, tokens: str = "method"
    ) -> tuple[Array, Array]:
        """Image tokens (B, T, D), and unit features of the patches (B, N, E)."""
        net = self.apply(params)
        tokens_BxTxD, _ = net.encode_image(image_BxHxWx3)
        return tokens_BxTxD, unit(net.image_proj(tokens_BxTxD[:, 1:]))

    def encode_text(
        self, params: Params, token_ids_BxL: Array, token_mask_BxL: Array
    ) -> tuple[Array, Array]:
        """Text tokens (B, L, D), and features of the words (B, L, E + 1): a unit vector each, and
        behind it 1, or 0 on padding.
        """
        net = self.apply(params)
        tokens_BxLxD, _ = net.encode_text(token_ids_BxL, token_mask_BxL)
        unit_BxLxE = unit(net.text_proj(tokens_BxLxD))
        mask_BxLx1 = token_mask_BxL[..., None].astype(unit_BxLxE.dtype)
        return tokens_BxLxD, jnp.concatenate([unit_BxLxE, mask_BxLx1], axis=-1)

    def compare(self, name: str, image_RxE: np.ndarray, text_CxE: np.ndarray) -> np.ndarray:
        """A score of R pictures (R, N, E) with C texts (C, L, E + 1), on the device, in blocks."""
        out_RxC = np.empty((len(image_RxE), len(text_CxE)), np.float32)
        part = SCORES.index(name)
        for row in range(0, len(image_RxE), ROWS):
            rows = image_RxE[row : row + ROWS]
            for column in range(0, len(text_CxE), COLUMNS):
                texts = text_CxE[column : column + COLUMNS]
                found = np.asarray(_scores(_filled(rows), _filled(texts))[part])
                found_RxC = found[: len(rows), : len(texts)]
                out_RxC[row : row + ROWS, column : column + COLUMNS] = found_RxC
        return out_RxC


def _filled(x: np.ndarray) -> np.ndarray:
    """Repeats the last row up to a power of two, so that few shapes are compiled."""
    missing = (1 << (len(x) - 1).bit_length()) - len(x)
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])


@jax.jit
def _scores(image_RxNxE: Array, text_CxLxE: Array) -> tuple[Array, Array, Array]:
    """`SCORES` of all pairs, (R, C) each."""
    image, text = every_token(image_RxNxE), Tokens(text_CxLxE[..., :-1], text_CxLxE[..., -1] > 0)
    with jax.default_matmul_precision("highest"):
        by_image, by_text = late_similarity(image, text), late_similarity(text, image).T
    return (by_image + by_text) / 2, by_image, by_text
