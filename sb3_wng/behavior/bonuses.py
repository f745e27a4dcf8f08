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

    def update(self, current: Tensor, candidates: Tensor | None = None) -> None:
        """Once per iteration, before any score: the current policy's embeddings (m, d) join the memory.

        :param candidates: embeddings (n, d) that show how far behaviours are from each other, where that matters
        """

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Scores of embeddings (n, d), larger where they are farther from the memory; shape (n,)."""


class _Memory(nn.Module):
    """Embeddings of earlier policies, in buffers that take the size of what is loaded."""

    embeddings: Tensor  # (m, d), the latest last

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("embeddings", torch.zeros(0, 0))

    def update(self, current: Tensor, candidates: Tensor | None = None) -> None:
        """:raises ValueError: for embeddings of another dimension than the ones kept"""
        if len(self.embeddings) == 0:
            self.embeddings = current.new_zeros(0, current.shape[1], device="cpu")
        if current.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"embeddings must have {self.embeddings.shape[1]} columns as before, got {current.shape[1]}")
        kept = torch.cat([self.embeddings.cpu(), current.detach().cpu()])
        self.embeddings = kept if self.size is None else kept[-self.size :]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class WassersteinBonus(_Memory):
    r"""Wasserstein potential u* of the transport between the embeddings scored and those of the last policies.

    The law of candidates' behaviour moves away from (towards) that of earlier policies if candidates are rewarded for
    (against) :math:`u^*(X)`, because :math:`\nabla_\theta W(q_\theta, q') = E[u^*(X) \nabla_\theta \log q_\theta]`. Unlike
    a distance to the nearest earlier point, potentials know how much mass there is to go where.

    :param n_previous: policies remembered, usually 20 to 200 (the papers: 2)
    :param distance: ``"sinkhorn"``: the debiased Sinkhorn divergence's potential. ``"dual"``: difference of two
        potentials in random features, fitted until they have converged; smooth between samples, an approximation
    :param entropic_reg: gamma in units of the mean cost; usually 0.05 to 0.5
    :param n_features: random features of ``"dual"``
    :param saturation: l of the ground cost :math:`1 - e^{-|x - y| / l}`, with coordinates in units of their standard
        deviation among candidates (running mean over iterations) and distances in units of the root mean square distance
        that this amounts to; usually 0.1 to 1. Behaviours much farther apart than l count as equally far, so that a few
        candidates that end far out do not decide. ``None``: the squared distance in the embedding's own units (W2^2)
    :raises ValueError: for an unknown distance, ``n_previous < 1`` or ``saturation <= 0``

    Reference: Pacchiano et al. (2020), Learning to score behaviors for guided policy optimization, section 4.
    """

    variance: Tensor  # of each coordinate among an iteration's candidates (d,), mean over n_updates
    n_updates: Tensor

    def __init__(
        self,
        n_previous: int = 100,
        distance: str = "sinkhorn",
        entropic_reg: float = 0.2,
        n_features: int = 100,
        saturation: float | None = 0.3,
    ) -> None:
        if n_previous < 1:
            raise ValueError(f"n_previous must be >= 1, got {n_previous}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(map(repr, DISTANCES))}, got {distance!r}")
        if saturation is not None and not saturation > 0:
            raise ValueError(f"saturation must be > 0 or None, got {saturation}")
        super().__init__(n_previous)
        self.n_previous = n_previous
        self.distance, self.entropic_reg, self.n_features, self.saturation = distance, entropic_reg, n_features, saturation
        self.cost = "sqeuclidean" if saturation is None else "saturating"
        self.register_buffer("variance", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    def update(self, current: Tensor, candidates: Tensor | None = None) -> None:
        super().update(current)
        if candidates is None:
            return
        wide = candidates.detach().cpu().double()
        is_constant = wide.amax(dim=0) == wide.amin(dim=0)  # where rounding would leave a variance
        variance = wide.var(dim=0, correction=0).masked_fill(is_constant, 0)
        self.variance = variance if self.n_updates == 0 else self.variance + (variance - self.variance) / (self.n_updates + 1)
        self.n_updates += 1

    @torch.no_grad()
    def forward(self, embeddings: Tensor) -> Tensor:
        if len(self.embeddings) == 0:
            return torch.zeros_like(embeddings[:, 0])
        points, previous = self._scaled(embeddings), self._scaled(self.embeddings.to(embeddings))
        if self.distance == "sinkhorn":
            return sinkhorn_potential(points, previous, self.entropic_reg, self.cost, MAX_STEPS, TOLERANCE)
        # fitted from zero: the solution is a function of the samples, and there is nothing to save
        across, within = (
            DualPotentials(points.shape[1], self.n_features, self.entropic_reg, cost=self.cost).to(points.device)
            for _ in range(2)
        )
        across.fit(points, previous)
        within.fit(points, points, across.gamma)
        potential: Tensor = across(points) - within(points)
        return potential

    @torch.no_grad()
    def value(self, embeddings: Tensor) -> float:
        """Sinkhorn divergence between embeddings (n, d) and those of the last policies; for logs. Below 1 if it saturates."""
        if len(self.embeddings) == 0:
            return 0.0
        points, previous = self._scaled(embeddings), self._scaled(self.embeddings.to(embeddings))
        return sinkhorn_distance(points, previous, self.entropic_reg, self.cost, MAX_STEPS, TOLERANCE).item()

    def _scaled(self, points: Tensor) -> Tensor:
        """Points in units of the cost; coordinates that are the same for all candidates drop out."""
        if self.saturation is None:
            return points
        if self.n_updates == 0:
            return points / self.saturation
        varies = self.variance > 0
        unit = (2 * varies.sum() * self.variance).sqrt() * self.saturation
        weights = torch.where(varies, 1 / unit, 0.0)
        return points * weights.to(points)


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
        kept = self.embeddings.to(embeddings.device, torch.float64)
        distances = torch.cdist(embeddings.double(), kept, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(min(self.n_neighbors, distances.shape[1]), largest=False).values
        return nearest.mean(dim=1).to(embeddings.dtype)
