"""Gymnasium's pendulum, upright and at rest at first: a task whose best return is known, and unstable."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from numpy.typing import NDArray


class UprightPendulumEnv(PendulumEnv):
    """``Pendulum-v1`` that starts where it should stay; registered as ``UprightPendulum-v0``.

    Without a torque it stays, at no cost: the best return is exactly 0, for any discount. A policy that explores makes it
    fall, and has to swing it up again; holding it still takes a deterministic policy that balances. What is missing from 0 is
    the policy's error, with what the spread of its actions costs.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict]:
        """As every environment's; ``options``, which ``Pendulum-v1`` has for the start, change nothing here."""
        return super().reset(seed=seed, options={"x_init": 0.0, "y_init": 0.0})
