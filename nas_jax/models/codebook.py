"""The visual dictionary's codebook: a vector quantizer with functional state.

Source: NAS (Wang et al., AAAI 2025; NAS_ALBEF code, models/sohonecks.py) after SOHO (Huang et al.
2021, section 3.2). The codes are never trained by gradient: they follow the features by exponential
moving averages of their counts and sums. The state is a pytree like any other part of the training
state; its numbers are those of the global batch.

Two quirks of the authors' code are kept behind `DictionaryConfig.literal` and are off by default:
counts and sums that start at zero, so that every code unused so far becomes the zero vector; and a
LayerNorm over the two gate values, which leaves a gate with only two states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.typing import Array, Metrics
from nas_jax.utils.errors import ConfigError

SMOOTHING = 1e-5  # of the cluster sizes in the authors' update
DECAYS = ("ramp", "constant")
IDLE_STEPS = 100  # a code that no patch chose for longer is idle


@dataclass(frozen=True)
class DictionaryConfig:
    """The codebook, its update and its gate."""

    enabled: bool = True
    codes: int = 2048  # K
    # "ramp": the NAS code's, from decay_min to 1 at ramp_share of the run; "constant": decay_min
    decay: str = "ramp"
    decay_min: float = 0.2  # first value of the ramp (the code's 0.2); SOHO's constant is 0.4
    ramp_share: float = 0.9  # share of the run after which the ramp has frozen the dictionary
    # stop the update when NVA starts, as the authors' second stage does
    freeze_with_nva: bool = True
    data_start: bool = True  # codes start as features of the first batch instead of noise
    revive_every: int = 100  # steps between revivals of dead codes; 0 = never
    dead_below: float = 1e-3  # a code is dead when its count is below this share of the mean count
    literal: bool = False  # the authors' two-valued gate, zero start and dying codes

    def validate(self) -> None:
        """Raises ConfigError on values outside their range."""
        if self.codes < 2:
            raise ConfigError(f"codes={self.codes}", "at least 2 codes", "2048 is the authors'")
        if self.decay not in DECAYS:
            raise ConfigError(
                f"decay={self.decay!r}",
                f"one of {', '.join(DECAYS)}",
                "set one of them",
            )
        if not 0 <= self.decay_min <= 1 or not 0 < self.ramp_share <= 1:
            raise ConfigError(
                f"decay_min={self.decay_min}, ramp_share={self.ramp_share}",
                "shares between 0 and 1",
                "0.2 and 0.9 are the authors'",
            )


@flax.struct.dataclass
class DictionaryState:
    """Codes and the statistics they follow; all float32 but the integer steps."""

    codes_KxD: Array
    counts_K: Array  # moving average of how many patches chose the code
    sums_KxD: Array  # moving average of the sum of their features
    last_use_K: Array  # step at which the code was last chosen
    step: Array  # updates seen, also while frozen

    def renumbered(self, by: int | Array) -> DictionaryState:
        """With so many more steps: the ages of codes stay, and so does being past the start."""
        step = jnp.where(self.step > 0, jnp.maximum(self.step + by, 1), 0)
        return replace(self, step=step, last_use_K=self.last_use_K + step - self.step)


def init_dictionary(key: Array, num_codes: int, dim: int, literal: bool = False) -> DictionaryState:
    """Gaussian codes. Counts and sums agree with them, or are zero in the literal mode."""
    codes_KxD = jax.random.normal(key, (num_codes, dim), jnp.float32)
    return DictionaryState(
        codes_KxD=codes_KxD,
        counts_K=jnp.zeros(num_codes) if literal else jnp.ones(num_codes),
        sums_KxD=jnp.zeros((num_codes, dim)) if literal else codes_KxD + 0.0,
        last_use_K=jnp.full((num_codes,), -1, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def squared_distances(features_MxD: Array, codes_KxD: Array) -> Array:
    """||x - e||^2 of every feature to every code, (M, K), float32: a bf16 argmin is unstable."""
    x, e = features_MxD.astype(jnp.float32), codes_KxD.astype(jnp.float32)
    dots_MxK = jnp.einsum("md,kd->mk", x, e, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(x * x, -1)[:, None] + jnp.sum(e * e, -1)[None] - 2 * dots_MxK


def nearest_code(features_BxNxD: Array, codes_KxD: Array) -> tuple[Array, Array]:
    """Index of the nearest code of each feature (B, N), and the squared distance to it."""
    batch, patches, dim = features_BxNxD.shape
    distances_MxK = squared_distances(
        jax.lax.stop_gradient(features_BxNxD).reshape(-1, dim), codes_KxD
    )
    code_ids_M = jnp.argmin(distances_MxK, axis=-1).astype(jnp.int32)
    return code_ids_M.reshape(batch, patches), jnp.min(distances_MxK, axis=-1).reshape(
        batch, patches
    )


def straight_through(features: Array, quantized: Array) -> Array:
    """The quantized value with the gradient of the feature (van den Oord et al. 2017)."""
    return features + jax.lax.stop_gradient(quantized - features)


def decay_at(config: DictionaryConfig, step: Array, total_steps: int) -> Array:
    """Decay of the moving averages; 1 freezes the dictionary. `step` counts from 0."""
    if config.decay == "constant":
        return jnp.float32(config.decay_min)
    ramp_steps = max(1, math.ceil(config.ramp_share * total_steps))
    return jnp.clip(step / ramp_steps, config.decay_min, 1.0).astype(jnp.float32)


def ema_update(
    state: DictionaryState,
    features_BxNxD: Array,
    code_ids_BxN: Array,
    decay: Array,
    literal: bool = False,
) -> DictionaryState:
    """One moving-average step of counts, sums and codes on a (global) batch.

    N <- g N + (1-g) n ;  M <- g M + (1-g) s ;  E = M / N for codes with a patch in this batch;
    the others keep E.
    Literal mode: E = M / smoothed(N) for every code, so unused ones go to zero. A decay of 1
    changes nothing.
    """
    num_codes, dim = state.codes_KxD.shape
    features_MxD = jax.lax.stop_gradient(features_BxNxD).reshape(-1, dim).astype(jnp.float32)
    code_ids_M = code_ids_BxN.reshape(-1)
    batch_counts_K = jnp.zeros(num_codes).at[code_ids_M].add(1.0)
    batch_sums_KxD = jnp.zeros((num_codes, dim)).at[code_ids_M].add(features_MxD)
    counts_K = decay * state.counts_K + (1 - decay) * batch_counts_K
    sums_KxD = decay * state.sums_KxD + (1 - decay) * batch_sums_KxD
    if literal:
        total = counts_K.sum()
        smoothed_K = (counts_K + SMOOTHING) / (total + num_codes * SMOOTHING) * total
        codes_KxD = sums_KxD / smoothed_K[:, None]
    else:
        means_KxD = sums_KxD / jnp.maximum(counts_K, 1e-12)[:, None]
        codes_KxD = jnp.where(batch_counts_K[:, None] > 0, means_KxD, state.codes_KxD)
    moving = decay < 1
    return replace(
        state,
        codes_KxD=jnp.where(moving, codes_KxD, state.codes_KxD),
        counts_K=jnp.where(moving, counts_K, state.counts_K),
        sums_KxD=jnp.where(moving, sums_KxD, state.sums_KxD),
        last_use_K=jnp.where(batch_counts_K > 0, state.step, state.last_use_K),
        step=state.step + 1,
    )


def start_from_data(state: DictionaryState, features_BxNxD: Array, key: Array) -> DictionaryState:
    """Replaces all codes by features drawn from the batch, each counted once.

    Each code gets a stretch of the batch of its own and draws from that: no two codes are the same
    feature where there are enough, and nothing has to be sorted.
    """
    num_codes, dim = state.codes_KxD.shape
    features_MxD = jax.lax.stop_gradient(features_BxNxD).reshape(-1, dim).astype(jnp.float32)
    stretch = max(1, features_MxD.shape[0] // num_codes)
    rows_K = jnp.arange(num_codes) * stretch + jax.random.randint(key, (num_codes,), 0, stretch)
    codes_KxD = features_MxD[rows_K % features_MxD.shape[0]]
    return replace(state, codes_KxD=codes_KxD, counts_K=jnp.ones(num_codes), sums_KxD=codes_KxD)


def idle(state: DictionaryState) -> Array:
    """True for codes (K,) that no patch chose for more than IDLE_STEPS steps."""
    return state.step - state.last_use_K > IDLE_STEPS


def alive(state: DictionaryState, dead_below: float) -> Array:
    """True for codes in use (K,): a count above the share `dead_below` of the mean, and not the
    zero vector.
    """
    counted_K = state.counts_K > dead_below * state.counts_K.mean()
    return counted_K & (jnp.sum(jnp.square(state.codes_KxD), -1) > 0)


def revive_dead(
    state: DictionaryState,
    features_BxNxD: Array,
    distance_BxN: Array,
    key: Array,
    dead_below: float,
) -> DictionaryState:
    """Moves dead codes onto features that the dictionary represents badly.

    Features are drawn without replacement with probability proportional to their squared distance
    to their code, as in k-means++ (Arthur and Vassilvitskii 2007), but at most one from each of as
    many stretches of the batch as there are codes: sorting all features of a large batch would cost
    more. A revived code gets the mean count.
    """
    num_codes, dim = state.codes_KxD.shape
    features_MxD = jax.lax.stop_gradient(features_BxNxD).reshape(-1, dim).astype(jnp.float32)
    log_weight_M = jnp.log(jnp.maximum(distance_BxN.reshape(-1), 1e-12))
    score_M = log_weight_M + jax.random.gumbel(key, log_weight_M.shape)
    stretches = min(num_codes, score_M.shape[0])
    stretch = score_M.shape[0] // stretches
    score_SxM = score_M[: stretches * stretch].reshape(stretches, stretch)
    best_S = jnp.argmax(score_SxM, axis=1) + jnp.arange(stretches) * stretch
    drawn_S = best_S[jnp.argsort(-jnp.max(score_SxM, axis=1))]
    dead_K = ~alive(state, dead_below)
    rank_K = jnp.cumsum(dead_K) - 1  # the n-th dead code takes the n-th drawn feature
    revived_K = dead_K & (rank_K < stretches)
    fresh_KxD = features_MxD[drawn_S[jnp.clip(rank_K, 0, stretches - 1)]]
    count = state.counts_K.mean()
    return replace(
        state,
        codes_KxD=jnp.where(revived_K[:, None], fresh_KxD, state.codes_KxD),
        counts_K=jnp.where(revived_K, count, state.counts_K),
        sums_KxD=jnp.where(revived_K[:, None], fresh_KxD * count, state.sums_KxD),
    )


def quantize(
    config: DictionaryConfig,
    state: DictionaryState,
    features_BxNxD: Array,
    decay: Array,
    key: Array | None = None,
) -> tuple[DictionaryState, Array, Array, Metrics]:
    """Assigns codes with the old dictionary, updates it, and looks the codes up in the new one.

    decay: of the moving averages (`decay_at`); 1 freezes the dictionary. key: of what is drawn in
    an update; None only reads the state.
    Returns the new state, the code ids (B, N), the quantized features (B, N, D) with a
    straight-through gradient, and metrics.
    """
    if key is None:
        code_ids_BxN, distance_BxN = nearest_code(features_BxNxD, state.codes_KxD)
    else:
        state, code_ids_BxN, distance_BxN = _updated(config, state, features_BxNxD, decay, key)
    quantized_BxNxD = straight_through(features_BxNxD, state.codes_KxD[code_ids_BxN])
    share_K = jnp.zeros(config.codes).at[code_ids_BxN.reshape(-1)].add(1.0 / code_ids_BxN.size)
    metrics: Metrics = {
        "dictionary/perplexity": jnp.exp(-jnp.sum(share_K * jnp.log(jnp.maximum(share_K, 1e-12)))),
        "dictionary/used_share": jnp.mean(share_K > 0),
        "dictionary/dead_codes": jnp.sum(~alive(state, config.dead_below)).astype(jnp.float32),
        "dictionary/idle_share": jnp.mean(idle(state)),
        "dictionary/distance": jnp.mean(distance_BxN),
        "dictionary/decay": decay,
    }
    return state, code_ids_BxN, quantized_BxNxD, metrics


def _updated(
    config: DictionaryConfig,
    state: DictionaryState,
    features_BxNxD: Array,
    decay: Array,
    key: Array,
) -> tuple[DictionaryState, Array, Array]:
    """The next state, and the codes and distances of the features by the old one."""
    start_key, revive_key = jax.random.split(key)
    if config.data_start and not config.literal:
        state = jax.lax.cond(
            state.step == 0,
            lambda state: start_from_data(state, features_BxNxD, start_key),
            lambda state: state,
            state,
        )
    code_ids_BxN, distance_BxN = nearest_code(features_BxNxD, state.codes_KxD)
    state = ema_update(state, features_BxNxD, code_ids_BxN, decay, config.literal)
    if config.revive_every and not config.literal:
        state = jax.lax.cond(
            (state.step % config.revive_every == 0) & (decay < 1),
            lambda state: revive_dead(
                state, features_BxNxD, distance_BxN, revive_key, config.dead_below
            ),
            lambda state: state,
            state,
        )
    return state, code_ids_BxN, distance_BxN
