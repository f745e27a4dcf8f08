"""What behaviour-guided policy gradients add to the loss: a coefficient times the distance from other behaviour."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn

from sb3_wng.algorithms.surrogate import PolicyBatch
from sb3_wng.behavior import BehaviorEmbedding, spread
from sb3_wng.geometry import ActionLaw, CategoricalLaw, DualPotentials, GaussianLaw, sinkhorn_distance, sinkhorn_potential

DISTANCES = ("closed_form", "total_variation", "dual", "sinkhorn", "kl")
MAX_POINTS = 256  # actions of a batch that are transported: the cost of a plan grows as their square


class SampleTransport(nn.Module):
    """W2^2 between samples, debiased, by Sinkhorn's iteration or by dual potentials that are kept from call to call.

    :param distance: ``"sinkhorn"`` or ``"dual"``
    :param entropic_reg: in units of the mean cost
    :param cost: ``"sqeuclidean"``, or ``"euclidean"`` for W1
    """

    n_fallbacks: th.Tensor

    def __init__(self, distance: str, entropic_reg: float, cost: str = "sqeuclidean") -> None:
        super().__init__()
        self.distance = distance
        self.entropic_reg = entropic_reg
        self.cost = cost
        self.duals = nn.ModuleList()  # of (x, y), (x, x) and (y, y), from the first fit on: debiased as Sinkhorn's
        self.register_buffer("n_fallbacks", th.tensor(0.0))

    def value(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """Distance between x (n, d) and y (m, d), differentiable in x; shape ()."""
        fixed = x.detach()
        duals = self._fitted(fixed, y)
        if duals is None:
            return sinkhorn_distance(x, y, self.entropic_reg, self.cost)
        of_x = duals[1].value(x, fixed)  # half the gradient of W(x, x): fixed is x, too
        return duals[0].value(x, y) - of_x + 0.5 * (of_x.detach() - duals[2].value(y, y))

    def potential(self, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """Derivative of the distance in the mass at each point of x, up to a constant; shape (n,)."""
        duals = self._fitted(x, y)
        if duals is None:
            return sinkhorn_potential(x, y, self.entropic_reg, self.cost)
        return duals[0].forward(x) - duals[1].forward(x)

    def _fitted(self, x: th.Tensor, y: th.Tensor) -> list[DualPotentials] | None:
        """The duals of (x, y), (x, x) and (y, y), or ``None`` where Sinkhorn's iteration is to be used."""
        if self.distance == "sinkhorn":
            return None
        if self._dim != x.shape[1]:
            self._make_duals(x.shape[1])
        self.duals.to(x.device)  # those that were loaded were made elsewhere
        duals = [dual for dual in self.duals if isinstance(dual, DualPotentials)]
        is_fitted = duals[0].fit(x, y).converged
        if is_fitted and all(dual.fit(z, z, duals[0].gamma).converged for dual, z in zip(duals[1:], (x, y), strict=True)):
            return duals
        self.n_fallbacks += 1
        warnings.warn(
            "The dual potentials did not converge; Sinkhorn's iteration took their place (train/n_dual_fallbacks counts "
            "how often). A larger entropic_reg makes the problem easier",
            stacklevel=2,
        )
        return None

    @property
    def _dim(self) -> int:
        """Of the space that the potentials are functions on; 0 before the first fit."""
        return len(self.duals[0].get_buffer("center")) if self.duals else 0

    def _make_duals(self, dim: int) -> None:
        """New potentials; none for ``dim=0``."""
        new = [DualPotentials(dim, entropic_reg=self.entropic_reg, cost=self.cost) for _ in range(3)] if dim else []
        self.duals = nn.ModuleList(new)

    def get_extra_state(self) -> dict[str, int]:
        return {"dim": self._dim}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Nothing: ``_load_from_state_dict`` has used it."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Before its parts are loaded: make room for potentials that were saved
        dim = state_dict.get(f"{prefix}_extra_state", {}).get("dim", 0)
        if dim != self._dim:
            self._make_duals(dim)
        super()._load_from_state_dict(state_dict, prefix, *args)


@dataclass(frozen=True)
class Standing:
    """Where a rollout's behaviour stands."""

    distance: float  # in squared units of the embedding (nats for "kl")
    unit: float  # what the coefficient's distance is divided by


