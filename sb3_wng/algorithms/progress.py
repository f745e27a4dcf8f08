"""Training's progress, which schedules are functions of."""

from __future__ import annotations

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


class BoundedProgress(OnPolicyAlgorithm):
    """An on-policy algorithm whose progress ends at zero: past it, where the last rollout may end, schedules change sign."""

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)
