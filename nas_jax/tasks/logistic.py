"""Logistic regression on features, with the weight decay that is best on a part of them.

By L-BFGS, as the linear probes of CLIP (Radford et al. 2021, appendix A.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize

PENALTIES = tuple(10.0**power for power in range(-6, 2))
HELD_OUT = 0.2  # of the rows, to choose the penalty
ITERATIONS = 1000  # of L-BFGS, at most


@dataclass(frozen=True)
class Probe:
    """Logistic regression on features that are brought to mean 0 and variance 1."""

    mean_F: np.ndarray
    scale_F: np.ndarray
    weights_FxC: np.ndarray
    bias_C: np.ndarray
    penalty: float

    def logits(self, feature_NxF: np.ndarray) -> np.ndarray:
        """(N, C)."""
        return (feature_NxF - self.mean_F) / self.scale_F @ self.weights_FxC + self.bias_C


def fit(feature_NxF: np.ndarray, class_N: np.ndarray, classes: int, penalty: float) -> Probe:
    """The weights W of least mean cross-entropy + penalty / 2 times the sum of W's squares."""
    mean_F, scale_F = feature_NxF.mean(0), feature_NxF.std(0)
    scale_F = np.where(scale_F > 1e-6 * max(1e-30, float(scale_F.max())), scale_F, 1.0)
    known_NxF, labels_N = jnp.asarray((feature_NxF - mean_F) / scale_F), jnp.asarray(class_N)
    shape = (known_NxF.shape[1] + 1, classes)

    @jax.jit
    def loss_and_gradient(flat):
        def loss(flat):
            w = flat.reshape(shape)
            logits_NxC = known_NxF @ w[:-1] + w[-1]
            each_N = optax.softmax_cross_entropy_with_integer_labels(logits_NxC, labels_N)
            return each_N.mean() + penalty / 2 * jnp.square(w[:-1]).sum()

        return jax.value_and_grad(loss)(flat)

    def objective(flat):
        value, gradient = loss_and_gradient(jnp.asarray(flat, jnp.float32))
        return float(value), np.asarray(gradient, np.float64)

    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS}
    found = minimize(objective, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B",
                     options=options)  # fmt: skip
    w = found.x.reshape(shape).astype(np.float32)
    return Probe(mean_F, scale_F, w[:-1], w[-1], penalty)


def fit_best(feature_NxF: np.ndarray, class_N: np.ndarray, classes: int, seed: int = 0) -> Probe:
    """`fit` to all pictures with the penalty that is best on HELD_OUT of them, fitted to the rest.

    Among equals the largest.
    """
    order_N = np.random.default_rng(seed).permutation(len(class_N))
    held, kept = np.split(order_N, [max(1, round(HELD_OUT * len(order_N)))])

    def right(penalty: float) -> float:
        probe = fit(feature_NxF[kept], class_N[kept], classes, penalty)
        return float((probe.logits(feature_NxF[held]).argmax(1) == class_N[held]).mean())

    best = max(PENALTIES, key=lambda penalty: (right(penalty), penalty))
    return fit(feature_NxF, class_N, classes, best)
