"""Experience cut into windows: the (partial) trajectories that behaviour embeddings are functions of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Trajectory(NamedTuple):
    """One window without its padding: what a user's embedding gets."""

    observations: Tensor  # (t, f), preprocessed and flattened
    actions: Tensor  # (t, a), one-hot for discrete spaces
    rewards: Tensor  # (t,)
    final_observation: Tensor | None = None  # (f,): what the last step returned, where it is known


@dataclass(frozen=True)
class Trajectories:
    """``n`` windows of at most ``T`` consecutive steps of one episode, padded with zeros at the end.

    :param observations: shape (n, T, f): flattened; one-hot for discrete spaces, dict entries in the space's order
    :param actions: shape (n, T, a): one-hot for discrete spaces; may be attached to a graph
    :param rewards: shape (n, T)
    :param mask: shape (n, T), True where a step is real; every window has at least one
    :param final_observations: shape (n, f), the observations that the windows' last steps returned, where they are known
        (whole episodes of evolution strategies; a rollout buffer does not keep them)
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    final_observations: Tensor | None = None

    @classmethod
    def from_steps(cls, windows: Windows, observations: Tensor, actions: Tensor, rewards: Tensor) -> Trajectories:
        """Gather windows of flat steps: observations (N, f), actions (N, a), rewards (N,)."""
        return cls(windows.gather(observations), windows.gather(actions), windows.gather(rewards), windows.mask)

    @property
    def lengths(self) -> Tensor:
        """Number of real steps of each window, shape (n,)."""
        return self.mask.sum(dim=1)

    def __len__(self) -> int:
        return len(self.mask)

    def __iter__(self) -> Iterator[Trajectory]:
        for i, length in enumerate(self.lengths.tolist()):
            final = None if self.final_observations is None else self.final_observations[i]
            yield Trajectory(self.observations[i, :length], self.actions[i, :length], self.rewards[i, :length], final)


@dataclass(frozen=True)
class Windows:
    """Which steps make up which window.

    :param index: shape (n, T), positions among N flat steps; 0 where padded
    :param mask: shape (n, T), True where a step is real
    """

    index: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Windows:
        """The same windows where the steps to gather are."""
        return Windows(self.index.to(device), self.mask.to(device))

    def gather(self, steps: Tensor) -> Tensor:
        """Rows of ``steps`` (N, ...) as windows (n, T, ...), zero where padded."""
        mask = self.mask.reshape(*self.mask.shape, *[1] * (steps.ndim - 1))
        return steps[self.index] * mask

    def scatter(self, values: Tensor, n_steps: int) -> Tensor:
        """Values of windows (n,) at each of their steps, shape (n_steps,)."""
        steps = values.new_zeros(n_steps)
        steps[self.index[self.mask].to(values.device)] = values.repeat_interleave(self.mask.sum(dim=1).to(values.device))
        return steps

    def sum(self, steps: Tensor) -> Tensor:
        """Sum of ``steps`` (N,) over each window, shape (n,): a trajectory's log-probability from its steps'."""
        return self.gather(steps).sum(dim=1)


def cut_windows(episode_starts: NDArray[np.bool_], horizon: int) -> Windows:
    """Cut the columns of a rollout into windows of ``horizon`` steps that never cross an episode's end.

    :param episode_starts: shape (n_steps, n_envs), True at the first step of an episode
    :param horizon: T >= 1
    :return: windows over the N = n_steps * n_envs steps in environment-major order, as SB3's buffers flatten them
    :raises ValueError: for a horizon below 1
    """
    if horizon < 1:
        raise ValueError(f"embedding_horizon must be >= 1, got {horizon}")
    starts = np.array(episode_starts, dtype=bool)
    starts[0] = True
    n_steps, n_envs = starts.shape
    starts = starts.T.reshape(-1)
    steps = np.arange(n_steps * n_envs)
    since_start = steps - np.maximum.accumulate(np.where(starts, steps, 0))
    position = since_start % horizon
    window = np.cumsum(position == 0) - 1
    index = np.zeros((window[-1] + 1, horizon), dtype=np.int64)
    mask = np.zeros(index.shape, dtype=bool)
    index[window, position] = steps
    mask[window, position] = True
    return Windows(torch.from_numpy(index), torch.from_numpy(mask))
