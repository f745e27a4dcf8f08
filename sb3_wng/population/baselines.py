"""A baseline for REINFORCE that costs almost nothing: linear regression in place of a critic."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_wng.behavior import flat_observations
from sb3_wng.population.rollouts import flat_columns

CLIP = 10.0  # of observations, where they are not normalised
TIME_UNIT = 100.0  # steps
RIDGE = 1e-5


class LinearBaseline(nn.Module):
    """
    Returns-to-go as a linear function of the observation, its squares, and the time in the episode to the third power.

    The features and the ridge are those of rllab's ``LinearFeatureBaseline`` (Duan et al. 2016, arXiv 1604.06778), the time
    counted from the last start of an episode in the rollout. A rollout is fitted after it has been used: what is subtracted
    from its returns comes from the rollouts before and leaves the gradient unbiased. Predicts zero before the first fit.

    :param observation_space: anything but images
    :raises ValueError: for images and dictionaries that contain some
    """

    weights: th.Tensor

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__()
        parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
        if any(is_image_space(part, check_channels=False) for part in parts):
            raise ValueError("algorithm='pg_linear' regresses on the observation's numbers, not on images; 'a2c' has a critic")
        self.observation_space = observation_space
        n_features = 2 * spaces.flatdim(observation_space) + 4
        self.register_buffer("weights", th.zeros(n_features, dtype=th.float64))

    def features(self, buffer: RolloutBuffer) -> th.Tensor:
        """Of every step of a filled rollout buffer, shape (T * n_envs, f)."""
        rows = flat_columns(buffer.observations, slice(None))
        numbers = flat_observations(rows, self.observation_space).double().clamp(-CLIP, CLIP)
        time = th.as_tensor(steps_since_start(buffer.episode_starts)).flatten()[:, None] / TIME_UNIT
        parts = [numbers, numbers**2, time, time**2, time**3, th.ones_like(time)]
        return th.cat(parts, dim=1).to(self.weights.device)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """Expected returns-to-go (N,) from features (N, f)."""
        return features @ self.weights

    def fit(self, features: th.Tensor, returns: th.Tensor) -> None:
        """Ridge regression of returns-to-go (N,) on features (N, f)."""
        gram = features.T @ features + RIDGE * th.eye(features.shape[1], dtype=features.dtype, device=features.device)
        self.weights.copy_(th.linalg.solve(gram, features.T @ returns.to(features)))


def steps_since_start(episode_starts: NDArray[Any]) -> NDArray[np.float64]:
    """Steps since the episode began, or since the rollout did.

    :param episode_starts: shape (T, n_envs), nonzero at an episode's first step
    :return: shape (T, n_envs)
    """
    step = np.arange(len(episode_starts), dtype=np.float64)[:, None]
    return step - np.maximum.accumulate(np.where(episode_starts > 0, step, 0.0), axis=0)
