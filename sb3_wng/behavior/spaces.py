"""Observations and actions of any SB3 space as rows of numbers, the coordinates that embeddings work in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor

Array = NDArray[Any] | Tensor


def flat_observations(observations: Array | Mapping[str, Array], space: spaces.Space[Any]) -> Tensor:
    """Observations as a network gets them, flattened: images in [0, 1], one-hot for discrete spaces.

    :param observations: shape (N, ...), or one such array for each key of a dict space; discrete ones (N,) or (N, 1)
    :param space: as the algorithm knows it (``model.observation_space``: images with channels first)
    :return: shape (N, f), float32; the entries of a dict one after the other in the order of the space
    """
    if isinstance(space, spaces.Dict):
        assert isinstance(observations, Mapping), f"a Dict space has dicts of observations, got {type(observations).__name__}"
        return torch.cat([flat_observations(observations[key], subspace) for key, subspace in space.spaces.items()], dim=1)
    numbers = preprocess_obs(torch.as_tensor(observations), space)
    assert isinstance(numbers, Tensor)
    return numbers.flatten(start_dim=1)


def flat_actions(actions: Array, space: spaces.Space[Any]) -> Tensor:
    """Actions as rows of numbers: one-hot for discrete spaces, and what they are for boxes, attached to their graph.

    :param actions: shape (N, ...); discrete ones (N,) or (N, 1), as whole numbers of any type
    :return: shape (N, a), float32
    """
    return flat_observations(actions, space)


def environment_major(steps: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Steps of shape (n_envs, ...) one after the other, one environment after the other: (n_envs * n_steps, ...)."""
    stacked = np.stack(steps, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def environment_major_observations(
    steps: Sequence[Any], rows: NDArray[np.int64] | slice = slice(None)
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Rows, in environment-major order, of the observations (arrays or dicts of them) of several steps."""
    if isinstance(steps[0], dict):
        return {key: environment_major([step[key] for step in steps])[rows] for key in steps[0]}
    return environment_major(steps)[rows]
