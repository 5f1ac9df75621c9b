"""What a visual dictionary has learned, as numbers: how often its codes are used, the patches that
are nearest to each, and the codes that are nearest to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from nas_jax.methods.method import Method, MethodState
from nas_jax.models.codebook import IDLE_STEPS, idle
from nas_jax.typing import Params
from nas_jax.utils.errors import ConfigError

BATCH = 64  # pictures of a call
CODES, PATCHES, NEIGHBOURS = 32, 6, 3  # drawn; of each code the last two


@dataclass(frozen=True)
class CodesRead:
    """The codes of the patches of I pictures."""

    code_ids_IxN: np.ndarray
    distance_IxN: np.ndarray  # squared, of a patch's feature to its code
    codes_KxD: np.ndarray
    idle_K: np.ndarray  # True for codes that no patch of the training chose lately

    @property
    def shares_K(self) -> np.ndarray:
        """The share of the patches that chose each code."""
        return np.bincount(self.code_ids_IxN.ravel(), minlength=len(self.codes_KxD)) / (
            self.code_ids_IxN.size
        )


@dataclass(frozen=True)
class CodeFound:
    """One code. A patch is (index of its picture, its number in the picture, row by row)."""

    code: int
    share: float  # of the patches
    patches: tuple[tuple[int, int], ...]  # nearest first, one a picture
    neighbours: tuple[int, ...]  # nearest first, of the codes in use
    neighbour_patches: tuple[tuple[int, int], ...]  # the nearest patch of each


@dataclass(frozen=True)
class DictionaryFound:
    """What is drawn of a dictionary. Shares are between 0 and 1."""

    run: str
    data: str
    pictures: int
    patches: int
    codes: int  # K
    used: int  # codes that a patch of these pictures chose
    perplexity: float  # of the shares: as many codes, used evenly, would be as varied
    idle_share: float
    first: int  # place of the first code drawn, by use; 1 is the most used
    most_used: tuple[CodeFound, ...]


def read_codes(
    method: Method, params: Params, state: MethodState, images: Sequence[np.ndarray]
) -> CodesRead:
    """Reads pictures, uint8 (H, W, 3), in the dictionary as it was saved.

    Raises ConfigError where the method has none.
    """
    read = jax.jit(method.patch_codes)
    size, ids, distances, found = min(BATCH, len(images)), [], [], None
    for start in range(0, len(images), size):
        part = np.stack(images[start : start + size])
        # the last call is padded: each shape is compiled
        full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        found = read(params, state, full)
        if found is None:
            break
        ids.append(np.asarray(found.code_ids_BxN)[: len(part)])
        distances.append(np.asarray(found.distance_BxN)[: len(part)])
    if found is None:
        raise ConfigError(
            f"method {method.config.name} without a visual dictionary",
            "a method that has one",
            "look at a run of NAS with method.dictionary.enabled",
        )
    codes_KxD, idle_K = np.asarray(found.state.codes_KxD), np.asarray(idle(found.state))
    return CodesRead(np.concatenate(ids), np.concatenate(distances), codes_KxD, idle_K)


def perplexity(shares_K: np.ndarray) -> float:
    """exp(entropy): K where all codes are used evenly, 1 where there is only one."""
    used = shares_K[shares_K > 0]
    return float(np.exp(-np.sum(used * np.log(used))))


def nearest_patches(read: CodesRead, code: int, count: int) -> tuple[tuple[int, int], ...]:
    """The patches with that code whose features are nearest to it, the best of each picture; equal
    ones in the order of the pictures.
    """
    distance_IxN = np.where(read.code_ids_IxN == code, read.distance_IxN, np.inf)
    best_I = distance_IxN.argmin(1)
    least_I = distance_IxN.min(1)
    order = np.argsort(least_I, kind="stable")[:count]
    return tuple((int(one), int(best_I[one])) for one in order if np.isfinite(least_I[one]))


def nearest_codes(read: CodesRead, code: int, count: int) -> tuple[int, ...]:
    """The codes in use whose vectors are nearest to that of `code`."""
    others = np.flatnonzero(read.shares_K)
    others = others[others != code]
    away = read.codes_KxD[others].astype(np.float64) - read.codes_KxD[code]
    return tuple(others[np.argsort((away**2).sum(1), kind="stable")[:count]].tolist())


def summed_up(read: CodesRead, run: str, data: str, first: int = 1) -> DictionaryFound:
    """The numbers of all codes, and what is drawn of the most used ones, from place `first` on.

    Raises ConfigError where so many codes are not in use.
    """
    shares_K = read.shares_K
    used = int((shares_K > 0).sum())
    if not 1 <= first <= used:
        raise ConfigError(f"--from {first}", f"1 to {used}, the codes in use", "name a lower place")
    most_used = []
    for code in np.argsort(-shares_K, kind="stable")[first - 1 : used][:CODES].tolist():
        near = nearest_codes(read, code, NEIGHBOURS)
        firsts = tuple(nearest_patches(read, other, 1)[0] for other in near)
        patches = nearest_patches(read, code, PATCHES)
        most_used.append(CodeFound(code, float(shares_K[code]), patches, near, firsts))
    return DictionaryFound(
        run,
        data,
        *(len(read.code_ids_IxN), read.code_ids_IxN.size, len(shares_K), used),
        perplexity(shares_K),
        float(read.idle_K.mean()),
        first,
        tuple(most_used),
    )


def headline(found: DictionaryFound) -> str:
    """Codes in use, perplexity and idle share in a line."""
    return (
        f"{found.used} of {found.codes} codes in use, perplexity {found.perplexity:.1f}, "
        f"{100 * found.idle_share:.0f} % idle (chosen by no patch of the last {IDLE_STEPS} batches)"
    )


def source(found: DictionaryFound) -> str:
    """What was read."""
    return f"{found.run}, on {found.patches} patches of {found.pictures} pictures of {found.data}"


def numbers(found: DictionaryFound) -> dict[str, Any]:
    """For JSON."""
    return asdict(found)
