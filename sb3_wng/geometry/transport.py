r"""Wasserstein distances between samples of behaviour laws, for the penalty of behaviour-guided policies.

With ``cost="sqeuclidean"``, :math:`c(x, y) = |x - y|^2`, everything here estimates :math:`W_2^2`, the penalty of eq. 4 of
Moskovitz et al. (2021); with ``"euclidean"``, the plain norm, it estimates :math:`W_1`. Both estimators are entropic:

.. math:: W_\gamma(x, y) = \min_\pi \langle c, \pi \rangle + \gamma\,\mathrm{KL}(\pi \,|\, \mu_x \otimes \nu_y) \geq W,

where the regularisation :math:`\gamma` is ``entropic_reg`` times the mean cost, so that the unit of the samples does not
matter. :func:`sinkhorn_distance` removes the entropic bias between clouds that coincide, :class:`DualPotentials` keeps it.
Gaussian laws need neither: :meth:`sb3_wng.geometry.GaussianLaw.wasserstein_distance` is exact.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import ot
import torch
from torch import Tensor, nn

# Relative error of the marginals at which the transport of a cloud to itself stops; about 20 to 40 steps
_SELF_TOLERANCE = 1e-8
_SELF_MAX_STEPS = 200


def sinkhorn_distance(
    x: Tensor,
    y: Tensor,
    entropic_reg: float = 0.2,
    cost: str = "sqeuclidean",
    max_steps: int = 1000,
    tolerance: float = 1e-4,
) -> Tensor:
    r"""Debiased Sinkhorn divergence :math:`S = W_\gamma(x, y) - \frac12 (W_\gamma(x, x) + W_\gamma(y, y))`.

    S is zero, with zero gradient, where the clouds coincide, and never negative. Under the squared cost it is exact for
    a translation; what it misses is differences of shape below the blur :math:`\sqrt{\gamma}`. That includes sampling
    noise, which the exact distance between samples is full of: for 64 samples of Gaussians in 17 dimensions one standard
    deviation apart per coordinate, S is 1.17 times the laws' distance at the default and 1.8 times at 0.05, and the
    exact distance 2.0 times.

    The plans are found without a graph; the gradient is that of the envelope,
    :math:`dW_\gamma = \langle \pi, dc \rangle + \mathrm{KL}(\pi)\, d\gamma`, whose second term is there because the
    regularisation moves with the samples. It holds at convergence, needs the memory of a single step, and has no
    derivative of its own.

    :param x: samples, shape (n, d)
    :param y: samples, shape (m, d)
    :param entropic_reg: gamma in units of the mean cost between x and y; usually 0.01 to 0.5. Smaller is closer to the
        samples' exact distance and takes more steps (about 20 at 0.2, hundreds at 0.01)
    :param cost: ``"sqeuclidean"`` for W2^2, ``"euclidean"`` for W1
    :param max_steps: Sinkhorn steps, at most; a warning says when they did not suffice
    :param tolerance: mass that may be in the wrong place, of a total of one; the error of the plan, hence of the
        gradient, is of this order, the value's of its square
    :return: shape (), computed in float64 and returned in the dtype of x
    :raises ValueError: for samples that are empty, not finite or of different dimensions, or a parameter out of range

    Reference: Feydy et al. (AISTATS 2019), Interpolating between optimal transport and MMD, eq. 3 and section 3.1.
    """
    _check_positive(entropic_reg=entropic_reg, max_steps=max_steps, tolerance=tolerance)
    _check_samples(x, y)
    wide_x, wide_y = x.double(), y.double()
    costs = _cost_matrix(wide_x, wide_y, cost), _cost_matrix(wide_x, wide_x, cost), _cost_matrix(wide_y, wide_y, cost)
    reg = entropic_reg * costs[0].mean()
    if not reg > 0:  # all samples are one point
        return reg.to(x.dtype)
    scaled = [(c / reg).detach() for c in costs]
    f_xx, f_yy = _self_potential(scaled[1]), _self_potential(scaled[2])
    f, g = _cross_potentials(scaled[0], f_yy, max_steps, tolerance)
    w_xy, w_xx, w_yy = (
        _envelope(c, reg, *potentials) for c, potentials in zip(costs, ((f, g), (f_xx, f_xx), (f_yy, f_yy)), strict=True)
    )
    return (w_xy - 0.5 * (w_xx + w_yy)).clamp_min(0).to(x.dtype)


def _cost_matrix(x: Tensor, y: Tensor, cost: str = "sqeuclidean") -> Tensor:
    """Costs (n, m) of moving ``x`` (n, d) to ``y`` (m, d); the gradient of both costs is 0 between equal points."""
    # cdist's matrix-product mode cancels for clouds that are small compared with their distance from the origin
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    if cost == "sqeuclidean":
        return distances.square()
    if cost == "euclidean":
        return distances
    raise ValueError(f"cost must be 'sqeuclidean' or 'euclidean', got {cost!r}")


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation distance of categorical laws per row, half the sum of |p - q|.

    Under the 0-1 cost between categories it is W1, and W2^2 as well, since that cost is its own square.

    :param p: probabilities, shape (n, K)
    :param q: probabilities, shape (n, K)
    :return: shape (n,), between 0 and 1
    :raises ValueError: for shapes that differ
    """
    if p.ndim != 2 or p.shape != q.shape:
        raise ValueError(f"p and q must both be (n, K), got {tuple(p.shape)} and {tuple(q.shape)}")
    return 0.5 * (p - q).abs().sum(dim=1)


