"""A plane with several goals: the repulsion experiment of arXiv 1802.03976."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_wng.envs.mechanics import Array, columns
from sb3_wng.envs.rendering import BLUE, DARK, GREEN, WHITE, Canvas, Color

Point = tuple[float, float]


def circle_of_goals(n_goals: int, radius: float = 2.5) -> tuple[Point, ...]:
    """Equally spaced goals around the start; one of an odd number of them lies straight up."""
    angles = np.pi / 2 + (2 * np.pi / n_goals) * (np.arange(n_goals) + (0.5 if n_goals % 2 == 0 else 0.0))
    return tuple((float(radius * np.cos(angle)), float(radius * np.sin(angle))) for angle in angles)


@dataclass(frozen=True, kw_only=True)
class TwoGoals:
    """Walk from the origin to any of several equally good goals: ``TwoGoals-v0``.

    A step moves by ``.25 * action``, an action longer than 1 being shortened to 1. Reward: minus the distance to the
    nearest goal after the step. Nothing ends an episode before its time limit, so it pays to stay at a goal.

    State and observation (2): the position. Action (2): the displacement's direction and share of ``.25``.

    :param goals: their coordinates, shape (k, 2), inside the walls; :func:`circle_of_goals` places any number
    :param extent: walls at +-extent in both coordinates, by default where 20 steps can just reach
    :param max_episode_steps: an episode's length
    """

    goals: Sequence[Sequence[float]] = ((-2.0, 1.5), (2.0, 1.5))
    extent: float = 5.0
    max_episode_steps: int = 20
    step_length: ClassVar[float] = 0.25
    render_fps: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {self.max_episode_steps}")
        goals = np.array(self.goals, np.float64)
        if goals.ndim != 2 or goals.shape[1] != 2 or not len(goals):
            raise ValueError(f"goals must be a list of points [x, y], got {self.goals}")
        if not np.abs(goals).max() <= self.extent:
            raise ValueError(f"goals must lie inside the walls at +-extent = {self.extent}, got {self.goals}")

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-self.extent, self.extent, (2,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, rng: np.random.Generator, n: int) -> Array:
        return np.zeros((n, 2))

    def step(self, states: Array, actions: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        right, up = actions.T.astype(np.float64)
        scale = self.step_length / np.maximum(np.sqrt(right * right + up * up), 1)
        x = np.clip(states[:, 0] + scale * right, -self.extent, self.extent)
        y = np.clip(states[:, 1] + scale * up, -self.extent, self.extent)
        return columns(x, y), -self.distances(x, y), np.zeros(len(x), np.bool_)

    def distances(self, x: Array, y: Array) -> Array:
        """To the nearest goal; for coordinates of any one shape."""
        squares = [(x - right) ** 2 + (y - up) ** 2 for right, up in self.goals]
        return np.sqrt(np.minimum.reduce(squares))

    def observe(self, states: Array) -> NDArray[np.float32]:
        return np.ascontiguousarray(states, np.float32)

    def render(self, state: Array) -> NDArray[np.uint8]:
        reach = 1.2 * max(float(np.abs(np.array(self.goals)).max()), float(np.abs(state).max()), 1.5)
        canvas = Canvas((-reach, reach), (-reach, reach), width=400)
        distances = self.distances(*np.broadcast_arrays(canvas.x, canvas.y))
        shades: tuple[Color, ...] = ((235, 242, 235), (221, 234, 221), (205, 225, 205), (188, 215, 188))
        for radius, shade in zip((2.0, 1.5, 1.0, 0.5), shades, strict=True):
            canvas.fill(distances - radius, shade)
        canvas.fill(distances - 0.12, GREEN)
        canvas.disc((0, 0), 0.1, BLUE)
        canvas.disc((0, 0), 0.07, WHITE)
        canvas.disc((float(state[0]), float(state[1])), 0.1, DARK)
        return canvas.image
