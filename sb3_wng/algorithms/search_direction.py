"""From returns to a search direction: fitness shaping and the gradient estimate of antithetic pairs."""

from __future__ import annotations

import math

import torch as th

from sb3_wng.geometry import damped_solve

FITNESS_SHAPINGS = ("centered_rank", "standardize", "utility", "none")


def shape_fitness(values: th.Tensor, shaping: str) -> th.Tensor:
    """Values (n,) on a scale that does not depend on the task.

    :param values: returns or bonuses, finite
    :param shaping: ``"centered_rank"``: ranks in [-.5, .5], equal for equal values. ``"standardize"``: mean 0, variance 1
        (zeros if all are equal). ``"utility"``: :func:`utilities`. ``"none"``: as they are
    :raises ValueError: for another shaping
    """
    if shaping == "centered_rank":
        return centered_ranks(values)
    if shaping == "standardize":
        deviation = values - values.mean()
        std = deviation.square().mean().sqrt()
        # rounding alone spreads equal values by some units in the last place
        is_flat = std <= 1e-7 * values.abs().max()
        return th.zeros_like(values) if is_flat else deviation / std
    if shaping == "utility":
        return utilities(values)
    if shaping == "none":
        return values
    raise ValueError(f"fitness_shaping must be one of {', '.join(map(repr, FITNESS_SHAPINGS))}, got {shaping!r}")


def centered_ranks(values: th.Tensor) -> th.Tensor:
    """Ranks scaled to [-.5, .5] (Salimans et al. 2017); equal values share the mean of their ranks. Shape (n,)."""
    _, inverse, counts = th.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum(0) - 0.5 * (counts + 1)
    return (mean_ranks[inverse] / max(len(values) - 1, 1) - 0.5).to(values.dtype)


def utilities(values: th.Tensor) -> th.Tensor:
    """Logarithms of ranks, of mean 0 and variance 1: the best few count most, the worse half alike; shape (n,).

    Equal values share the mean of their utilities. Wierstra et al. (2014), Natural evolution strategies, section 3.1.
    """
    n = len(values)
    best_last = (math.log(n / 2 + 1) - th.arange(n, 0, -1, dtype=th.float64).log()).clamp_min(0)
    best_last = best_last - best_last.mean()
    best_last = best_last / best_last.square().mean().sqrt()
    _, inverse, counts = th.unique(values, return_inverse=True, return_counts=True)
    means = th.stack([shared.mean() for shared in best_last.split(counts.tolist())])
    return means[inverse].to(values.dtype)


def antithetic_gradient(fitness: th.Tensor, noise: th.Tensor, delta_std: float) -> th.Tensor:
    r"""Gradient estimate :math:`\frac{1}{2 P \sigma} \sum_i \epsilon_i (F_{i+} - F_{i-})` (eq. 13), shape (p,).

    :param fitness: shape (2 P,): pair by pair, + before -
    :param noise: epsilon, shape (P, p)
    :param delta_std: sigma
    """
    plus, minus = fitness.reshape(-1, 2).unbind(dim=1)
    return (plus - minus).to(noise) @ noise / (2 * len(noise) * delta_std)


def natural_direction(
    gradient: th.Tensor, factor: th.Tensor, damping: float, natural_coef: float, diagonal_damping: bool = False
) -> th.Tensor:
    r"""Direction between gradient and natural gradient (eq. 15), with the length of the gradient; shape (p,).

    :math:`(1 - \delta) \Lambda g + \delta \lambda g_W = \Lambda (g - \delta q)` with
    :math:`g_W = (T^\top T + \lambda \Lambda^{-1})^{-1} g` and q what the metric takes away from g. As printed,
    :math:`(1 - \delta) g + \delta g_W` mixes lengths that differ by :math:`1/\lambda`. delta = 1 is the natural gradient,
    which keeps behaviour near; delta < 0 strengthens what changes it. It ascends for every delta <= 1.

    :param gradient: g
    :param factor: T, shape (r, p), in any unit: it is scaled so that the eigenvalues of T T^T have a mean of 1
    :param damping: lambda > 0, relative to that mean
    :param natural_coef: delta <= 1
    :param diagonal_damping: whether :math:`\Lambda^{-1}` are the column norms of T (scaled to a mean of 1) or all 1
    """
    mean_eigenvalue = factor.double().square().sum() / max(len(factor), 1)
    if not mean_eigenvalue > 0:  # behaviour does not depend on the parameters at all
        return gradient
    factor = factor / mean_eigenvalue.sqrt().to(factor)
    diagonal = None
    if diagonal_damping:
        column_norms = factor.norm(dim=0)
        diagonal = column_norms / column_norms.mean() + 1e-3
    natural = damped_solve(factor, gradient, damping, diagonal)
    plain = gradient if diagonal is None else gradient / diagonal
    direction = (1 - natural_coef) * plain + natural_coef * damping * natural  # eq. 15
    length = direction.norm()
    return direction * (gradient.norm() / length) if length > 0 else gradient


def clip_direction(direction: th.Tensor, delta_std: float, max_grad_norm: float | None) -> tuple[th.Tensor, float]:
    r"""Shorten a direction to ``max_grad_norm``, and its norm before, both in units of :math:`\sqrt{p}/\sigma`.

    In these units the norm is the fitness that one standard deviation of the noise changes per (root mean square)
    parameter: about (fitness' standard deviation) / sqrt(2 P) where the fitness is noise, whatever the network, its size and
    delta_std; less where the two of a pair share their luck, more where there is something to climb.
    """
    norm = direction.norm().item() * delta_std / math.sqrt(len(direction))
    is_long = max_grad_norm is not None and norm > max_grad_norm
    return (direction * (max_grad_norm / norm) if is_long else direction), norm
