"""Running statistics of observations, kept inside a policy so that predicting and saving it need nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

CLIP = 10.0  # standard deviations
MIN_STD = 1e-2  # of a coordinate that has hardly moved so far


class ObservationNormalizer(nn.Module):
    """Standardises the continuous parts of observations; images and discrete parts pass through.

    Statistics only change between the iterations of an evolution strategy, by :meth:`update`: all candidates of an
    iteration see the same world. *Moments* of an episode are rows of count, mean and sum of squared deviations, shape
    (3, f); *statistics* are rows of mean and standard deviation, shape (2, f); both per key of a dict space, and under the
    key ``""`` for other spaces. Before the first update observations pass through unchanged.

    :param space: of the observations
    :param enabled: whether to do anything
    """

    def __init__(self, space: spaces.Space[Any], enabled: bool) -> None:
        super().__init__()
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        self.keys = [key for key, part in parts.items() if enabled and _is_continuous(part)]
        for i, key in enumerate(self.keys):
            size = int(np.prod(parts[key].shape or (1,)))
            moments = th.zeros(3, size, dtype=th.float64)
            statistics = th.stack([th.zeros(size, dtype=th.float64), th.ones(size, dtype=th.float64)])
            self.register_buffer(f"moments_{i}", moments)
            self.register_buffer(f"statistics_{i}", statistics)

    def forward(self, observations: Any) -> Any:
        """Observations (n, ...) as preprocessed by SB3, or a dict of them, standardised."""
        if not self.keys:
            return observations
        if isinstance(observations, dict):
            return {key: self._standardise(key, part) if key in self.keys else part for key, part in observations.items()}
        return self._standardise("", observations)

    def _standardise(self, key: str, observations: th.Tensor) -> th.Tensor:
        mean, std = self._buffer("statistics", key).to(observations.dtype)
        flat = (observations.flatten(start_dim=1) - mean) / std
        return flat.clamp(-CLIP, CLIP).view_as(observations)

    def moments(self, observations: Any) -> dict[str, NDArray[np.float64]]:
        """Moments of the observations (n, ...) of an episode."""
        found = {}
        for key in self.keys:
            part = observations[key] if isinstance(observations, dict) else observations
            flat = np.asarray(part, dtype=np.float64).reshape(len(part), -1)
            mean = flat.mean(axis=0)
            found[key] = np.stack([np.full_like(mean, len(flat)), mean, np.square(flat - mean).sum(axis=0)])
        return found

    def update(self, episodes: list[dict[str, NDArray[np.float64]]]) -> None:
        """Take in the moments of finished episodes; their order does not matter beyond rounding."""
        for key in self.keys:
            moments = self._buffer("moments", key)
            merged = moments.cpu().numpy()
            for episode in episodes:
                if key in episode:
                    merged = _merge(merged, episode[key])
            moments.copy_(th.as_tensor(merged))
            if merged[0, 0] > 0:
                std = np.maximum(np.sqrt(merged[2] / merged[0]), MIN_STD)
                self._buffer("statistics", key).copy_(th.as_tensor(np.stack([merged[1], std])))

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """What another copy needs in order to standardise alike."""
        return {key: self._buffer("statistics", key).cpu().numpy().copy() for key in self.keys}

    def set_statistics(self, statistics: dict[str, NDArray[np.float64]]) -> None:
        """Standardise as the copy that the statistics are from."""
        for key in self.keys:
            self._buffer("statistics", key).copy_(th.as_tensor(statistics[key]))

    def _buffer(self, name: str, key: str) -> th.Tensor:
        return self.get_buffer(f"{name}_{self.keys.index(key)}")


def _is_continuous(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and not is_image_space(space)


def _merge(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moments of two samples together (Chan et al. 1979)."""
    count = a[0] + b[0]
    shift = b[1] - a[1]
    mean = a[1] + shift * b[0] / count
    return np.stack([count, mean, a[2] + b[2] + np.square(shift) * a[0] * b[0] / count])
