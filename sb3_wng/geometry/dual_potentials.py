"""Potentials of the entropic dual as functions: the other side of :mod:`sb3_wng.geometry.transport`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sb3_wng.geometry.transport import check_positive, check_samples, cost_matrix


class DualFit(NamedTuple):
    """What :meth:`DualPotentials.fit` found."""

    value: Tensor  # dual value, a lower bound of W_gamma; shape ()
    n_steps: int
    converged: bool


class DualPotentials(nn.Module):
    r"""Potentials of the entropic dual as linear functions of random features, warm-started from fit to fit.

    .. math::

        W_\gamma \geq \max_{b_1, b_2} E[u(x)] + E[v(y)] - \gamma \log E\, e^{(u(x) + v(y) - c(x, y)) / \gamma},
        \quad u(x) = b_1 \cdot z(x), \quad v(y) = b_2 \cdot z(y).

    This is the textbook dual :math:`E[u + v] - \gamma E\,e^{(u + v - c)/\gamma} + \gamma` after its maximum over a common
    constant, which is then part of the potentials. Without the logarithm the value falls exponentially in the largest
    violation of u + v <= c; with it a start that is far off, or samples that the fit has not seen, cost a linear amount.

    The features are D Fourier features :math:`\sqrt{2/D} \cos(\omega x + b)`, :math:`\omega \sim N(0, 1)` / width, and the
    coordinates themselves: the potential of a translation is linear, and few cosines make a poor line in many
    dimensions. Samples enter centred and in units of their root mean cost, costs in units of their mean; therefore a
    warm start stays right when the clouds move or grow together.

    **Solver.** The problem is concave in only 2 (D + d) coefficients but badly conditioned, so that first-order steps
    are far from done when they are given up (25 of rate 0.05 from zero reach 2.0 of 2.95 even in these units). Newton's
    method with a backtracking line search on the full batch needs 2 to 10 steps for ordinary clouds and up to 30 for
    heavy tails, from any start. The ridge makes the solution unique, a function of the samples alone, and keeps the
    potentials smooth between them. A step takes O(n m D) operations, a linear solve of size 2 (D + d), and one (n, m)
    matrix per trial of the line search. With fewer samples than features all of this happens in the span of the samples'
    features, of dimension n + m.

    **Bias.** W_gamma between equal clouds is positive, and its potentials are not constant there. A debiased potential
    is the difference of two objects, one fitted on (x, y) minus one fitted on (x, x) *with the first one's gamma*, and then
    0.2 is a better ``entropic_reg`` than 0.05, as in :func:`sinkhorn_distance`. With a gamma of its own the second takes away
    less than it should: a translation's potential would not be linear, and attraction would shrink the cloud, too.

    :param dim: d
    :param n_features: D; 100 to 300
    :param entropic_reg: gamma in units of the mean cost; usually 0.01 to 0.5
    :param width: of the features' Gaussian kernel, in units of the root mean cost (mean cost for the other two costs)
    :param ridge: penalty of ``|b|^2 / 2`` in units of the mean cost; takes less than 1 % off the value of ordinary clouds
    :param max_steps: Newton steps per fit, at most
    :param tolerance: gain still to be expected (half the Newton decrement), in units of the mean cost, at which a fit stops
    :param cost: ``"sqeuclidean"`` for W2^2, ``"euclidean"`` for W1, ``"saturating"``: see :func:`cost_matrix`
    :param seed: of the generator that draws the features

    References: Genevay et al. (NeurIPS 2016), Stochastic optimization for large-scale optimal transport, eq. D_eps;
    Rahimi & Recht (NeurIPS 2007); Pacchiano et al. (2019), Learning to score behaviors, for their use in a penalty.
    """

    frequencies: Tensor  # omega, shape (D, d)
    phases: Tensor  # b, shape (D,)
    coefficients: Tensor  # b_1 and b_2, shape (2, D + d), in units of the mean cost
    offsets: Tensor  # constants added to u and v, shape (2,), in units of the mean cost
    center: Tensor  # of the samples, shape (d,)
    length_scale: Tensor  # unit of the samples, shape ()
    cost_scale: Tensor  # unit of the costs, shape ()
    gamma: Tensor  # of the last fit, in the costs' own unit, shape ()
    n_fits: Tensor
    n_not_converged: Tensor

    def __init__(
        self,
        dim: int,
        n_features: int = 100,
        entropic_reg: float = 0.05,
        width: float = 1.0,
        ridge: float = 3e-4,
        max_steps: int = 100,
        tolerance: float = 1e-6,
        cost: str = "sqeuclidean",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, n_features=n_features, entropic_reg=entropic_reg, width=width, ridge=ridge)
        check_positive(max_steps=max_steps, tolerance=tolerance)
        cost_matrix(torch.zeros(1, 1), torch.zeros(1, 1), cost)  # refuses an unknown cost
        self.entropic_reg = entropic_reg
        self.ridge = ridge
        self.max_steps = max_steps
        self.tolerance = tolerance
        self.cost = cost
        generator = torch.Generator().manual_seed(seed)
        wide = torch.float64
        self.register_buffer("frequencies", torch.randn(n_features, dim, generator=generator, dtype=wide) / width)
        self.register_buffer("phases", 2 * math.pi * torch.rand(n_features, generator=generator, dtype=wide))
        self.register_buffer("coefficients", torch.zeros(2, n_features + dim, dtype=wide))
        self.register_buffer("offsets", torch.zeros(2, dtype=wide))
        self.register_buffer("center", torch.zeros(dim, dtype=wide))
        self.register_buffer("length_scale", torch.ones((), dtype=wide))
        self.register_buffer("cost_scale", torch.ones((), dtype=wide))
        self.register_buffer("gamma", torch.tensor(entropic_reg, dtype=wide))
        self.register_buffer("n_fits", torch.zeros((), dtype=torch.int64))
        self.register_buffer("n_not_converged", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, gamma: Tensor | None = None) -> DualFit:
        """Maximise the dual on samples ``x`` (n, d) and ``y`` (m, d), starting from the previous fit.

        :param gamma: in place of ``entropic_reg`` times their mean cost
        :return: the dual value on these samples, the number of Newton steps, and whether they sufficed; if not,
            ``n_not_converged`` counts it, and the value still is a lower bound
        :raises ValueError: for samples that are empty, not finite or of other dimensions
        """
        self._check(x, y)
        x, y = x.double(), y.double()
        costs = cost_matrix(x, y, self.cost)
        mean_cost = costs.mean()
        self.cost_scale.copy_(torch.where(mean_cost > 0, mean_cost, 1.0))
        self.gamma.copy_(self.entropic_reg * self.cost_scale if gamma is None else gamma)
        self.length_scale.copy_(self.cost_scale.sqrt() if self.cost == "sqeuclidean" else self.cost_scale)
        self.center.copy_(torch.cat([x, y]).mean(dim=0))
        features_x, features_y = self._features(x), self._features(y)
        basis = _row_basis(torch.cat([features_x, features_y]))
        problem = _DualProblem(features_x @ basis, features_y @ basis, costs / self.cost_scale, self._reg, self.ridge)
        start = self.coefficients.double() @ basis
        # The previous potentials may be worse than none once the clouds have changed altogether
        if not problem.objective(start)[0] >= problem.objective(torch.zeros_like(start))[0]:
            start = torch.zeros_like(start)
        coefficients, n_steps, converged = _newton(problem, start, self.max_steps, self.tolerance)
        u, v = problem.potentials(coefficients)
        value, _ = _dual_value(u, v, problem.cost, self._reg)
        # Splits the constant so that both potentials have the same mean
        self.offsets.copy_(0.5 * value - torch.stack([u.mean(), v.mean()]))
        self.coefficients.copy_(coefficients @ basis.T)
        self.n_fits += 1
        self.n_not_converged += not converged
        return DualFit(value * self.cost_scale, n_steps, converged)

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """Dual value of the current potentials on samples that the fit need not have seen; shape (), differentiable.

        A lower bound of W_gamma between the two samples, at the gamma of the last fit.
        """
        self._check(x, y)
        costs = cost_matrix(x.double(), y.double(), self.cost) / self.cost_scale
        u, v = self._potential(x, 0), self._potential(y, 1)
        value, _ = _dual_value(u, v, costs, self._reg)
        return (value * self.cost_scale).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Potential u at ``x`` (n, d), shape (n,), in the unit of the cost; differentiable.

        The derivative of W_gamma with respect to the mass at x, up to a constant: what a score-function estimator
        weighs the sample x by.
        """
        self._check(x)
        return (self._potential(x, 0) * self.cost_scale).to(x.dtype)

    @property
    def _reg(self) -> Tensor:
        return self.gamma / self.cost_scale

    def _potential(self, x: Tensor, side: int) -> Tensor:
        return self._features(x) @ self.coefficients[side].double() + self.offsets[side]

    def _features(self, x: Tensor) -> Tensor:
        """Fourier features and coordinates, shape (n, D + d)."""
        scaled = (x.double() - self.center) / self.length_scale
        waves = torch.cos(scaled @ self.frequencies.double().T + self.phases)
        return torch.cat([math.sqrt(2 / len(self.phases)) * waves, scaled], dim=1)

    def _check(self, x: Tensor, y: Tensor | None = None) -> None:
        check_samples(x, x if y is None else y)
        if x.shape[1] != len(self.center):
            raise ValueError(f"x must have dim={len(self.center)} columns, got shape {tuple(x.shape)}")