def _self_potential(cost: Tensor) -> Tensor:
    """Potential f (n,) of a cloud's transport to itself at gamma = 1, ``f_i = -log mean_j exp(f_j - c_ij)``.

    The averaged iteration at last contracts by a half per step or faster, because the kernels of both costs are
    positive definite; their diagonal of ones keeps it from underflowing.
    """
    kernel = torch.exp(-cost)
    scaling = torch.ones(len(cost), dtype=cost.dtype, device=cost.device)
    for _ in range(_SELF_MAX_STEPS):
        row_mass = scaling * (kernel @ scaling) / len(cost)
        if (row_mass - 1).abs().max() <= _SELF_TOLERANCE:
            break
        scaling = scaling / row_mass.sqrt()
    return scaling.log()


def _cross_potentials(cost: Tensor, g: Tensor, max_steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Potentials f (n,) and g (m,) of the transport between two clouds at gamma = 1, starting from g.

    With g the second cloud's potential to itself, near-by clouds, which Sinkhorn is slow at and where S is a small
    difference of large numbers, are almost solved at the start. One log-domain update of each before POT's stabilised
    iteration gives every row and column of its kernel an entry that does not underflow, however far apart the clouds
    are; one afterwards makes f the best answer to g, so that the rows of the plan have their mass exactly.
    """
    n, m = cost.shape
    f = _soft_transform(g, cost)
    g = _soft_transform(f, cost.T)
    _, log = ot.bregman.sinkhorn_stabilized(
        torch.full_like(f, 1 / n),
        torch.full_like(g, 1 / m),
        cost,
        1.0,
        numItermax=max_steps,
        stopThr=tolerance / math.sqrt(m),  # POT measures in the Euclidean norm
        warmstart=(f, g),
        log=True,
        warn=False,
    )
    g = log["logv"] + math.log(m)
    f = _soft_transform(g, cost)
    misplaced = (torch.exp(f[:, None] + g - cost).mean(dim=0) - 1).abs().mean()
    if not misplaced <= tolerance:
        # Without the number found, so that Python's filter shows a training run this once
        warnings.warn(
            f"Sinkhorn did not reach tolerance={tolerance} in max_steps={max_steps}; increase max_steps or entropic_reg",
            stacklevel=3,
        )
    return f, g


def _soft_transform(g: Tensor, cost: Tensor) -> Tensor:
    """``-log mean_j exp(g_j - c_ij)``, shape (n,)."""
    return math.log(len(g)) - torch.logsumexp(g - cost, dim=1)


def _envelope(cost: Tensor, reg: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """W_gamma with the gradient of its envelope; f and g in units of gamma."""
    with torch.no_grad():
        plan = torch.exp(f[:, None] + g - cost / reg) / cost.numel()
        divergence = f.mean() + g.mean() - (plan * cost).sum() / reg
    return (plan * cost).sum() + divergence * reg


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
    matrix per trial of the line search.

    **Bias.** W_gamma between equal clouds is positive, and its potentials are not constant there. A debiased potential
    is the difference of two objects, one fitted on (x, y) minus one fitted on (x, x), and then 0.2 is a better
    ``entropic_reg`` than 0.05, as in :func:`sinkhorn_distance`.

    :param dim: d
    :param n_features: D; 100 to 300
    :param entropic_reg: gamma in units of the mean cost; usually 0.01 to 0.5
    :param width: of the features' Gaussian kernel, in units of the root mean cost (mean cost for ``"euclidean"``)
    :param ridge: penalty of |b|^2 / 2 in units of the mean cost; takes less than 1 % off the value of ordinary clouds
    :param max_steps: Newton steps per fit, at most
    :param tolerance: gain still to be expected (half the Newton decrement), in units of the mean cost, at which a fit stops
    :param cost: ``"sqeuclidean"`` for W2^2, ``"euclidean"`` for W1
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
        _check_positive(dim=dim, n_features=n_features, entropic_reg=entropic_reg, width=width, ridge=ridge)
        _check_positive(max_steps=max_steps, tolerance=tolerance)
        _cost_matrix(torch.zeros(1, 1), torch.zeros(1, 1), cost)  # refuses an unknown cost
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
        self.register_buffer("n_fits", torch.zeros((), dtype=torch.int64))
        self.register_buffer("n_not_converged", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> DualFit:
        """Maximise the dual on samples ``x`` (n, d) and ``y`` (m, d), starting from the previous fit.

        :return: the dual value on these samples, the number of Newton steps, and whether they sufficed; if not,
            ``n_not_converged`` counts it, and the value still is a lower bound
        :raises ValueError: for samples that are empty, not finite or of other dimensions
        """
        self._check(x, y)
        x, y = x.double(), y.double()
        costs = _cost_matrix(x, y, self.cost)
        mean_cost = costs.mean()
        self.cost_scale.copy_(torch.where(mean_cost > 0, mean_cost, 1.0))
        self.length_scale.copy_(self.cost_scale.sqrt() if self.cost == "sqeuclidean" else self.cost_scale)
        self.center.copy_(torch.cat([x, y]).mean(dim=0))
        problem = _DualProblem(self._features(x), self._features(y), costs / self.cost_scale, self.entropic_reg, self.ridge)
        start = self.coefficients.double()
        # The previous potentials may be worse than none once the clouds have changed altogether
        if not problem.objective(start)[0] >= problem.objective(torch.zeros_like(start))[0]:
            start = torch.zeros_like(start)
        coefficients, n_steps, converged = _newton(problem, start, self.max_steps, self.tolerance)
        u, v = problem.potentials(coefficients)
        value, _ = _dual_value(u, v, problem.cost, self.entropic_reg)
        # Splits the constant so that both potentials have the same mean
        self.offsets.copy_(0.5 * value - torch.stack([u.mean(), v.mean()]))
        self.coefficients.copy_(coefficients)
        self.n_fits += 1
        self.n_not_converged += not converged
        return DualFit(value * self.cost_scale, n_steps, converged)

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """Dual value of the current potentials on samples that the fit need not have seen; shape (), differentiable.

        A lower bound of W_gamma between the two samples, at the gamma of the last fit.
        """
        self._check(x, y)
        costs = _cost_matrix(x.double(), y.double(), self.cost) / self.cost_scale
        u, v = self._potential(x, 0), self._potential(y, 1)
        value, _ = _dual_value(u, v, costs, self.entropic_reg)
        return (value * self.cost_scale).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Potential u at ``x`` (n, d), shape (n,), in the unit of the cost; differentiable.

        The derivative of W_gamma with respect to the mass at x, up to a constant: what a score-function estimator
        weighs the sample x by.
        """
        self._check(x)
        return (self._potential(x, 0) * self.cost_scale).to(x.dtype)

    def _potential(self, x: Tensor, side: int) -> Tensor:
        return self._features(x) @ self.coefficients[side].double() + self.offsets[side]

    def _features(self, x: Tensor) -> Tensor:
        """Fourier features and coordinates, shape (n, D + d)."""
        scaled = (x.double() - self.center) / self.length_scale
        waves = torch.cos(scaled @ self.frequencies.double().T + self.phases)
        return torch.cat([math.sqrt(2 / len(self.phases)) * waves, scaled], dim=1)

    def _check(self, x: Tensor, y: Tensor | None = None) -> None:
        _check_samples(x, x if y is None else y)
        if x.shape[1] != len(self.center):
            raise ValueError(f"x must have dim={len(self.center)} columns, got shape {tuple(x.shape)}")


class _DualProblem(NamedTuple):
    """The dual on fixed samples, as a concave function of the coefficients (2, F)."""

    features_x: Tensor  # (n, F)
    features_y: Tensor  # (m, F)
    cost: Tensor  # (n, m), mean 1
    reg: float
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


def _dual_value(u: Tensor, v: Tensor, cost: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """``E[u] + E[v] - reg log E exp((u + v - c) / reg)``, shape (), and the logarithm of the plan, shape (n, m)."""
    exponent = (u[:, None] + v - cost) / reg
    log_mass = torch.logsumexp(exponent.flatten(), dim=0)
    return u.mean() + v.mean() - reg * (log_mass - math.log(cost.numel())), exponent - log_mass


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be > 0 and finite, got {number}")


def _check_samples(x: Tensor, y: Tensor) -> None:
    for name, samples in (("x", x), ("y", y)):
        if samples.ndim != 2 or samples.numel() == 0:
            raise ValueError(f"{name} must be samples of shape (n, d), not empty, got shape {tuple(samples.shape)}")
        if not torch.isfinite(samples).all():
            raise ValueError(f"{name} contains non-finite numbers")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
