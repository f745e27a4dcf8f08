r"""Stein variational gradient descent: directions that carry a set of particles towards a law known by its score.

With a target q, particles :math:`\theta_1, \dots, \theta_n` and a kernel k, the direction that lowers KL(particles || q)
fastest among the unit ball of the kernel's function space is

.. math:: \phi_i = \frac1n \sum_j \big[ k(\theta_j, \theta_i) \nabla_{\theta_j} \log q(\theta_j)
          + \nabla_{\theta_j} k(\theta_j, \theta_i) \big], \qquad k(x, y) = \exp(-|x - y|^2 / h).

No function here forms an (n, n, p) array: time is O(n^2 p), memory O(n p).

Reference: Liu & Wang (2016), Stein variational gradient descent, Alg. 1; Liu et al. (2017), Stein variational policy
gradient, eq. 5 and 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sb3_wng.geometry.solve import gram_matrix

BANDWIDTH_RULES = ("authors", "printed")


def svgd_direction(scores: Tensor, kernel: Tensor, repulsion: Tensor) -> Tensor:
    """Stein's direction: the mean over all particles of weighted scores and of the kernel's gradients.

    :param scores: gradients of log q at the particles, shape (n, p)
    :param kernel: k(theta_j, theta_i), shape (n, n)
    :param repulsion: see :func:`kernel_repulsion`, shape (n, p)
    :return: shape (n, p); ascends
    """
    return (kernel.to(scores) @ scores + repulsion) / len(scores)


def squared_distances(particles: Tensor) -> Tensor:
    """Pairwise squared distances of particles (n, p), shape (n, n), float64.

    Through inner products of the centred particles in float64: exact to about 1e-16 of the largest squared distance from
    their mean (1e-7 for particles in float32), below which close particles count as coinciding.
    """
    gram = gram_matrix(particles - particles.mean(dim=0))
    squared_norms = gram.diagonal()
    distances = (squared_norms[:, None] + squared_norms[None, :] - 2 * gram).clamp_min(0)
    return distances.fill_diagonal_(0)


def median_bandwidth(distances: Tensor, rule: str | float = "authors") -> float:
    r"""The kernel's h from pairwise squared distances, which keeps it informative while the particles move.

    ``"printed"``: :math:`\mathrm{med}^2 / \log(n+1)`, med the median distance of two particles (Liu et al. 2017, below
    eq. 7). In high dimension, where all distances are alike, k is then about 1/(n+1) between any two.
    ``"authors"``: half the median over all n^2 squared distances, zeros included, over log(n+1), as in their code; k is
    then about 1/(n+1)^2. A number is returned as it is. Coinciding particles, or a single one, get 1.

    :param distances: shape (n, n)
    :raises ValueError: for an unknown rule, or a number that is not > 0
    """
    if not isinstance(rule, str):
        if not (math.isfinite(rule) and rule > 0):
            raise ValueError(f"bandwidth must be > 0, got {rule}")
        return float(rule)
    n = len(distances)
    if rule == "authors":
        bandwidth = distances.flatten().quantile(0.5).item() / (2 * math.log(n + 1))
    elif rule == "printed":
        between = distances[~torch.eye(n, dtype=torch.bool, device=distances.device)]
        bandwidth = between.sqrt().quantile(0.5).item() ** 2 / math.log(n + 1) if n > 1 else 0.0
    else:
        raise ValueError(f"bandwidth must be a number > 0 or one of {', '.join(map(repr, BANDWIDTH_RULES))}, got {rule!r}")
    return bandwidth if bandwidth > 0 else 1.0


def particle_kernel(distances: Tensor, bandwidth: float) -> Tensor:
    """k = exp(-d / h) for squared distances d (n, n) (Liu et al. 2017, eq. 7)."""
    return torch.exp(-distances / bandwidth)


def kernel_repulsion(particles: Tensor, kernel: Tensor, bandwidth: float) -> Tensor:
    r"""Sum of the kernel's gradients, :math:`\sum_j \nabla_{\theta_j} k(\theta_j, \theta_i)
    = \frac2h \sum_j (\theta_i - \theta_j)\, k_{ij}`: away from the others.

    :param particles: shape (n, p)
    :param kernel: shape (n, n)
    :param bandwidth: h of the kernel
    :return: shape (n, p)
    """
    # A particle does not repel itself; without its own entry (1, the largest) nothing has to cancel
    between = (kernel - torch.diag(kernel.diagonal())).to(particles)
    centered = particles - particles.mean(dim=0)
    return (between.sum(dim=1, keepdim=True) * centered - between @ centered) * (2 / bandwidth)


def radial_push(particles: Tensor, rule: str | float = "authors") -> Tensor:
    r"""What :func:`kernel_repulsion` amounts to among many independent particles in high dimension, without any others.

    Squared distances are then all about :math:`2|\theta_i|^2`, the kernel is constant, and the repulsion is
    :math:`\frac{2n}{h} k\, \theta_i`: a negative weight decay. The control that tells the effect of interaction from that of
    growing parameters.

    :param particles: shape (n, p)
    :param rule: see :func:`median_bandwidth`
    :return: shape (n, p)
    """
    n = len(particles)
    if n == 1:
        return torch.zeros_like(particles)
    distances = 2 * particles.double().square().sum(dim=1)
    between = 1 - torch.eye(n, dtype=torch.float64, device=particles.device)
    bandwidths = distances.new_tensor([median_bandwidth(distance * between, rule) for distance in distances])
    weights = 2 * n / bandwidths * torch.exp(-distances / bandwidths)
    return particles * weights[:, None].to(particles)
