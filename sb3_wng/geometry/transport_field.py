"""How behaviour moves: the vector field that transports one law of behaviour to a neighbouring one."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_wng.geometry.metrics import BehaviorSample, draw_basis, orthonormaliser


def transport_field(
    sample: BehaviorSample,
    direction: Tensor,
    points: Tensor,
    n_basis: int,
    log_bandwidth: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Velocity :math:`\nabla f_u(x)` at which mass at x moves when the parameters move along u.

    The behavioural transport function of Moskovitz et al. (2021, eq. 5), :math:`f_u = \operatorname{argmax}_f
    \nabla_\theta E[f(X)]^\top u - \frac{1}{2} E|\nabla f(X)|^2`, among combinations :math:`f_u = \sum_m \alpha_m h_m` of
    the basis functions of :func:`wasserstein_factor`: :math:`\alpha = L^+ J u` (eq. 9). Its mean squared length over the
    samples is :math:`u^\top G u` with the metric of the same basis. To first order, points :math:`x + t \nabla f_u(x)`
    are distributed as behaviour is at :math:`\theta + t u`.

    Jacobians by the score function are noisy, and their field swirls where many functions can follow the noise: take few,
    about d + d(d+1)/2 for a field that is an affine function, and many samples.

    :param sample: embeddings (n, d) and their expectation gradient, without a context
    :param direction: u, shape (p,)
    :param points: x, shape (m, d), in the units of the embeddings
    :param n_basis: number of functions, >= 1
    :param log_bandwidth: log10 of the bandwidth in units of the mean squared distance between samples; usually 0 to 1
    :param generator: draws the functions, the same as of a :func:`wasserstein_factor` from the same state
    :return: shape (m, d)
    :raises ValueError: for points of another dimension than the embeddings, a sample with a context, and whatever
        :func:`wasserstein_factor` refuses
    """
    x, points = sample.embeddings.detach().double(), points.detach().double()
    if sample.context is not None:
        raise ValueError("the transport field of a sample with a context is another one for every context; leave it out")
    if points.ndim != 2 or points.shape[1] != x.shape[1]:
        raise ValueError(f"points must have shape (m, {x.shape[1]}) as the embeddings, got {tuple(points.shape)}")
    kernel, chosen, coordinates = draw_basis(x, n_basis, log_bandwidth, generator)
    gradients = kernel.basis_gradient(x, x[chosen], coordinates)
    orthonormal = orthonormaliser(gradients)
    factor = sample.expectation_gradient(
        orthonormal @ kernel.basis(x, x[chosen], coordinates), torch.einsum("rm,mnd->rnd", orthonormal, gradients)
    )
    speeds = (factor @ direction.to(factor)).double()  # along each orthonormal function
    weights = orthonormal.T @ speeds  # alpha = L^+ J u: L^+ = orthonormal^T orthonormal
    field: Tensor = torch.einsum("m,mnd->nd", weights, kernel.basis_gradient(points, x[chosen], coordinates))
    return field
