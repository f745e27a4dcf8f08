"""Linear solves behind every natural gradient: low rank with damping, and conjugate gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def damped_solve(factor: Tensor, grad: Tensor, damping: float, diagonal: Tensor | None = None) -> Tensor:
    r"""Solve :math:`(T^\top T + \lambda\,\mathrm{diag}(d))\,x = g` for a low-rank factor :math:`T`.

    Woodbury's identity reduces the solve to an ``r x r`` eigenproblem, so that time is
    O(r^2 p) and memory O(r p); the ``p x p`` metric is never formed. With
    :math:`B = T\,\mathrm{diag}(d)^{-1/2}` and :math:`b = \mathrm{diag}(d)^{-1/2} g`,

    .. math:: x = \mathrm{diag}(d)^{-1/2}\,\lambda^{-1}\,(b - B^\top (B B^\top + \lambda I)^{-1} B b).

    The small matrix is accumulated and decomposed in float64: squaring the singular values of a
    float32 factor would lose half of its digits. As a whole x is then as accurate as its dtype. In the
    directions of the factor, where x is small, and in :math:`x^\top T^\top T x`, the relative error is about the
    dtype's precision times ``max(eig) / damping``: a few percent in float32 for a ``damping`` of 1e-5 of the
    largest eigenvalue, and all of it at 1e-7.

    :param factor: T of shape (r, p), any rank
    :param grad: g of shape (p,)
    :param damping: lambda > 0; usually 1e-3 to 1 times the metric's typical eigenvalue
    :param diagonal: d of shape (p,), strictly positive; ones if ``None``
    :return: x of shape (p,), in the dtype of ``grad``
    :raises ValueError: for a damping that is not positive, or shapes that do not fit

    Source: Moskovitz et al. (ICLR 2021), eq. 12, in the form that stays exact when the factor
    comes from a score function.
    """
    if not damping > 0:
        raise ValueError(f"damping must be > 0 for a low-rank metric (its inverse does not exist otherwise), got {damping}")
    if factor.ndim != 2 or grad.shape != factor.shape[1:]:
        raise ValueError(f"factor must be (r, p) and grad (p,), got {tuple(factor.shape)} and {tuple(grad.shape)}")
    scale = None if diagonal is None else diagonal.rsqrt()
    scaled_factor = factor if scale is None else factor * scale
    scaled_grad = grad if scale is None else grad * scale
    eigenvalues, eigenvectors = torch.linalg.eigh(gram_matrix(scaled_factor))
    projected = eigenvectors.T @ (scaled_factor @ scaled_grad).double()
    weights = eigenvectors @ (projected / (eigenvalues.clamp_min(0) + damping))
    solution: Tensor = (scaled_grad - scaled_factor.T @ weights.to(grad.dtype)) / damping
    return solution if scale is None else solution * scale


def gram_matrix(factor: Tensor) -> Tensor:
    """``T T^T`` in float64, in column blocks so that no float64 copy of a large factor exists."""
    if factor.dtype == torch.float64:
        return factor @ factor.T
    gram = torch.zeros(factor.shape[0], factor.shape[0], dtype=torch.float64, device=factor.device)
    for block in factor.split(1 << 16, dim=1):
        wide = block.double()
        gram.addmm_(wide, wide.T)
    return gram


class Solution(NamedTuple):
    """What :func:`conjugate_gradient` found."""

    x: Tensor
    residual: Tensor  # b - A x
    n_iterations: int


def conjugate_gradient(
    matrix_vector_product: Callable[[Tensor], Tensor],
    b: Tensor,
    max_steps: int = 15,
    tolerance: float = 1e-5,
) -> Solution:
    """Solve ``A x = b`` for a symmetric positive (semi-)definite ``A`` given by its products.

    Starts from zero, so the answer is a function of its inputs alone, and every iterate is an
    ascent direction (``x @ b > 0``). Stops once the residual is below ``tolerance * |b|``, after
    ``max_steps`` products, or when a direction without positive curvature shows that rounding (or
    an indefinite ``A``) leaves nothing more to gain.

    :param matrix_vector_product: v of shape (p,) -> A v of shape (p,)
    :param b: right-hand side, shape (p,)
    :param max_steps: largest number of products; usually 5 to 30
    :param tolerance: relative residual at which to stop
    :return: the solution, its residual and the number of products used

    Reference: Nocedal & Wright, Numerical Optimization, Alg. 5.2 and 7.1.
    """
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    squared_residual = residual.dot(residual)
    threshold = tolerance**2 * squared_residual
    n_iterations = 0
    while n_iterations < max_steps and squared_residual > threshold:
        product = matrix_vector_product(direction)
        curvature = direction.dot(product)
        if not curvature > 0:
            break
        step = squared_residual / curvature
        x = x + step * direction
        residual = residual - step * product
        new_squared_residual = residual.dot(residual)
        direction = residual + (new_squared_residual / squared_residual) * direction
        squared_residual = new_squared_residual
        n_iterations += 1
    return Solution(x, residual, n_iterations)
