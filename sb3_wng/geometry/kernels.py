"""The Gaussian kernel and the basis functions that the kernelised Wasserstein metric is built on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianKernel:
    r"""Gaussian kernel :math:`k(y, x) = \exp(-|y - x|^2 / (2 s))` and its derivatives.

    :param bandwidth: s > 0, in squared units of the samples
    """

    bandwidth: float

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be > 0, got {self.bandwidth}")

    @classmethod
    def from_samples(cls, points: Tensor, samples: Tensor, log_bandwidth: float = 0.0) -> GaussianKernel:
        """Bandwidth ``10**log_bandwidth`` times the mean squared distance of ``points`` (m, d) and ``samples`` (n, d).

        Coinciding samples have no scale of their own; they get the bandwidth ``10**log_bandwidth``.
        """
        mean_squared_distance = _squared_distances(points.double(), samples.double()).mean().item()
        return cls(10.0**log_bandwidth * (mean_squared_distance if mean_squared_distance > 1e-30 else 1.0))

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """Kernel matrix (m, n) of ``y`` (m, d) and ``x`` (n, d)."""
        return torch.exp(_squared_distances(y, x) / (-2 * self.bandwidth))

    def basis(self, x: Tensor, points: Tensor, coordinates: Tensor) -> Tensor:
        r"""Basis functions :math:`h_m(x) = \partial_{y_{i_m}} k(y, x)|_{y = Y_m}`.

        :param x: samples, shape (n, d)
        :param points: Y, shape (M, d)
        :param coordinates: i_m in 0..d-1, shape (M,), integers
        :return: shape (M, n)
        """
        return -self(points, x) * self._scaled_difference(x, points, coordinates)

    def basis_gradient(self, x: Tensor, points: Tensor, coordinates: Tensor) -> Tensor:
        r"""Mixed derivatives :math:`\partial_{x_i} h_m(x)`, shape (M, n, d); arguments as in :meth:`basis`.

        .. math:: \partial_{x_i} h_m(x) = k(Y_m, x)\,(\delta_{i i_m}/s - D_{i_m} D_i), \quad D = (Y_m - x)/s.
        """
        difference = (points[:, None, :] - x[None, :, :]) / self.bandwidth
        along = self._scaled_difference(x, points, coordinates)
        gradient = difference.mul_(-along[:, :, None])
        gradient[torch.arange(len(points), device=x.device), :, coordinates] += 1 / self.bandwidth
        return gradient.mul_(self(points, x)[:, :, None])

    def _scaled_difference(self, x: Tensor, points: Tensor, coordinates: Tensor) -> Tensor:
        """``D_{i_m}`` of shape (M, n)."""
        return (points.gather(1, coordinates[:, None]) - x.T[coordinates]) / self.bandwidth


def _squared_distances(y: Tensor, x: Tensor) -> Tensor:
    # cdist's matrix-product mode cancels for close points, where the kernel's derivatives matter most
    return torch.cdist(y, x, compute_mode="donot_use_mm_for_euclid_dist").square()


def stratified_coordinates(n_basis: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """``n_basis`` coordinate indices in which each of ``dim`` coordinates appears equally often (+-1).

    Independent draws leave some coordinates without any basis function: about 10 d of them are needed
    where, for small d, d + d(d+1)/2 stratified ones do.
    """
    repeats = -(-n_basis // dim)
    rounds = [torch.randperm(dim, generator=generator, device=_device(generator)) for _ in range(repeats)]
    return torch.cat(rounds)[:n_basis]


def random_points(samples: Tensor, n_basis: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices of ``n_basis`` of the ``n`` samples, each used once before any is used twice."""
    return stratified_coordinates(n_basis, len(samples), generator)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
