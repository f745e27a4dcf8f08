"""A regulator whose optimal policy is known: linear dynamics, quadratic cost, episodes of eight steps.

The state x (4 numbers) starts at N(0, I) and moves to A x + B u under the action u (2 numbers). The cost x'Qx + u'Ru over an
unlimited time has the optimum u = -K x, where K = (R + B'PB)^{-1} B'PA and P solves the Riccati equation. The reward is the
cost's excess over that optimum,

    r = -(u + K x)' (R + B'PB) (u + K x),

the negative cost shaped by the potential -x'Px (Ng et al. 1999), which changes no optimum. The best return is therefore
exactly 0 for any horizon and discount; minus the return is the policy's error, with what the spread of its actions costs. The
best policy is deterministic and linear.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_are

from sb3_wng.envs.rendering import BLUE, GREY, ORANGE, Canvas

A = 0.95 * np.array([[0.9, 0.3, 0.0, 0.1], [-0.3, 0.9, 0.1, 0.0], [0.0, -0.1, 0.8, 0.4], [-0.1, 0.0, -0.4, 0.8]])
B = np.array([[0.5, 0.0], [0.3, 0.2], [0.0, 0.5], [-0.2, 0.3]])
Q, R = np.eye(4), 0.5 * np.eye(2)
P = solve_discrete_are(A, B, Q, R)
CURVATURE = R + B.T @ P @ B
GAIN = np.linalg.solve(CURVATURE, B.T @ P @ A)
MAX_ACTION = 10.0  # far from what the optimum uses


class LinearQuadraticEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """The regulator; registered as ``LinearQuadratic-v0``.

    :param render_mode: ``"rgb_array"`` or ``None``; pictures show the state as two points, which are to come to the middle
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Box(-MAX_ACTION, MAX_ACTION, (2,), np.float32)
        self._state = np.zeros(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict]:
        super().reset(seed=seed)
        self._state = self.np_random.normal(size=4)
        return self._state.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict]:
        excess = action + GAIN @ self._state
        self._state = A @ self._state + B @ action
        return self._state.astype(np.float32), -float(excess @ CURVATURE @ excess), False, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """A picture, shape (320, 320, 3), if ``render_mode`` asks for it."""
        if self.render_mode is None:
            return None
        canvas = Canvas((-4, 4), (-4, 4), width=320)
        canvas.disc((0, 0), 0.1, GREY)
        for (x, y), color in zip(self._state.reshape(2, 2), (BLUE, ORANGE), strict=True):
            canvas.disc((x, y), 0.2, color)
        return canvas.image
