"""Behaviour embeddings: maps from trajectories to points of the space in which behaviour is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sb3_wng.behavior.trajectories import Trajectories, Trajectory


class BehaviorEmbedding(Protocol):
    """A map from windows of experience to points.

    ``is_pathwise``: the embedding is a differentiable function of the actions alone (given the states), so that its
    gradient can go along the path of reparametrised actions. Otherwise the score function is used.
    """

    @property
    def is_pathwise(self) -> bool: ...

    def __call__(self, trajectories: Trajectories) -> Tensor:
        """Points of shape (n, d)."""


class ActionSequence:
    """All actions of the window one after the other, zero where padded; d = T a (the papers' policy-gradient embedding)."""

    is_pathwise = True

    def __call__(self, trajectories: Trajectories) -> Tensor:
        return trajectories.actions.flatten(start_dim=1)


class StateSequence:
    """All observations of the window one after the other, zero where padded; d = T f: the path through the states."""

    is_pathwise = False

    def __call__(self, trajectories: Trajectories) -> Tensor:
        return trajectories.observations.flatten(start_dim=1)


class FinalState:
    """Where the window ends: the observation that its last step returned; d = f.

    A rollout buffer does not keep the observation that follows an episode's last action: there it is the one at which the
    window's last action was taken.
    """

    is_pathwise = False

    def __call__(self, trajectories: Trajectories) -> Tensor:
        if trajectories.final_observations is not None:
            return trajectories.final_observations
        return trajectories.observations[torch.arange(len(trajectories)), trajectories.lengths - 1]


class RewardToGo:
    """Component i is the sum of the rewards from step i on, undiscounted, zero where padded; d = T.

    Pacchiano et al. 2019 (Learning to score behaviors), reward-to-go encoding.
    """

    is_pathwise = False

    def __call__(self, trajectories: Trajectories) -> Tensor:
        return trajectories.rewards.flip(1).cumsum(dim=1).flip(1) * trajectories.mask


class StateVisitation:
    """Mean observation over the window; visit frequencies for discrete (one-hot) observations; d = f."""

    is_pathwise = False

    def __call__(self, trajectories: Trajectories) -> Tensor:
        return trajectories.observations.sum(dim=1) / trajectories.lengths[:, None]


class PerTrajectory:
    """A user's function of one :class:`Trajectory`, applied to every window and checked.

    :param function: returns a number or a one-dimensional array or tensor, of the same length for every trajectory
    """

    is_pathwise = False

    def __init__(self, function: Callable[[Trajectory], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, trajectories: Trajectories) -> Tensor:
        """:raises ValueError: naming the function, for points that are not finite vectors of one length"""
        points = [self._as_numbers(self.function(on_cpu(part))) for part in trajectories]
        shapes = {tuple(point.shape) for point in points}
        if len(shapes) > 1 or any(len(shape) > 1 for shape in shapes):
            raise ValueError(
                f"embedding {self.name!r} must return a number or a vector of the same length for every trajectory, "
                f"got shapes {', '.join(map(str, sorted(shapes)))}"
            )
        embeddings = torch.stack(points).reshape(len(points), -1)
        check_finite_points(embeddings, self.name)
        return embeddings.to(trajectories.observations)

    def _as_numbers(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().cpu().double()
        try:
            return torch.as_tensor(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"embedding {self.name!r} must return a number or a vector, got {type(value).__name__}: {error}"
            ) from error


def check_finite_points(points: Tensor, name: str) -> None:
    """:raises ValueError: naming the embedding, with the first of its points that is not finite"""
    is_finite = torch.isfinite(points).all(dim=1)
    if not is_finite.all():
        raise ValueError(f"embedding {name!r} returned non-finite numbers: {points[~is_finite][0].tolist()}")


def on_cpu(trajectory: Trajectory) -> Trajectory:
    """A trajectory that NumPy can read."""
    return Trajectory(*(None if part is None else part.detach().cpu() for part in trajectory))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Checked:
    """A user's embedding object, whose points are checked."""

    embedding: BehaviorEmbedding

    @property
    def name(self) -> str:
        return str(getattr(self.embedding, "name", type(self.embedding).__name__))

    @property
    def is_pathwise(self) -> bool:
        return self.embedding.is_pathwise

    def __call__(self, trajectories: Trajectories) -> Tensor:
        """:raises ValueError: naming the embedding, for what is not a tensor of finite numbers of shape (n, d)"""
        points = self.embedding(trajectories)
        if not isinstance(points, Tensor) or points.ndim != 2 or len(points) != len(trajectories):
            got = f"shape {tuple(points.shape)}" if isinstance(points, Tensor) else type(points).__name__
            raise ValueError(
                f"embedding {self.name!r} must return points of shape (n, d) for n = {len(trajectories)} windows, got {got}"
            )
        check_finite_points(points, self.name)
        return points


EMBEDDINGS: dict[str, type[BehaviorEmbedding]] = {
    "action_sequence": ActionSequence,
    "final_state": FinalState,
    "reward_to_go": RewardToGo,
    "state_sequence": StateSequence,
    "state_visitation": StateVisitation,
}


def make_embedding(embedding: str | BehaviorEmbedding | Callable[[Trajectory], Any]) -> BehaviorEmbedding:
    """An embedding from its alias, itself, or a function of one trajectory.

    :raises ValueError: for an unknown alias, naming the known ones
    """
    if isinstance(embedding, str):
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be a function or one of {', '.join(map(repr, EMBEDDINGS))}, got {embedding!r}")
        return EMBEDDINGS[embedding]()
    if isinstance(embedding, type):
        raise ValueError(f"embedding must be an object, not a class: pass {embedding.__name__}()")
    if type(embedding) in EMBEDDINGS.values() or isinstance(embedding, (Checked, PerTrajectory)):
        return embedding  # type: ignore[return-value]  # one of those
    if hasattr(embedding, "is_pathwise"):
        return Checked(embedding)  # type: ignore[arg-type]  # structurally one
    if callable(embedding):
        return PerTrajectory(embedding)
    raise ValueError(f"embedding must be a function or one of {', '.join(map(repr, EMBEDDINGS))}, got {embedding!r}")


def spread(embeddings: Tensor) -> float:
    """Half the mean squared distance between two of the points: their total variance."""
    return embeddings.double().var(dim=0).sum().item() if len(embeddings) > 1 else 0.0