class BehaviorPenalty(nn.Module):
    r"""``wasserstein_coef * distance / unit``, a term of the minimised loss (Moskovitz et al. 2021, eq. 4; eq. 3 for KL).

    Without a reference the distance is from the policy that collected the rollout (for embeddings of trajectories: from the
    rollout before), with one from the reference. The unit makes a coefficient mean the same on every task: the collecting
    policy's spread, half the number of action dimensions for KL (a mean-only change then counts alike in both), and the
    total variance of both samples for references and trajectories.

    - Single actions (no reference): differentiable in the policy's law at each batch.
    - Trajectories: they depend on states and rewards, so that each window is weighed by its potential u; the gradient
      :math:`E[u(X) \nabla \log q(X)]` is that of advantages less ``coef * (u - mean u) / unit`` at the window's steps.

    :param coefficient: > 0 attracts, < 0 repels
    :param distance: ``"closed_form"``, ``"total_variation"``, ``"dual"``, ``"sinkhorn"`` or ``"kl"``
    :param entropic_reg: of the distances between samples, in units of their mean cost
    :param embedding: of trajectories; ``None``: single actions
    :param n_resampled: actions per state that make up one point
    :param reference: points (m, d), or ``None``
    :param play: from samples of the law of actions (..., d) to what the reference's actions are; ``None``: the same
    :param is_adaptive: whether the coefficient is a state, to be saved, and not a setting
    :param seed: of resampled actions
    """

    coefficient: th.Tensor

    def __init__(
        self,
        coefficient: float,
        distance: str = "closed_form",
        entropic_reg: float = 0.2,
        embedding: BehaviorEmbedding | None = None,
        n_resampled: int = 1,
        reference: th.Tensor | None = None,
        play: Callable[[th.Tensor], th.Tensor] | None = None,
        is_adaptive: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("coefficient", th.tensor(float(coefficient), dtype=th.float64))
        self.keeps_setting = False  # whether the next state that is loaded leaves the coefficient as it is
        self.is_adaptive = is_adaptive
        self.distance = distance
        self.embedding = embedding
        self.n_resampled = n_resampled
        self.reference = reference if reference is None or embedding is not None else thinned(reference)
        self.play = play
        self.standing: Standing | None = None
        self.rollout_noise = th.empty(0, 0, 0)
        if distance in ("dual", "sinkhorn"):
            self.samples = SampleTransport(distance, entropic_reg)
            self.memory = Memory(seed)

    def begin(self, law: ActionLaw) -> None:
        """Fix the unit of a rollout, and the noise of its samples, for single actions."""
        is_sampled = self.distance in ("dual", "sinkhorn")
        if is_sampled:
            assert isinstance(law, GaussianLaw)
            self.rollout_noise = self._noise(law)
        if self.distance == "kl":
            unit = 0.5 * law.n_actions
        elif self.reference is None:
            unit = law.spread().item() * (self.n_resampled if is_sampled else 1)
        else:
            assert isinstance(law, GaussianLaw)
            points = self._points(law, self.rollout_noise)
            check_dimensions(points.shape[1], self.reference.shape[1])
            unit = spread(th.cat([points, self.reference.to(points)]))
        self.standing = Standing(0.0, max(unit, 1e-12))

    def weigh(self, distance: th.Tensor) -> th.Tensor:
        """The term of the loss, shape ()."""
        assert self.standing is not None
        return self.coefficient.to(distance) * distance / self.standing.unit

    def distance_of(self, law: ActionLaw, batch: PolicyBatch) -> th.Tensor:
        """Mean distance of single actions from the collecting policy's, or from the reference; shape ()."""
        if self.distance == "closed_form":
            return law.wasserstein_distance(batch.old_law).mean()
        if self.distance == "total_variation":
            assert isinstance(law, CategoricalLaw)
            assert isinstance(batch.old_law, CategoricalLaw)
            return law.total_variation(batch.old_law).mean()
        if self.distance == "kl":
            return batch.old_law.kl_divergence(law).mean()
        rows = thinned(th.arange(len(batch.advantages), device=batch.advantages.device))
        # Of the whole rollout always the same draw: a line search would compare draws, and not policies
        is_rollout = len(batch.advantages) == self.rollout_noise.shape[1]
        law, old_law = law.select(rows), batch.old_law.select(rows)
        assert isinstance(law, GaussianLaw)
        assert isinstance(old_law, GaussianLaw)
        noise = self.rollout_noise[:, rows] if is_rollout else self._noise(law)
        # The same noise on both sides: where the policy has not moved, the samples coincide
        target = self._points(old_law, noise) if self.reference is None else self.reference.to(law.mean)
        return self.samples.value(self._points(law, noise), target)

    def _points(self, law: GaussianLaw, noise: th.Tensor) -> th.Tensor:
        """Reparametrised actions, shape (n, k d) for noise (k, n, d)."""
        actions = law.mean + law.std * noise
        return (actions if self.play is None else self.play(actions)).transpose(0, 1).flatten(start_dim=1)

    def _noise(self, law: GaussianLaw) -> th.Tensor:
        return th.randn((self.n_resampled, *law.mean.shape), generator=self.memory.generator).to(law.mean)

    def signal(self, points: th.Tensor) -> th.Tensor:
        """What to take from the advantages of each window, shape (n,); its points (n, d) are what the next rollout meets."""
        target = self.memory.recall(points.shape[1]) if self.reference is None else self.reference
        self.memory.points = points if self.reference is None else None
        if target is None:  # the first rollout
            self.standing = None
            return th.zeros_like(points[:, 0])
        check_dimensions(points.shape[1], target.shape[1])
        target = target.to(points)
        unit = max(spread(th.cat([points, target])), 1e-12)
        self.standing = Standing(self.samples.value(points, target).item(), unit)
        potential = self.samples.potential(points, target)
        return self.coefficient.to(points) * centered(potential) / unit

    def adapt(self, distance: float, target: float) -> None:
        """Raise the coefficient where behaviour moved further than ``target`` units, lower it where it moved less.

        As PPO's penalty (Schulman et al. 2017, section 4), by smaller factors.
        """
        assert self.standing is not None
        if distance / self.standing.unit > 1.5 * target:
            self.coefficient *= 1.5
        elif distance / self.standing.unit < target / 1.5:
            self.coefficient /= 1.5
        self.coefficient.clamp_(1e-4, 1e4)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.is_adaptive:  # a setting is no state; adapted ones are never 0
            destination[f"{prefix}coefficient"] = th.zeros_like(self.coefficient)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        was_adapted = state_dict.get(f"{prefix}coefficient", 0) > 0
        if self.keeps_setting or not (self.is_adaptive and was_adapted):
            state_dict[f"{prefix}coefficient"] = self.coefficient  # the setting, which load() may have been given
        self.keeps_setting = False
        if not hasattr(self, "samples"):  # the distance that was saved may be another one
            for key in [key for key in state_dict if key.startswith((f"{prefix}samples.", f"{prefix}memory."))]:
                del state_dict[key]
        elif f"{prefix}samples.n_fallbacks" not in state_dict:
            state_dict.update(self.state_dict(prefix=prefix) | {f"{prefix}coefficient": state_dict[f"{prefix}coefficient"]})
        super()._load_from_state_dict(state_dict, prefix, *args)


def centered(potential: th.Tensor) -> th.Tensor:
    """What each window is worth against the others of its rollout, shape (n,)."""
    if len(potential) < 2:
        warnings.warn(
            "a rollout is a single window of behaviour, which there is nothing to weigh against: the coefficient has no "
            "effect. Lower embedding_horizon, or raise n_steps or the number of environments",
            stacklevel=2,
        )
    return potential - potential.mean()


def thinned(rows: th.Tensor) -> th.Tensor:
    """Every k-th of the rows, so that at most ``MAX_POINTS`` are left."""
    return rows[:: -(-len(rows) // MAX_POINTS)]


class Memory(nn.Module):
    """What a penalty between samples carries from rollout to rollout; exact resumption needs both."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.generator = th.Generator().manual_seed(int(th.randint(2**31, ())) if seed is None else seed)
        self.points: th.Tensor | None = None  # of the last rollout, shape (n, d)
        self._is_loaded = False

    def recall(self, dim: int) -> th.Tensor | None:
        """The last rollout's points, ``None`` if there are none or ``load()`` was given another embedding than theirs.

        :raises ValueError: for an embedding whose dimension changes between rollouts
        """
        is_loaded, self._is_loaded = self._is_loaded, False
        if self.points is None or self.points.shape[1] == dim:
            return self.points
        if not is_loaded:
            raise ValueError(
                f"embedding: its points have dimension {dim}, in the rollout before they had {self.points.shape[1]}"
            )
        return None

    def get_extra_state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "points": self.points}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.points = state["points"]
        self._is_loaded = True


def check_dimensions(d: int, d_reference: int, embedding: object = None) -> None:
    """:raises ValueError: for a reference of another space"""
    if d != d_reference:
        name = f" for {embedding!r}" if isinstance(embedding, str) else ""
        raise ValueError(f"reference must be of the embedding's dimension, shape (m, {d}){name}, got (m, {d_reference})")
