"""The seam between estimators: how the gradient of an expectation is taken.

A kernelised metric needs the Jacobian of E_theta[h_m(X)] for basis functions h_m. It hands their values and
gradients at the samples to an :class:`ExpectationGradient`, which knows how X depends on theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ExpectationGradient(Protocol):
    """Estimates gradients of expectations of several functions at once."""

    def __call__(self, values: Tensor, gradients: Tensor) -> Tensor:
        """Jacobian of the expectations with respect to the parameters.

        :param values: h_m(X_j), shape (M, n)
        :param gradients: derivative of h_m at X_j, shape (M, n, d)
        :return: shape (M, p)
        """


@dataclass(frozen=True)
class Pathwise:
    """Reparametrised samples X = B_theta(Z): mean of grad h_m(X_j) times dX_j/dtheta (eq. 10, left).

    :param samples: X of shape (n, d), attached to the graph that leads to ``parameters``
    :param parameters: what to differentiate
    """

    samples: Tensor
    parameters: Sequence[Tensor]

    def __call__(self, values: Tensor, gradients: Tensor) -> Tensor:
        return vector_jacobian_products(self.samples, self.parameters, gradients / self.samples.shape[0])


@dataclass(frozen=True)
class ScoreFunction:
    """Likelihood ratios: leave-one-out centred mean of h_m(X_j) times the score of X_j (eq. 10, right).

    For samples that depend on states or rewards, whose derivative is unknown. Centring by the plain batch mean
    would shrink the estimate by (n-1)/n; the leave-one-out baseline keeps it unbiased.

    :param log_probs: log q_theta(X_j), shape (n,), attached to the graph; for a trajectory, the sum of its steps'
        log-probabilities
    :param parameters: what to differentiate
    """

    log_probs: Tensor
    parameters: Sequence[Tensor]

    def __call__(self, values: Tensor, gradients: Tensor) -> Tensor:
        centred = (values - values.mean(dim=1, keepdim=True)) / max(values.shape[1] - 1, 1)
        return vector_jacobian_products(self.log_probs, self.parameters, centred)


@dataclass(frozen=True)
class Perturbation:
    r"""Antithetic pairs of perturbed parameters: nothing is differentiated (eq. 14).

    :math:`\frac{1}{2 P \sigma} \sum_i \epsilon_i (h_m(X_{i+}) - h_m(X_{i-}))` with X_{i+-} sampled at
    :math:`\theta \pm \sigma \epsilon_i`: an unbiased estimate of the gradient of E h_m smoothed by the noise. (The paper's
    text has perturbations of *variance* sigma, and 1 / sigma before the sum.) Its error falls as sqrt(p / P), so that few
    directions of many parameters are known; the same pairs estimate the gradient of the return.

    :param noise: epsilon, standard normal, shape (P, p)
    :param delta_std: sigma > 0
    :raises ValueError: for a sigma that is not positive, and for values of another number of samples
    """

    noise: Tensor
    delta_std: float

    def __post_init__(self) -> None:
        if not self.delta_std > 0:
            raise ValueError(f"delta_std must be > 0, got {self.delta_std}")

    def __call__(self, values: Tensor, gradients: Tensor | None = None) -> Tensor:
        """:param values: shape (M, 2 P R): pair by pair, the R samples at + before those at -; ``gradients`` are not used."""
        n_pairs = len(self.noise)
        if values.shape[1] == 0 or values.shape[1] % (2 * n_pairs):
            raise ValueError(f"{n_pairs} antithetic pairs need a multiple of {2 * n_pairs} samples, got {values.shape[1]}")
        plus, minus = values.reshape(len(values), n_pairs, 2, -1).mean(dim=3).unbind(dim=2)
        return (plus - minus).to(self.noise) @ self.noise / (2 * n_pairs * self.delta_std)


def vector_jacobian_products(
    outputs: Tensor, parameters: Sequence[Tensor], cotangents: Tensor, chunk_elements: int = 1000
) -> Tensor:
    """``M`` vector-Jacobian products by batched backward passes.

    Batching pays while its intermediate results stay in the processor's cache, so that large samples go one by one.

    :param outputs: shape (n, ...), attached to the graph (which is kept)
    :param parameters: ``p`` numbers in total; one that ``outputs`` does not reach gets zeros
    :param cotangents: shape (M, n, ...)
    :param chunk_elements: largest number of products times n in one backward pass
    :return: shape (M, p)
    """
    chunk_size = max(1, chunk_elements // max(1, len(outputs)))
    cotangents = cotangents.to(outputs.dtype)
    return torch.cat([_backward(outputs, list(parameters), chunk) for chunk in cotangents.split(chunk_size)])


def _backward(outputs: Tensor, parameters: list[Tensor], cotangents: Tensor) -> Tensor:
    is_batched = len(cotangents) > 1
    rows = torch.autograd.grad(
        outputs,
        parameters,
        cotangents if is_batched else cotangents[0],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=is_batched,
    )
    parts = [q.new_zeros(len(cotangents), q.numel()) if row is None else row for q, row in zip(parameters, rows, strict=True)]
    return torch.cat([part.reshape(len(cotangents), -1) for part in parts], dim=1)
