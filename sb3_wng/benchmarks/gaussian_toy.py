"""Fig. 1 of the WNPG paper (arXiv 2010.05380): descent of E[psi(x)] over Gaussians whose optimum is a point mass.

psi(x) = sum_i (1 - sinc x_i), sinc x = sin(x)/x, x ~ N(mu, diag(variance)) in 100 dimensions (the printed eq. 19 has the
other sign). All is float64 and exact up to rounding: E[sinc X] = int_0^1 cos(mu t) exp(-variance t^2 / 2) dt, by quadrature.
Parameters are mu and v; ``"log"``: variance = e^{2v}; ``"diagonal"``: variance = v.

What the paper leaves open, as chosen here: the start is mu ~ 2 N(0, 1) (one draw) and a spread of 2 in every dimension; mu
and v move at the same time; variances are kept at or above 1e-200 and means below 1e-100 count as 0; a penalised method takes
ten gradient steps from each reference distribution, since a penalty has no gradient in the first; all steps are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sb3_wng.benchmarks.records import append_records

Array = NDArray[np.float64]

N_DIMENSIONS, N_ITERATIONS, N_INNER = 100, 4000, 10
MIN_VARIANCE, MIN_MEAN = 1e-200, 1e-100  # numbers that underflow would slow everything down
NODES, WEIGHTS = ((values + offset) / 2 for values, offset in zip(np.polynomial.legendre.leggauss(32), (1, 0), strict=True))
PARAMETERIZATIONS = ("log", "diagonal")
GRADIENTS = ("SGD", "FNG", "WNG")
RATE, PENALTY = 0.9, 0.1  # the paper's, unless they are varied
RATES = (0.03, 0.1, 0.3, 0.9, 1.8, 2.7, 4.0)
PENALTIES = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Method:
    """A gradient, with or without a penalty on the distance from a reference distribution.

    :param gradient: ``"SGD"``, ``"FNG"`` or ``"WNG"``: Euclidean, or natural in the Fisher or the Wasserstein metric
    :param penalty: ``None``, ``"W2"``: (beta/2) W2^2 (eq. 4), or ``"KL"``: beta KL (eq. 3)
    """

    gradient: str
    penalty: str | None = None

    @property
    def name(self) -> str:
        if self.penalty is None:
            return self.gradient
        return f"{self.penalty} penalty" if self.gradient == "SGD" else f"{self.gradient} + {self.penalty} penalty"


METHODS = (Method("WNG"), Method("FNG"), Method("SGD"), Method("SGD", "W2"), Method("SGD", "KL"), Method("WNG", "W2"))


def loss(mean: Array, variance: Array) -> Array:
    """E[1 - sinc X] per dimension, shape (d,), without cancellation near the optimum."""
    decay = -np.multiply.outer(variance, NODES**2) / 2
    swing = np.sin(np.multiply.outer(mean, NODES) / 2)
    return (-np.expm1(decay) + 2 * np.exp(decay) * swing**2) @ WEIGHTS


def loss_gradient(mean: Array, variance: Array) -> tuple[Array, Array]:
    """Derivatives of :func:`loss` in the mean and in the variance, each of shape (d,)."""
    decay = np.exp(-np.multiply.outer(variance, NODES**2) / 2)
    angle = np.multiply.outer(mean, NODES)
    return (decay * np.sin(angle)) @ (WEIGHTS * NODES), (decay * np.cos(angle)) @ (WEIGHTS * NODES**2 / 2)


def penalty_gradient(kind: str, mean: Array, variance: Array, reference: tuple[Array, Array]) -> tuple[Array, Array]:
    """Derivatives of W2^2 / 2, or of KL(q | reference), in the mean and in the variance."""
    mean_0, variance_0 = reference
    if kind == "W2":
        return mean - mean_0, (1 - np.sqrt(variance_0 / variance)) / 2
    return (mean - mean_0) / variance_0, (1 / variance_0 - 1 / variance) / 2


def direction(
    gradient: str, parameterization: str, variance: Array, by_mean: Array, by_variance: Array
) -> tuple[Array, Array]:
    """Turn derivatives in mean and variance into the (natural) gradient in mean and v, eqs 21-24."""
    is_log = parameterization == "log"
    by_v = 2 * variance * by_variance if is_log else by_variance
    if gradient == "SGD":
        return by_mean, by_v
    if gradient == "FNG":
        return variance * by_mean, by_v / 2 if is_log else 2 * variance**2 * by_v
    return by_mean, by_v / variance if is_log else 4 * variance * by_v


def descend(
    method: Method, parameterization: str, rate: float, penalty: float, mean: Array, variance: Array, n_iterations: int
) -> Iterator[tuple[Array, Array]]:
    """Mean and variance after 0, 1, ... iterations; ends early where nothing moves any more or something overflowed."""
    yield mean, variance
    reference = mean, variance
    for iteration in range(n_iterations):
        by_mean, by_variance = loss_gradient(mean, variance)
        if method.penalty is not None:
            if iteration % N_INNER == 0:
                reference = mean, variance
            extra_mean, extra_variance = penalty_gradient(method.penalty, mean, variance, reference)
            by_mean, by_variance = by_mean + penalty * extra_mean, by_variance + penalty * extra_variance
        step_mean, step_v = direction(method.gradient, parameterization, variance, by_mean, by_variance)
        start = mean, variance
        mean = mean - rate * step_mean
        mean = np.where(np.abs(mean) < MIN_MEAN, 0.0, mean)
        moved = variance * np.exp(-2 * rate * step_v) if parameterization == "log" else variance - rate * step_v
        variance = np.maximum(moved, MIN_VARIANCE)
        yield mean, variance
        is_finite = np.isfinite(mean).all() and np.isfinite(variance).all()
        if not is_finite or (np.array_equal(mean, start[0]) and np.array_equal(variance, start[1])):
            return


def start(n_dimensions: int = N_DIMENSIONS) -> tuple[Array, Array]:
    """Mean and variance that all methods start from."""
    return 2 * np.random.default_rng(0).standard_normal(n_dimensions), np.full(n_dimensions, 4.0)


def recorded_iterations(n_iterations: int) -> set[int]:
    """Evenly spaced on a logarithmic axis, and more of them where the natural gradients cross."""
    return {0, *np.geomspace(1, n_iterations, 60).round().astype(int).tolist(), *range(100, min(200, n_iterations), 5)}


def trace(
    panel: str,
    method: Method,
    parameterization: str,
    rate: float,
    penalty: float,
    n_iterations: int = N_ITERATIONS,
    n_dimensions: int = N_DIMENSIONS,
) -> list[dict[str, object]]:
    """Records of one descent; those of a sweep only have the end. The loss is the mean over dimensions; NaN: overflowed."""
    wanted = recorded_iterations(n_iterations) if panel == "curve" else {n_iterations}
    records = []
    with np.errstate(all="ignore"):  # a rate or penalty that is too large may overflow: that is a result
        path = descend(method, parameterization, rate, penalty, *start(n_dimensions), n_iterations)
        mean, variance = start(n_dimensions)
        for iteration in range(n_iterations + 1):
            mean, variance = next(path, (mean, variance))
            if iteration in wanted:
                records.append(
                    {
                        "experiment": "gaussian_toy",
                        "panel": panel,
                        "algorithm": method.name,
                        "parameterization": parameterization,
                        "rate": rate,
                        "penalty": penalty if method.penalty else "",
                        "iteration": iteration,
                        "loss": f"{loss(mean, variance).mean():.5g}",
                        "first_mean": f"{mean[0]:.5g}",
                        "first_std": f"{np.sqrt(variance[0]):.5g}",
                    }
                )
    return records


def write(path: Path) -> None:
    """Measure all panels: curves and paths, and sweeps of the rate and of the penalty's strength."""
    records = []
    for parameterization in PARAMETERIZATIONS:
        for method in METHODS:
            records += trace("curve", method, parameterization, RATE, PENALTY)
            if method.penalty is None:
                for rate in RATES:
                    records += trace("rate", method, parameterization, rate, PENALTY)
            else:
                for penalty in PENALTIES:
                    records += trace("penalty", method, parameterization, RATE, penalty)
    path.unlink(missing_ok=True)
    append_records(path, records)
