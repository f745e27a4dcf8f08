"""How the gradients of a population become directions: Stein's, and the controls that take it apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch as th

from sb3_wng.behavior import BehaviorEmbedding, Trajectories
from sb3_wng.geometry import (
    kernel_repulsion,
    median_bandwidth,
    particle_kernel,
    radial_push,
    squared_distances,
    svgd_direction,
)

MODES = ("svpg", "independent", "joint", "radial", "coupling")
KERNELS = ("parameters", "behavior")


class PopulationDirection(NamedTuple):
    """Where each particle is to go."""

    direction: th.Tensor  # (n, p)
    share: float  # weight of a particle's own score in it
    kernel: th.Tensor  # (n, n)
    repulsion_ratio: float  # norm of the repulsion over the norm of what the scores contribute


def population_direction(
    scores: th.Tensor, theta: th.Tensor, mode: str, bandwidth: str | float = "authors"
) -> PopulationDirection:
    """Directions from scores.

    ``"svpg"``: Stein's. ``"coupling"``: its shared gradients without the repulsion. ``"radial"``: own gradients and, in
    place of the repulsion, its limit for many independent particles, which needs no other particle. ``"independent"`` and
    ``"joint"``: the scores as they are.

    :param scores: gradients of J / temperature + log prior, shape (n, p)
    :param theta: particles, shape (n, p)
    :param mode: one of :data:`MODES`
    :param bandwidth: see :func:`sb3_wng.geometry.median_bandwidth`
    """
    n = len(scores)
    distances = squared_distances(theta)
    h = median_bandwidth(distances, bandwidth)
    kernel = particle_kernel(distances, h)
    if mode in ("independent", "joint"):
        return PopulationDirection(scores, 1.0, kernel, 0.0)
    alone = th.eye(n, device=scores.device)
    push = th.zeros_like(theta)
    if mode == "svpg":
        push = kernel_repulsion(theta, kernel, h)
    elif mode == "radial":
        push = radial_push(theta, bandwidth)
    used = alone if mode == "radial" else kernel
    direction = svgd_direction(scores, used, push)
    drive = n * direction - push
    return PopulationDirection(direction, 1 / n, kernel, (push.norm() / drive.norm().clamp_min(1e-12)).item())


class BehaviorRepulsion(NamedTuple):
    """The repulsion of particles in a space of behaviour, as what each window of theirs is worth."""

    bonuses: list[th.Tensor]  # one (n_windows,) per particle, mean zero
    kernel: th.Tensor  # (n, n)


def behavior_repulsion(
    trajectories: Sequence[Trajectories], embedding: BehaviorEmbedding, bandwidth: str | float = "authors"
) -> BehaviorRepulsion:
    r"""Repulsion between mean embeddings :math:`\varphi_i = E\,\psi(\tau)`, moved to parameters by the policy gradient.

    :math:`\sum_j \nabla_{\varphi_j} k(\varphi_j, \varphi_i) = c_i = \frac2h \sum_j (\varphi_i - \varphi_j) k_{ij}`, and the
    gradient of :math:`c_i \cdot \varphi_i` in :math:`\theta_i` is that of a return in which every window :math:`\tau` is worth
    :math:`c_i \cdot \psi(\tau)`. Coordinates are divided by their standard deviation over all windows.

    :param trajectories: windows of each particle
    :param embedding: psi
    :param bandwidth: see :func:`sb3_wng.geometry.median_bandwidth`
    """
    points = [embedding(windows).detach().float() for windows in trajectories]
    everywhere = th.cat(points)
    scale = everywhere.std(dim=0)
    scale = th.where(scale > 1e-6 * everywhere.abs().amax(dim=0), scale, th.inf)  # what only rounding varies does not count
    points = [part / scale for part in points]
    means = th.stack([part.mean(dim=0) for part in points])
    distances = squared_distances(means)
    h = median_bandwidth(distances, bandwidth)
    kernel = particle_kernel(distances, h)
    forces = kernel_repulsion(means, kernel, h)
    bonuses = [(part - mean) @ force for part, mean, force in zip(points, means, forces, strict=True)]
    return BehaviorRepulsion(bonuses, kernel)
