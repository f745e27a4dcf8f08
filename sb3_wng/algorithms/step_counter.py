"""What callbacks hear of an evolution strategy's episodes, wherever these are run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_wng.algorithms.evaluation import Outcome

if TYPE_CHECKING:
    from sb3_wng.algorithms.evolution import EvolutionStrategy


class StepCounter:
    """Counts environment steps and passes them on to the callbacks as SB3's algorithms do.

    :param model: whose ``num_timesteps`` and episode statistics are kept
    :param callback: of its ``learn``
    """

    def __init__(self, model: EvolutionStrategy, callback: BaseCallback) -> None:
        self._model = model
        self._callback = callback
        self.has_stopped = False  # once the callback has said so

    def __call__(
        self, rewards: NDArray[Any], dones: NDArray[np.bool_], infos: list[dict[str, Any]], counted: NDArray[np.bool_]
    ) -> bool:
        """After a step of all columns, of which some count; ``False`` ends training."""
        self._model.num_timesteps += int(counted.sum())
        infos = [info if counts else {} for info, counts in zip(infos, counted, strict=True)]
        dones = dones & counted
        self._model._update_info_buffer(infos, dones)
        self._callback.update_locals({"self": self._model, "rewards": rewards, "dones": dones, "infos": infos})
        self.has_stopped = self.has_stopped or not self._callback.on_step()
        return not self.has_stopped

    def replay(self, outcome: Outcome) -> bool:
        """Count the steps of an episode that another process has run; ``False`` ends training.

        As many at a time as the model has environments, so that callbacks are called as often as if these had run it.
        """
        n_envs = self._model.n_envs
        for start in range(0, outcome.length, n_envs):
            counted = np.arange(n_envs) < outcome.length - start
            rewards, dones = np.zeros(n_envs), np.zeros(n_envs, dtype=bool)  # single rewards stay where they came from
            infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
            if start + n_envs >= outcome.length:
                last = int(counted.sum()) - 1
                dones[last] = True
                if outcome.error is None:
                    rewards[last] = outcome.episode_return
                    own = {"r": outcome.episode_return, "l": outcome.length, "t": 0.0}
                    infos[last] = {"episode": outcome.monitored or own}
                    if outcome.is_success is not None:
                        infos[last]["is_success"] = outcome.is_success
            if not self(rewards, dones, infos, counted):
                return False
        return True


class StepProgressBar(ProgressBarCallback):
    """SB3's progress bar, which counts a step of every column, for a model of whose columns some idle."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._n_shown = self.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._n_shown)
        self._n_shown = self.num_timesteps
        return True


def with_progress_bar(callback: MaybeCallback) -> list[BaseCallback]:
    """What a user has given ``learn``, and the bar."""
    if callback is None:
        given: list[BaseCallback] = []
    elif isinstance(callback, list):
        given = callback
    else:
        given = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
    return [*given, StepProgressBar()]
