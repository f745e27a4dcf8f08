"""Views on a filled rollout buffer: checked, flattened, cut into minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_wng.behavior import Trajectories, Windows, cut_windows, flat_actions, flat_observations


def select(observations: PyTorchObs, index: th.Tensor | slice) -> PyTorchObs:
    """Rows of a tensor or of each tensor of a dict."""
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


def minibatches(n: int, batch_size: int | None, device: th.device) -> Iterator[th.Tensor]:
    """Random partition of ``range(n)`` into batches; the last may be smaller."""
    yield from th.randperm(n, device=device).split(batch_size or n)


def policy_actions(actions: th.Tensor, action_space: spaces.Space) -> th.Tensor:
    """Actions as distributions take them: the buffer keeps discrete ones as floats of shape (n, 1)."""
    return actions.long().flatten() if isinstance(action_space, spaces.Discrete) else actions


def check_finite_rollout(buffer: RolloutBuffer) -> None:
    """Refuse to learn from a broken environment.

    :raises ValueError: naming what is not finite, and the step and environment where it first occurs
    """
    observations = buffer.observations if isinstance(buffer.observations, dict) else {"": buffer.observations}
    arrays = {f"observations{f'[{key!r}]' if key else ''}": value for key, value in observations.items()}
    for name, array in {**arrays, "rewards": buffer.rewards, "actions": buffer.actions}.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            step, column = np.argwhere(~np.isfinite(array))[0][:2]
            raise ValueError(
                f"env: non-finite {name} (first at step {step} of the rollout, environment {column}); all must be finite "
                "numbers. Nothing was learnt from this rollout. stable_baselines3's VecCheckNan finds the cause."
            )


def check_finite_observation(observation: np.ndarray | dict[str, np.ndarray] | None, cause: Exception | None = None) -> None:
    """:raises ValueError: if the observation that a policy failed on is not finite"""
    values = observation.values() if isinstance(observation, dict) else [observation]
    if any(value is not None and not np.isfinite(value).all() for value in values):
        raise ValueError(
            "env: non-finite observations; all must be finite numbers. Nothing was learnt from this rollout. "
            "stable_baselines3's VecCheckNan finds the cause."
        ) from cause


def refresh_batch_statistics(policy: ActorCriticPolicy, observations: PyTorchObs) -> None:
    """Let batch norm see a new rollout, as it would in a step taken in training mode."""
    if any(isinstance(module, nn.modules.batchnorm._NormBase) for module in policy.modules()):
        policy.set_training_mode(True)
        with th.no_grad():
            policy.get_distribution(observations)


def rollout_in_order(buffer: RolloutBuffer) -> RolloutBufferSamples:
    """All transitions of a filled buffer, one environment after the other: the order that windows are cut in."""
    next(buffer.get(batch_size=None))  # flattens
    return buffer._get_samples(np.arange(buffer.buffer_size * buffer.n_envs))


class PlainRewards(BaseCallback):
    """Keeps a rollout's rewards: SB3 adds values to the buffer's where a time limit ends an episode."""

    def _on_rollout_start(self) -> None:
        self._steps: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self._steps.append(np.array(self.locals["rewards"]))
        return True

    def _on_rollout_end(self) -> None:
        self.model.plain_rewards = np.stack(self._steps)  # type: ignore[attr-defined]


def with_plain_rewards(model: OnPolicyAlgorithm, callback: BaseCallback) -> BaseCallback:
    """An initialized callback, and the one that keeps the rewards."""
    rewards = PlainRewards()
    rewards.init_callback(model)
    both = CallbackList([rewards, callback])  # the other one may ask for them
    both.model = model
    return both


def flat_rewards(model: OnPolicyAlgorithm) -> np.ndarray:
    """Rewards of a model's rollout in the order of its flattened buffer, without the values at time limits if it has them."""
    plain = getattr(model, "plain_rewards", None)
    return model.rollout_buffer.swap_and_flatten(model.rollout_buffer.rewards if plain is None else plain).flatten()


def played_actions(actions: th.Tensor, policy: BasePolicy, space: spaces.Space) -> th.Tensor:
    """A policy's actions (..., a) as an environment gets them from SB3: rescaled if they are squashed, else clipped."""
    if not isinstance(space, spaces.Box):
        return actions
    low, high = (th.as_tensor(bound.reshape(-1)).to(actions) for bound in (space.low, space.high))
    if policy.squash_output:
        return low + 0.5 * (actions + 1) * (high - low)
    return actions.clamp(low, high)


def rollout_windows(
    model: OnPolicyAlgorithm, horizon: int, normalizer: VecNormalize | None = None, as_played: bool = False
) -> tuple[Windows, Trajectories]:
    """A model's filled and flattened rollout buffer as windows, in the buffer's order.

    :param horizon: steps of a window, at most
    :param normalizer: whose normalisation of observations and rewards is undone; ``None``: nothing is
    :param as_played: actions as the environment gets them, not as the policy samples them
    """
    buffer = model.rollout_buffer
    observations: Any = buffer.observations
    rewards = flat_rewards(model)
    if normalizer is not None:
        observations, rewards = normalizer.unnormalize_obs(observations), normalizer.unnormalize_reward(rewards)
    actions = flat_actions(buffer.actions, model.action_space)
    windows = cut_windows(buffer.episode_starts.astype(bool), horizon)
    trajectories = Trajectories.from_steps(
        windows,
        flat_observations(observations, model.observation_space),
        played_actions(actions, model.policy, model.action_space) if as_played else actions,
        th.as_tensor(rewards).float(),
    )
    return windows, trajectories