def _row_basis(features: Tensor) -> Tensor:
    """Orthonormal directions (F, r) in which coefficients of samples (n, F) lie, r = min(n, F).

    The ridge keeps them zero in all others, so that nothing is lost where there are fewer samples than features.
    """
    n, n_features = features.shape
    if n >= n_features:
        return torch.eye(n_features, dtype=features.dtype, device=features.device)
    basis: Tensor = torch.linalg.qr(features.T)[0]
    return basis


class _DualProblem(NamedTuple):
    """The dual on fixed samples, as a concave function of the coefficients (2, F)."""

    features_x: Tensor  # (n, F)
    features_y: Tensor  # (m, F)
    cost: Tensor  # (n, m), mean 1
    reg: Tensor
    ridge: float

    def potentials(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return self.features_x @ coefficients[0], self.features_y @ coefficients[1]

    def objective(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The dual value less the ridge's penalty, shape (), and the logarithm of the plan, shape (n, m)."""
        value, log_plan = _dual_value(*self.potentials(coefficients), self.cost, self.reg)
        return value - 0.5 * self.ridge * coefficients.square().sum(), log_plan

    def derivatives(self, coefficients: Tensor, log_plan: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (2F,) and negative Hessian (2F, 2F) of the objective."""
        plan, zx, zy = log_plan.exp(), self.features_x, self.features_y
        row_mass, column_mass = plan.sum(dim=1), plan.sum(dim=0)
        under_plan = torch.cat([row_mass @ zx, column_mass @ zy])
        gradient = torch.cat([zx.mean(dim=0), zy.mean(dim=0)]) - under_plan - self.ridge * coefficients.flatten()
        cross = zx.T @ (plan @ zy)
        top = torch.cat([zx.T @ (row_mass[:, None] * zx), cross], dim=1)
        bottom = torch.cat([cross.T, zy.T @ (column_mass[:, None] * zy)], dim=1)
        curvature = (torch.cat([top, bottom]) - torch.outer(under_plan, under_plan)) / self.reg
        curvature.diagonal().add_(self.ridge)
        return gradient, curvature


def _newton(problem: _DualProblem, start: Tensor, max_steps: int, tolerance: float) -> tuple[Tensor, int, bool]:
    """Maximise the problem; returns the coefficients, the number of steps and whether the tolerance was reached."""
    coefficients = start
    value, log_plan = problem.objective(coefficients)
    for n_steps in range(max_steps + 1):
        gradient, curvature = problem.derivatives(coefficients, log_plan)
        direction = torch.linalg.solve(curvature, gradient)
        decrement = gradient.dot(direction)
        if 0.5 * decrement.abs() <= tolerance:
            return coefficients, n_steps, True
        if n_steps == max_steps:
            break
        rate, is_better = 1.0, False
        while not is_better and rate > 1e-9:
            trial = coefficients + rate * direction.view_as(coefficients)
            trial_value, log_plan = problem.objective(trial)
            is_better = bool(trial_value >= value + 0.1 * rate * decrement)  # False for a value that is not finite
            rate *= 0.5
        if not is_better:
            return coefficients, n_steps, False
        coefficients, value = trial, trial_value
    return coefficients, max_steps, False


def _dual_value(u: Tensor, v: Tensor, cost: Tensor, reg: Tensor) -> tuple[Tensor, Tensor]:
    """``E[u] + E[v] - reg log E exp((u + v - c) / reg)``, shape (), and the logarithm of the plan, shape (n, m)."""
    exponent = (u[:, None] + v - cost) / reg
    log_mass = torch.logsumexp(exponent.flatten(), dim=0)
    return u.mean() + v.mean() - reg * (log_mass - math.log(cost.numel())), exponent - log_mass
