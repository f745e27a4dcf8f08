"""How much a behaviour differs from earlier ones: signals that are added to returns, with the memory they need."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sb3_wng.geometry import DualPotentials, sinkhorn_distance, sinkhorn_potential

DISTANCES = ("sinkhorn", "dual")
# Scores are compared with each other: a thousandth of the mass in the wrong place does not matter. Candidates that end far
# out make for steep potentials, which take many steps
TOLERANCE = 1e-3
MAX_STEPS = 5000


class BehaviorBonus(Protocol):
    """Scores behaviours against a memory; a module, so that the memory is saved with the algorithm."""

    def update(self, current: Tensor) -> None:
        """Once per iteration, before any score: the current policy's embeddings (m, d) join the memory."""

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Scores of embeddings (n, d), larger where they are farther from the memory; shape (n,)."""


class _Memory(nn.Module):
    """Embeddings of earlier policies; their number grows, so that they are saved as extra state and not as a buffer."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size
        self.embeddings = torch.zeros(0, 0)

    def update(self, current: Tensor) -> None:
        """:raises ValueError: for embeddings of another dimension than the ones kept"""
        if len(self.embeddings) == 0:
            self.embeddings = current.new_zeros(0, current.shape[1])
        if current.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"embeddings must have {self.embeddings.shape[1]} columns as before, got {current.shape[1]}")
        kept = torch.cat([self.embeddings, current.detach().cpu()])
        self.embeddings = kept if self.size is None else kept[-self.size :]

    def get_extra_state(self) -> dict[str, Any]:
        return {"embeddings": self.embeddings}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.embeddings = state["embeddings"].cpu()


class WassersteinBonus(_Memory):
    r"""Wasserstein potential u* of the transport between the embeddings scored and those of the last policies.

    The law of candidates' behaviour moves away from (towards) that of earlier policies if candidates are rewarded for
    (against) :math:`u^*(X)`, because :math:`\nabla_\theta W(q_\theta, q') = E[u^*(X) \nabla_\theta \log q_\theta]`. Unlike
    a distance to the nearest earlier point, potentials know how much mass there is to go where.

    :param n_previous: policies remembered, usually 5 to 50 (the papers: 2)
    :param distance: ``"sinkhorn"``: the debiased Sinkhorn divergence's potential. ``"dual"``: difference of two
        potentials in random features, fitted until they have converged; smooth between samples, an approximation
    :param entropic_reg: gamma in units of the mean cost; usually 0.05 to 0.5
    :param n_features: random features of ``"dual"``
    :param cost: ``"sqeuclidean"`` (W2^2) or ``"euclidean"`` (W1)
    :raises ValueError: for an unknown distance, or ``n_previous < 1``

    Reference: Pacchiano et al. (2020), Learning to score behaviors for guided policy optimization, section 4.
    """

    def __init__(
        self,
        n_previous: int = 20,
        distance: str = "sinkhorn",
        entropic_reg: float = 0.2,
        n_features: int = 100,
        cost: str = "sqeuclidean",
    ) -> None:
        if n_previous < 1:
            raise ValueError(f"n_previous must be >= 1, got {n_previous}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(map(repr, DISTANCES))}, got {distance!r}")
        super().__init__(n_previous)
        self.n_previous = n_previous
        self.distance, self.entropic_reg, self.n_features, self.cost = distance, entropic_reg, n_features, cost

    @torch.no_grad()
    def forward(self, embeddings: Tensor) -> Tensor:
        if len(self.embeddings) == 0:
            return torch.zeros_like(embeddings[:, 0])
        previous = self.embeddings.to(embeddings)
        if self.distance == "sinkhorn":
            return sinkhorn_potential(embeddings, previous, self.entropic_reg, self.cost, MAX_STEPS, TOLERANCE)
        return self._dual_potential(embeddings, previous) - self._dual_potential(embeddings, embeddings)

    @torch.no_grad()
    def value(self, embeddings: Tensor) -> float:
        """Sinkhorn divergence between embeddings (n, d) and those of the last policies; for logs."""
        if len(self.embeddings) == 0:
            return 0.0
        previous = self.embeddings.to(embeddings)
        return sinkhorn_distance(embeddings, previous, self.entropic_reg, self.cost, MAX_STEPS, TOLERANCE).item()

    def _dual_potential(self, x: Tensor, y: Tensor) -> Tensor:
        # fitted from zero: the solution is a function of the samples, and there is nothing to save
        potentials = DualPotentials(x.shape[1], self.n_features, self.entropic_reg, cost=self.cost)
        potentials.fit(x, y)
        potential: Tensor = potentials(x)
        return potential


class NoveltyBonus(_Memory):
    """Mean distance to the nearest behaviours in an archive of all policies so far.

    :param n_neighbors: k, usually 10; fewer while the archive is smaller
    :raises ValueError: for ``n_neighbors < 1``

    Reference: Conti et al. (NeurIPS 2018), Improving exploration in evolution strategies via a population of
    novelty-seeking agents, eq. 2.
    """

    def __init__(self, n_neighbors: int = 10) -> None:
        if n_neighbors < 1:
            raise ValueError(f"n_neighbors must be >= 1, got {n_neighbors}")
        super().__init__(None)
        self.n_neighbors = n_neighbors

    def forward(self, embeddings: Tensor) -> Tensor:
        if len(self.embeddings) == 0:
            return torch.zeros_like(embeddings[:, 0])
        distances = torch.cdist(embeddings.double(), self.embeddings.double(), compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(self.n_neighbors, distances.shape[1]), largest=False).values
        return nearest.mean(dim=1).to(embeddings.dtype)
