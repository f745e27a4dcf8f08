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
