r"""Potentials of entropic transport learnt from a stream of samples: the estimators of Abdullah et al. (2018).

A policy whose behaviour f(tau) has the law :math:`\mu_\theta` is drawn to, or driven from, a law :math:`\nu` by the score
function: the gradient of the distance is :math:`E[u(f(\tau)) \nabla \log p_\theta(\tau)]` with u the potential of

.. math::

    W_\epsilon(\mu, \nu) = \max_{u, v} E[u(x)] + E[v(y)] - \epsilon E\, e^{(u(x) + v(y) - c(x, y)) / \epsilon} + \epsilon.

All classes ascend, whatever the sign with which the potential then enters a reward, and share one interface: ``update`` takes
samples, ``signal`` gives the potential at each sample of the first law, up to a constant. :class:`KernelDual` and
:class:`SemiDiscreteDual` ascend that dual. Those of two histograms r and c are, as in the source, of
:math:`\min_P \langle P, M \rangle + \epsilon \sum P (\log P - 1)`, whose potential is :math:`u + \epsilon \log r`: attraction
then also favours atoms that are visited rarely, even where both laws are the same.

| class | first law | second law | of the source |
|---|---|---|---|
| :class:`KernelDual` | continuous | continuous | Algorithm 1 |
| :class:`SinkhornDual` | discrete | discrete | Algorithm 2 |
| :class:`AlternatingDual` | discrete | discrete | Algorithm 3 |
| :class:`SemiDiscreteDual` | continuous | discrete | Algorithm 4 |

Where all samples of an iteration are at hand, :func:`sb3_wng.geometry.sinkhorn_potential` and
:class:`sb3_wng.geometry.DualPotentials` solve the problem instead of following it, and are what the algorithms here use.

Reference: Abdullah, Pacchiano & Draief, Reinforcement learning with Wasserstein distance regularisation, with
applications to multipolicy learning, arXiv 1802.03976. The stochastic duals are those of Genevay et al. (NeurIPS 2016).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sb3_wng.geometry.transport import check_positive, check_samples, cost_matrix

# Largest exponent of a dual's constraint: beyond it a step is long enough, and its square would overflow
_MAX_EXPONENT = 10.0


class KernelDual(nn.Module):
    r"""Both potentials as growing sums of kernels, :math:`u = \sum_i a_i k(x_i, \cdot)`, :math:`v = \sum_i a_i k(y_i, \cdot)`.

    After the k-th batch of n pairs, each pair is a new centre of both with coefficient

    .. math:: a = \frac{C}{n \sqrt{k}} \left(1 - e^{(u(x) + v(y) - c(x, y)) / \epsilon}\right).

    :param dim: of the samples
    :param entropic_reg: epsilon, in units of the cost; below about a tenth of the mean cost the exponential makes it slow
    :param rate: C, in units of the cost; at most about epsilon
    :param width: of the Gaussian kernel, in units of the samples
    :param cost: ``"euclidean"`` (the source's) or ``"sqeuclidean"``
    :param max_centers: older centres are forgotten; the cost of an update grows with their number

    Reference: Algorithm 1 of arXiv 1802.03976; Genevay et al. 2016, Algorithm 3.
    """

    x: Tensor
    y: Tensor
    coefficients: Tensor
    n_batches: Tensor

    def __init__(
        self,
        dim: int,
        entropic_reg: float = 0.1,
        rate: float = 0.1,
        width: float = 1.0,
        cost: str = "euclidean",
        max_centers: int = 5000,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, entropic_reg=entropic_reg, rate=rate, width=width, max_centers=max_centers)
        cost_matrix(torch.zeros(1, 1), torch.zeros(1, 1), cost)  # refuses an unknown cost
        self.entropic_reg, self.rate, self.width, self.cost, self.max_centers = entropic_reg, rate, width, cost, max_centers
        self.register_buffer("x", torch.zeros(0, dim, dtype=torch.float64))
        self.register_buffer("y", torch.zeros(0, dim, dtype=torch.float64))
        self.register_buffer("coefficients", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("n_batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """One ascent step on pairs of independent samples, both of shape (n, d)."""
        check_samples(x, y)
        if len(x) != len(y):
            raise ValueError(f"x and y must be pairs, got {len(x)} and {len(y)} samples")
        x, y = x.double(), y.double()
        u, v = self._sum(x, self.x), self._sum(y, self.y)
        cost = cost_matrix(x[:, None], y[:, None], self.cost).flatten()
        self.n_batches += 1
        step = self.rate / (len(x) * self.n_batches.sqrt().item())
        new = step * (1 - torch.exp(((u + v - cost) / self.entropic_reg).clamp(max=_MAX_EXPONENT)))
        self.x = torch.cat([self.x, x])[-self.max_centers :]
        self.y = torch.cat([self.y, y])[-self.max_centers :]
        self.coefficients = torch.cat([self.coefficients, new])[-self.max_centers :]

    def signal(self, x: Tensor) -> Tensor:
        """u at samples (n, d), shape (n,)."""
        return self._sum(x.double(), self.x).to(x.dtype)

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """The dual's value on samples (n, d) and (m, d): at most W_epsilon between them; shape ()."""
        x, y = x.double(), y.double()
        u, v = self._sum(x, self.x), self._sum(y, self.y)
        exponent = (u[:, None] + v - cost_matrix(x, y, self.cost)) / self.entropic_reg
        return u.mean() + v.mean() - self.entropic_reg * (exponent.exp().mean() - 1)

    def _sum(self, points: Tensor, centers: Tensor) -> Tensor:
        kernel = torch.exp(-cost_matrix(points, centers, "sqeuclidean") / (2 * self.width**2))
        return kernel @ self.coefficients

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # the number of centres grows: take over the saved shapes
        for name in ("x", "y", "coefficients"):
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SinkhornDual(nn.Module):
    r"""Potentials of two histograms by Sinkhorn's iteration, solved anew for every batch.

    :math:`a = \log(w) / \rho`, centred, where :math:`w \leftarrow r / (K z), z \leftarrow c / (K^\top w)` and
    :math:`K = e^{-\rho M}`; in the log domain, by POT.

    :param costs: M, shape (n, m)
    :param target: the second law c, shape (m,); need not be normalised
    :param entropic_reg: 1 / rho, in units of the cost
    :param smoothing: mass given to every atom before normalisation, for those that no sample visited

    Reference: Algorithm 2 of arXiv 1802.03976; Cuturi (NeurIPS 2013).
    """

    costs: Tensor
    target: Tensor
    potential: Tensor

    def __init__(self, costs: Tensor, target: Tensor, entropic_reg: float = 0.1, smoothing: float = 1e-3) -> None:
        super().__init__()
        check_positive(entropic_reg=entropic_reg, smoothing=smoothing)
        costs, target = _check_discrete(costs, target)
        self.entropic_reg, self.smoothing = entropic_reg, smoothing
        self.register_buffer("costs", costs)
        self.register_buffer("target", _smooth(target, smoothing))
        self.register_buffer("potential", torch.zeros_like(costs[:, 0]))

    @torch.no_grad()
    def update(self, indices: Tensor) -> None:
        """Solve for the law of the atoms (n,) that were visited."""
        import ot  # takes a second

        visited = _smooth(_frequencies(indices, len(self.costs)), self.smoothing)
        _, log = ot.bregman.sinkhorn_log(
            visited, self.target, self.costs, self.entropic_reg, numItermax=10_000, stopThr=1e-8, log=True, warn=False
        )
        potential = self.entropic_reg * log["log_u"]
        self.potential = potential - potential.mean()

    def signal(self, indices: Tensor) -> Tensor:
        """Potential of each atom's mass, shape (n,)."""
        return self.potential[indices]


class AlternatingDual(nn.Module):
    r"""Potentials of two histograms by stochastic ascent, from visited atoms of both.

    .. math::

        \max_{a, b} r \cdot a + c \cdot b - \frac{1}{\rho} \sum_{ij} G_{ij}, \quad G_{ij} = e^{-\rho (M_{ij} - a_i - b_j)}

    by :math:`a \leftarrow a + \eta (\hat r - G 1)` and :math:`b \leftarrow b + \eta (\hat c - G^\top 1)`.

    :param costs: M, shape (n, m)
    :param entropic_reg: 1 / rho, in units of the cost
    :param rate: eta; below ``entropic_reg`` for stability, since G sums to about 1

    Reference: Algorithm 3 of arXiv 1802.03976.
    """

    costs: Tensor
    a: Tensor
    b: Tensor

    def __init__(self, costs: Tensor, entropic_reg: float = 0.1, rate: float = 0.05) -> None:
        super().__init__()
        check_positive(entropic_reg=entropic_reg, rate=rate)
        costs, _ = _check_discrete(costs, torch.ones(costs.shape[-1]))
        self.entropic_reg, self.rate = entropic_reg, rate
        self.register_buffer("costs", costs)
        # G starts at a total of at most 1, where the exponential does no harm
        start = -0.5 * entropic_reg * math.log(costs.numel())
        self.register_buffer("a", torch.full_like(costs[:, 0], start))
        self.register_buffer("b", torch.full_like(costs[0], start))

    @torch.no_grad()
    def update(self, indices: Tensor, target_indices: Tensor) -> None:
        """One ascent step on atoms that the first law (n,) and the second (k,) visited."""
        first, second, plan = _frequencies(indices, len(self.a)), _frequencies(target_indices, len(self.b)), self._plan()
        self.a += self.rate * (first - plan.sum(dim=1))
        self.b += self.rate * (second - plan.sum(dim=0))

    def signal(self, indices: Tensor) -> Tensor:
        """Potential of each atom's mass, shape (n,)."""
        return self.a[indices]

    def value(self, first: Tensor, second: Tensor) -> Tensor:
        """The dual's value for two histograms (n,) and (m,), shape (); its maximum is min <P, M> + eps sum P (log P - 1)."""
        return first.double() @ self.a + second.double() @ self.b - self.entropic_reg * self._plan().sum()

    def _plan(self) -> Tensor:
        exponent = (self.a[:, None] + self.b - self.costs) / self.entropic_reg
        return exponent.clamp(max=_MAX_EXPONENT).exp()


class SemiDiscreteDual(nn.Module):
    r"""The potential of a discrete second law, by averaged stochastic ascent on samples of the first.

    .. math:: h(x, v) = \sum_j c_j v_j - \epsilon \log \sum_j c_j e^{(v_j - c(x, y_j)) / \epsilon}

    is maximised in expectation by :math:`v \leftarrow v + \frac{C}{\sqrt k} (c - \chi(x))`, with :math:`\chi` the softmax
    weights; the iterates' average is the estimate. h itself is the signal.

    :param atoms: y, shape (m, d)
    :param weights: c, shape (m,); ``None``: equal ones
    :param entropic_reg: epsilon, in units of the cost
    :param rate: C, in units of the cost
    :param cost: ``"euclidean"`` (the source's) or ``"sqeuclidean"``

    Reference: Algorithm 4 of arXiv 1802.03976; Genevay et al. 2016, Algorithm 2.
    """

    atoms: Tensor
    weights: Tensor
    iterate: Tensor
    average: Tensor
    n_batches: Tensor

    def __init__(
        self,
        atoms: Tensor,
        weights: Tensor | None = None,
        entropic_reg: float = 0.1,
        rate: float = 1.0,
        cost: str = "euclidean",
    ) -> None:
        super().__init__()
        check_positive(entropic_reg=entropic_reg, rate=rate)
        check_samples(atoms, atoms)
        cost_matrix(torch.zeros(1, 1), torch.zeros(1, 1), cost)
        weights = atoms.new_ones(len(atoms)) if weights is None else weights.to(atoms.device)
        if weights.shape != (len(atoms),) or not (weights > 0).all():
            raise ValueError(f"weights must be {len(atoms)} numbers > 0, one for each atom")
        self.entropic_reg, self.rate, self.cost = entropic_reg, rate, cost
        self.register_buffer("atoms", atoms.double())
        self.register_buffer("weights", (weights / weights.sum()).double())
        self.register_buffer("iterate", torch.zeros_like(self.weights))
        self.register_buffer("average", torch.zeros_like(self.weights))
        self.register_buffer("n_batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """One ascent step on samples (n, d)."""
        chi = torch.softmax(self._logits(x, self.iterate), dim=1).mean(dim=0)
        self.n_batches += 1
        self.iterate += self.rate / self.n_batches.sqrt().item() * (self.weights - chi)
        self.average += (self.iterate - self.average) / self.n_batches.item()

    def signal(self, x: Tensor) -> Tensor:
        """h at samples (n, d) and the averaged potential, shape (n,); its mean is at most W_epsilon."""
        bound = self.weights @ self.average - self.entropic_reg * torch.logsumexp(self._logits(x, self.average), dim=1)
        return bound.to(x.dtype)

    def _logits(self, x: Tensor, potential: Tensor) -> Tensor:
        check_samples(x, self.atoms)
        return (potential - cost_matrix(x.double(), self.atoms, self.cost)) / self.entropic_reg + self.weights.log()


def _frequencies(indices: Tensor, n: int) -> Tensor:
    if not (len(indices) > 0 and 0 <= indices.min() and indices.max() < n):
        raise ValueError(f"indices must be those of one or more of the {n} atoms, from 0 to {n - 1}")
    return torch.bincount(indices, minlength=n).double() / len(indices)


def _smooth(histogram: Tensor, mass: float) -> Tensor:
    smoothed = histogram.double() / histogram.sum() + mass
    return smoothed / smoothed.sum()


def _check_discrete(costs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if costs.ndim != 2 or costs.numel() == 0 or not torch.isfinite(costs).all():
        raise ValueError(f"costs must be a finite matrix (n, m), got shape {tuple(costs.shape)}")
    if target.shape != costs.shape[1:] or not (torch.isfinite(target).all() and (target >= 0).all() and target.sum() > 0):
        raise ValueError(f"target must be {costs.shape[1]} finite numbers >= 0, not all zero, got shape {tuple(target.shape)}")
    return costs.double(), target.to(costs.device).double()
