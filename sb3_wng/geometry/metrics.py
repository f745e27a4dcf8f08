"""Metrics on parameter space: what a change of parameters costs, as products or as a low-rank factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sb3_wng.geometry.expectations import ExpectationGradient
from sb3_wng.geometry.kernels import GaussianKernel, random_points, stratified_coordinates
from sb3_wng.geometry.solve import conjugate_gradient, damped_solve, gram_matrix


class Metric(Protocol):
    """A metric G at the current parameters: positive semi-definite, ``p x p``, never formed."""

    def product(self, vector: Tensor) -> Tensor:
        """G v, both of shape (p,)."""

    def solve(self, grad: Tensor, damping: float) -> Tensor:
        """(G + damping I)^{-1} grad, of shape (p,)."""


class EuclideanMetric:
    """G = I: the plain gradient, for baselines."""

    def product(self, vector: Tensor) -> Tensor:
        return vector

    def solve(self, grad: Tensor, damping: float) -> Tensor:
        return grad / (1 + damping)


class GaussNewtonMetric:
    r"""Matrix-free metric :math:`G = \frac{1}{n} \sum_s J_s^\top B_s J_s`, with J the Jacobian of some outputs.

    With the outputs a law's coordinates and B its closed-form block, G is the Wasserstein metric
    (Moskovitz et al. 2021, eq. 7, conditional on the state) or the Fisher metric of a policy. One product costs about
    two backward passes. The Jacobian-vector product differentiates the (linear) vector-Jacobian product once more, so
    that any autograd graph will do.

    :param outputs: shape (n, k), attached to the graph
    :param parameters: what the metric is on; ``p`` numbers in total
    :param block: (n, k) tangent -> (n, k) cotangent, linear, symmetric, positive semi-definite per row
    :param cg_max_steps: products per solve, at most
    :param cg_tolerance: relative residual at which a solve stops
    """

    def __init__(
        self,
        outputs: Tensor,
        parameters: Sequence[Tensor],
        block: Callable[[Tensor], Tensor],
        cg_max_steps: int = 15,
        cg_tolerance: float = 1e-5,
    ) -> None:
        self._outputs = outputs
        self._parameters = list(parameters)
        self._block = block
        self._cg_max_steps = cg_max_steps
        self._cg_tolerance = cg_tolerance
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._cotangent = torch.zeros_like(outputs, requires_grad=True)
        self._pullback = torch.autograd.grad(
            outputs,
            self._parameters,
            self._cotangent,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def product(self, vector: Tensor) -> Tensor:
        tangents = [v.view_as(q) for v, q in zip(vector.split(self._sizes), self._parameters, strict=True)]
        reached = [(g, v) for g, v in zip(self._pullback, tangents, strict=True) if g.requires_grad]
        (pushed,) = torch.autograd.grad([g for g, _ in reached], self._cotangent, [v for _, v in reached], retain_graph=True)
        cotangent = self._block(pushed) / len(self._outputs)
        rows = torch.autograd.grad(
            self._outputs, self._parameters, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([row.reshape(-1) for row in rows])

    def solve(self, grad: Tensor, damping: float) -> Tensor:
        return conjugate_gradient(
            lambda vector: self.product(vector) + damping * vector, grad, self._cg_max_steps, self._cg_tolerance
        ).x


class FactoredMetric:
    """Low-rank metric G = T^T T (+ an optional diagonal that scales the damping).

    :param factor: T, shape (r, p)
    :param diagonal_damping: damp each parameter in proportion to its column norm ``|T_j|`` instead of equally (the
        papers' code). Parameters that the samples do not depend on get ``diagonal_floor`` and hence a step 1 /
        (damping * diagonal_floor) times their gradient: keep the floor well above zero where such parameters exist.
    :param diagonal_floor: added to the column norms; 1e-8 in the papers' code
    """

    def __init__(self, factor: Tensor, diagonal_damping: bool = False, diagonal_floor: float = 1e-8) -> None:
        self.factor = factor
        self._diagonal = factor.norm(dim=0) + diagonal_floor if diagonal_damping else None

    def product(self, vector: Tensor) -> Tensor:
        return self.factor.T @ (self.factor @ vector)

    def solve(self, grad: Tensor, damping: float) -> Tensor:
        return damped_solve(self.factor, grad, damping, self._diagonal)

    def effective_rank(self) -> float:
        """Participation ratio (sum e)^2 / sum e^2 of G's eigenvalues e: how many directions it distinguishes."""
        gram = gram_matrix(self.factor)  # has G's nonzero eigenvalues: their sum is its trace, their squares' its norm
        total = gram.trace()
        return (total.square() / gram.square().sum()).item() if total > 0 else 0.0


class SumMetric:
    """G = sum of several metrics, for instance of single actions and of whole trajectories; solved by conjugate gradient.

    :param metrics: in the same units, or weighted by their own scales
    :param cg_max_steps: products per solve, at most
    :param cg_tolerance: relative residual at which a solve stops
    """

    def __init__(self, metrics: Sequence[Metric], cg_max_steps: int = 15, cg_tolerance: float = 1e-5) -> None:
        self._metrics = list(metrics)
        self._cg_max_steps = cg_max_steps
        self._cg_tolerance = cg_tolerance

    def product(self, vector: Tensor) -> Tensor:
        return torch.stack([metric.product(vector) for metric in self._metrics]).sum(dim=0)

    def solve(self, grad: Tensor, damping: float) -> Tensor:
        return conjugate_gradient(
            lambda vector: self.product(vector) + damping * vector, grad, self._cg_max_steps, self._cg_tolerance
        ).x


class BehaviorSample(NamedTuple):
    """Samples of a behaviour law, and how expectations under it move with the parameters."""

    embeddings: Tensor  # X, shape (n, d)
    expectation_gradient: ExpectationGradient
    context: Tensor | None = None  # shape (n, c): conditions the law, is compared by the kernel but never transported


def wasserstein_factor(
    sample: BehaviorSample,
    n_basis: int,
    log_bandwidth: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Factor T of the kernelised Wasserstein metric, :math:`G = J^\top L^+ J = T^\top T`.

    Algorithm 3 of Moskovitz et al. (2021): basis functions :math:`h_m(x) = \partial_{i_m} k(Y_m, x)` at M of the samples,
    :math:`L = \frac{1}{n} \sum_j \nabla h(X_j) \nabla h(X_j)^\top`, J the Jacobian of :math:`E_\theta[h_m(X)]` (eq. 10).
    With :math:`L = V S V^\top`, the rows of :math:`T = S^{-1/2} V^\top J` are the Jacobian of basis functions whose
    gradients are orthonormal. Going through T keeps the metric right when L is rank deficient and J is not in its
    range (eq. 12 as printed then is not). The functions are orthonormalised in float64 *before* they are
    differentiated: wide kernels make L ill-conditioned by design, and a float32 J multiplied by S^{-1/2} would be
    noise. Only numerically zero eigenvalues (below 1e-12 of the largest) are dropped.

    For an accurate metric in d dimensions about d + d(d+1)/2 basis functions and ``log_bandwidth=1`` are needed. With
    infinitely many samples the result is a lower bound of the true metric, the nearer the more functions there are; with n
    of them it is biased upwards, by score functions about M / n times the variance of the scores.

    :param sample: embeddings (n, d), their expectation gradient, and an optional context (n, c)
    :param n_basis: M >= 1
    :param log_bandwidth: log10 of the bandwidth in units of the mean squared distance between samples; usually 0 to 1
    :param generator: draws the points and stratified coordinates; the result is a function of its state
    :return: T of shape (r, p), r <= M
    :raises ValueError: for ``n_basis < 1``, fewer than two samples, or non-finite embeddings
    """
    x = sample.embeddings.detach().double()
    kernel, chosen, coordinates = draw_basis(x, n_basis, log_bandwidth, generator)
    values = kernel.basis(x, x[chosen], coordinates)
    gradients = kernel.basis_gradient(x, x[chosen], coordinates)
    if sample.context is not None:
        context = sample.context.detach().double()
        similarity = GaussianKernel.from_samples(context[chosen], context, log_bandwidth)(context[chosen], context)
        values = without_context(values * similarity, similarity)
        gradients = gradients * similarity[:, :, None]
    orthonormal = orthonormaliser(gradients)
    values = orthonormal @ values
    gradients = torch.einsum("rm,mnd->rnd", orthonormal, gradients)
    return sample.expectation_gradient(values, gradients)


def without_context(values: Tensor, similarity: Tensor) -> Tensor:
    """Values (M, n) of functions less their regression on functions of the context alone, which have no gradient.

    Given the context, the expectation of those does not move. But a combination of basis functions that varies with little
    else has hardly any gradient, so that S^{-1/2} would magnify the sampling noise of its score-function estimate: by
    factors of 10 to 200 in the whole metric, with 50 functions on 500 samples.

    :param similarity: of the basis functions' contexts to the samples', shape (M, n)
    """
    functions = torch.cat([similarity, torch.ones_like(similarity[:1])])
    orthonormal = orthonormaliser(functions[:, :, None]) @ functions
    return values - values @ orthonormal.T / values.shape[1] @ orthonormal


def draw_basis(
    x: Tensor, n_basis: int, log_bandwidth: float, generator: torch.Generator | None
) -> tuple[GaussianKernel, Tensor, Tensor]:
    """What basis functions on samples (n, d) are made of: a kernel, the rows of x that are points Y, and coordinates i."""
    if n_basis < 1:
        raise ValueError(f"n_basis must be >= 1, got {n_basis}")
    if len(x) < 2:
        raise ValueError(f"a behaviour law needs at least 2 samples, got {len(x)}")
    if not torch.isfinite(x).all():
        raise ValueError("embeddings contain non-finite numbers; check the environment's observations and rewards")
    chosen = random_points(x, n_basis, generator).to(x.device)
    coordinates = stratified_coordinates(n_basis, x.shape[1], generator).to(x.device)
    return GaussianKernel.from_samples(x[chosen], x, log_bandwidth), chosen, coordinates


def orthonormaliser(gradients: Tensor) -> Tensor:
    """``S^{-1/2} V^T`` of shape (r, M), for L = C C^T / n = V S V^T with C the gradients (M, n, d), in float64."""
    flat = gradients.flatten(start_dim=1)
    eigenvalues, eigenvectors = torch.linalg.eigh(flat @ flat.T / gradients.shape[1])
    kept = eigenvalues > 1e-12 * eigenvalues.max().clamp_min(1e-300)
    orthonormal: Tensor = eigenvectors[:, kept] * eigenvalues[kept].rsqrt()
    return orthonormal.T
