"""The kernelised Wasserstein metric as a component: draws its basis anew for every update, reproducibly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sb3_wng.geometry import BehaviorSample, FactoredMetric, wasserstein_factor


class KernelWassersteinMetric(nn.Module):
    """Low-rank Wasserstein metric from samples of a behaviour law; see :func:`sb3_wng.geometry.wasserstein_factor`.

    It owns the generator of the basis points, whose state travels with ``state_dict``: a resumed run draws the same
    points as an uninterrupted one.

    :param n_basis: number of basis functions; about d + d(d+1)/2 for d-dimensional embeddings, 50 or more with a context
    :param log_bandwidth: log10 of the kernel's bandwidth in units of the mean squared distance between samples
    :param diagonal_damping: see :class:`sb3_wng.geometry.FactoredMetric`
    :param seed: of the basis points; drawn from torch's generator if ``None``
    """

    def __init__(
        self, n_basis: int = 50, log_bandwidth: float = 1.0, diagonal_damping: bool = False, seed: int | None = None
    ) -> None:
        super().__init__()
        if n_basis < 1:
            raise ValueError(f"n_basis must be >= 1, got {n_basis}")
        self.n_basis = n_basis
        self.log_bandwidth = log_bandwidth
        self.diagonal_damping = diagonal_damping
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())) if seed is None else seed)

    def forward(self, sample: BehaviorSample, scale: float = 1.0) -> FactoredMetric:
        """Metric at the current parameters, times ``scale``."""
        factor = wasserstein_factor(sample, self.n_basis, self.log_bandwidth, self.generator)
        return FactoredMetric(factor * scale**0.5, self.diagonal_damping)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        # torch.load may have moved it to an accelerator; a generator takes its state from the CPU only
        self.generator.set_state(state.cpu())
