"""Action laws at a batch of states, with the distances and metrics that have a closed form.

Every law describes itself by *coordinates* (n, k); a metric on laws is a positive semi-definite k x k block
per state, applied to a tangent (a change of coordinates) without being formed. The metric on parameters is then
the Gauss-Newton product with these blocks (:class:`sb3_wng.geometry.GaussNewtonMetric`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sb3_wng.geometry.transport import total_variation

Law = TypeVar("Law", bound="ActionLaw")


class ActionLaw(Protocol):
    """A conditional law of actions, at n states."""

    @property
    def coordinates(self) -> Tensor:
        """Numbers that determine the law, shape (n, k), attached to the graph."""

    @property
    def n_actions(self) -> int:
        """Action dimensions, or factors of a discrete action."""

    def detach(self: Law) -> Law:
        """The same law without a graph."""

    def select(self: Law, index: Tensor) -> Law:
        """The law at some of the states."""

    def spread(self) -> Tensor:
        """Unit in which squared distances mean the same for every law, mean over states; shape ().

        A change of W2^2 / spread is one of about twice the KL (per action dimension, where these are alike).
        """

    def variance(self) -> Tensor:
        """Total variance of an action, one-hot where it is discrete, mean over states; shape ()."""

    def wasserstein_distance(self: Law, other: Law) -> Tensor:
        """Squared Wasserstein-2 distance per state, shape (n,)."""

    def kl_divergence(self: Law, other: Law) -> Tensor:
        """KL(self || other) per state, summed over action dimensions; shape (n,)."""

    def wasserstein_product(self, tangent: Tensor) -> Tensor:
        """Wasserstein metric times a tangent, both (n, k)."""

    def fisher_product(self, tangent: Tensor) -> Tensor:
        """Fisher metric times a tangent, both (n, k)."""


@dataclass(frozen=True)
class GaussianLaw:
    """Diagonal Gaussians; squared Euclidean cost between actions.

    :param mean: shape (n, d), in units of the action
    :param std: shape (n, d), positive
    :param std_weight: weight of the spread in the Wasserstein geometry. 1 is W2; larger values slow the collapse
        of the spread and are no longer a Wasserstein metric. 2, per dimension and divided by the variance, is Fisher.
    """

    mean: Tensor
    std: Tensor
    std_weight: float = 1.0

    @property
    def coordinates(self) -> Tensor:
        return torch.cat([self.mean, self.std], dim=1)

    @property
    def n_actions(self) -> int:
        return self.mean.shape[1]

    def detach(self) -> GaussianLaw:
        return replace(self, mean=self.mean.detach(), std=self.std.detach())

    def select(self, index: Tensor) -> GaussianLaw:
        return replace(self, mean=self.mean[index], std=self.std[index])

    def spread(self) -> Tensor:
        """The variance: then W2^2 / spread is twice the KL, over the number of dimensions, where only means move."""
        return self.variance()

    def variance(self) -> Tensor:
        return self.std.square().sum(dim=1).mean()

    def wasserstein_distance(self, other: GaussianLaw) -> Tensor:
        """``|mu - mu'|^2 + std_weight |s - s'|^2``, exact for diagonal Gaussians (Peyre & Cuturi 2019, remark 2.31)."""
        return (self.mean - other.mean).square().sum(dim=1) + self.std_weight * (self.std - other.std).square().sum(dim=1)

    def kl_divergence(self, other: GaussianLaw) -> Tensor:
        variance_ratio = (self.std / other.std).square()
        shift = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (variance_ratio + shift - 1 - variance_ratio.log()).sum(dim=1)

    def wasserstein_product(self, tangent: Tensor) -> Tensor:
        mean, std = tangent.chunk(2, dim=1)
        return torch.cat([mean, self.std_weight * std], dim=1)

    def fisher_product(self, tangent: Tensor) -> Tensor:
        mean, std = tangent.chunk(2, dim=1)
        precision = self.std.detach().reciprocal().square()
        return torch.cat([precision * mean, 2 * precision * std], dim=1)


@dataclass(frozen=True)
class CategoricalLaw:
    """Independent categorical factors (one for Discrete, several for MultiDiscrete, two-valued ones for MultiBinary).

    W2 under the 0-1 cost has no metric: it is of first order in the change of probability. The Wasserstein metric
    used instead is that of the complete graph on a factor's actions (Li & Montufar 2018, Natural gradient via optimal
    transport), G = L(p)^+ with L(p) = sum over edges (p_i + p_j)/2 (e_i - e_j)(e_i - e_j)^T; factors add up.

    :param log_probs: normalised log-probabilities, shape (n, sum(sizes))
    :param sizes: number of actions of each factor
    """

    log_probs: Tensor
    sizes: Sequence[int]

    @property
    def coordinates(self) -> Tensor:
        return self.log_probs

    @property
    def n_actions(self) -> int:
        return len(self.sizes)

    def detach(self) -> CategoricalLaw:
        return replace(self, log_probs=self.log_probs.detach())

    def select(self, index: Tensor) -> CategoricalLaw:
        return replace(self, log_probs=self.log_probs[index])

    def _factors(self, tensor: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = tensor.split(list(self.sizes), dim=1)
        return parts

    def spread(self) -> Tensor:
        """Sum over factors of (1 - sum p^2) / (K - 1), the probability that two independent actions differ over the other
        K - 1 actions: then W2^2 / spread is twice the KL for K = 2, and for any K near equal probabilities."""
        others = [max(size - 1, 1) for size in self.sizes]
        return sum((v / k for v, k in zip(self._variances(), others, strict=True)), self.log_probs.new_zeros(()))

    def variance(self) -> Tensor:
        return torch.stack(self._variances()).sum()

    def _variances(self) -> list[Tensor]:
        """Of each factor's one-hot action."""
        return [1 - factor.mul(2).exp().sum(dim=1).mean() for factor in self._factors(self.log_probs)]

    def wasserstein_distance(self, other: CategoricalLaw) -> Tensor:
        """Squared length of the straight path between the laws by the midpoint rule, (p'-p)^T L((p+p')/2)^+ (p'-p).

        Agrees with the metric to second order, which is what steps and penalties are made of; the geodesic itself has no
        closed form, and between laws that have next to nothing in common this is too short.
        """
        p, q = self.log_probs.exp(), other.log_probs.exp()
        parts = zip(self._factors(0.5 * (p + q)), self._factors(q - p), strict=True)
        return sum((graph_laplacian_solve(mid, change).mul(change).sum(dim=1) for mid, change in parts), p.new_zeros(len(p)))

    def total_variation(self, other: CategoricalLaw) -> Tensor:
        """Per state, summed over factors: W2^2 under the 0-1 cost, of first order in the change of probability; shape (n,)."""
        parts = zip(self._factors(self.log_probs.exp()), self._factors(other.log_probs.exp()), strict=True)
        return torch.stack([total_variation(p, q) for p, q in parts]).sum(dim=0)

    def kl_divergence(self, other: CategoricalLaw) -> Tensor:
        p = self.log_probs.exp()
        # what is impossible (a logit of -inf, as masks have it) adds nothing
        return (p * (self.log_probs - other.log_probs).masked_fill(p == 0, 0.0)).sum(dim=1)

    def wasserstein_product(self, tangent: Tensor) -> Tensor:
        p = self.log_probs.detach().exp()
        parts = zip(self._factors(p), self._factors(p * tangent), strict=True)
        return p * torch.cat([graph_laplacian_solve(factor, change) for factor, change in parts], dim=1)

    def fisher_product(self, tangent: Tensor) -> Tensor:
        return self.log_probs.detach().exp() * tangent


def graph_laplacian_solve(p: Tensor, change: Tensor) -> Tensor:
    """``L(p)^+ change`` for the complete graph with edge weights (p_i + p_j)/2, in O(K) per state.

    ``L(p) = diag((K p + 1)/2) - (p 1^T + 1 p^T)/2`` is diagonal plus rank two; in the gauge ``sum(x) = 0`` its
    pseudo-inverse is ``x = (change + c/2) / D`` with D the diagonal and c fixed by the gauge. D >= 1/2, so the
    solve is well conditioned even where probabilities vanish.

    :param p: probabilities, shape (n, K), rows sum to one
    :param change: shape (n, K), rows sum to zero
    """
    diagonal = 0.5 * (p.shape[1] * p + 1)
    offset = (change / diagonal).sum(dim=1, keepdim=True) / diagonal.reciprocal().sum(dim=1, keepdim=True)
    return (change - offset) / diagonal
