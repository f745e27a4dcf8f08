"""One step of all environments, and the share of a rollout that belongs to one particle."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_wng.algorithms.rollouts import select

CHUNK = 2048  # observations per forward pass where no gradient is needed


class Timeout(NamedTuple):
    """An episode that ended by its time limit: what comes after it has a value."""

    step: int
    column: int
    observation: Any  # the episode's last, without a batch dimension


class ColumnStep(NamedTuple):
    """What a step of all environments gave."""

    observations: Any
    rewards: NDArray[Any]  # (n_envs,)
    dones: NDArray[np.bool_]  # (n_envs,)
    infos: list[dict[str, Any]]
    timeouts: list[tuple[int, Any]]  # column and last observation


def step_columns(env: VecEnv, actions: NDArray[Any]) -> ColumnStep:
    """Step every environment; natively batched ones without a loop over them.

    :param env: any VecEnv; one with a ``step_batch`` (:class:`sb3_wng.envs.BatchedVecEnv`), if nothing is wrapped around it,
        gives infos of the episodes that ended only
    """
    if hasattr(env, "step_batch") and not isinstance(env, VecEnvWrapper):  # a wrapper would be passed by
        return _step_batch(env, actions)
    observations, rewards, dones, infos = env.step(actions)
    timeouts = []
    for column in np.flatnonzero(dones):
        info = infos[column]
        if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None:
            timeouts.append((int(column), info["terminal_observation"]))
    return ColumnStep(observations, rewards, dones, infos, timeouts)


def _step_batch(env: Any, actions: NDArray[Any]) -> ColumnStep:
    step = env.step_batch(actions)
    dones = step.terminated | step.truncated
    infos: list[dict[str, Any]] = [{}] * env.num_envs  # one for all running episodes: making 300 takes as long as a step
    timeouts = []
    for column in np.flatnonzero(dones):
        final = step.final_observations[column]
        is_timeout = bool(step.truncated[column])
        if is_timeout:
            timeouts.append((int(column), final))
        infos[column] = {
            "TimeLimit.truncated": is_timeout,
            "terminal_observation": final,
            "episode": {"r": float(step.returns[column]), "l": int(step.lengths[column])},
        }
    return ColumnStep(step.observations, step.rewards, dones, infos, timeouts)


@th.no_grad()
def predict_values(policy: ActorCriticPolicy, observations: Any) -> NDArray[np.float32]:
    """Values (B,) of observations as environments and buffers hold them (B, ...), in pieces that fit a cache."""
    tensors = obs_as_tensor(observations, policy.device)
    size = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors)
    chunks = [select(tensors, slice(start, start + CHUNK)) for start in range(0, size, CHUNK)]
    return th.cat([policy.predict_values(chunk).flatten() for chunk in chunks]).cpu().numpy()


def flat_columns(observations: Any, columns: slice) -> Any:
    """Steps (T, n_envs, ...) of some columns as rows (T * m, ...)."""
    if isinstance(observations, dict):
        return {key: flat_columns(value, columns) for key, value in observations.items()}
    part = observations[:, columns]
    return part.reshape(-1, *part.shape[2:])


def evaluate_columns(
    buffer: RolloutBuffer, columns: slice, policy: ActorCriticPolicy, last_observations: Any, timeouts: list[Timeout]
) -> NDArray[np.float32]:
    """Fill in one particle's values, and add those after time limits to its rewards, as SB3 does during a rollout.

    :return: values after the last step, one per column
    """
    shape = buffer.values[:, columns].shape
    buffer.values[:, columns] = predict_values(policy, flat_columns(buffer.observations, columns)).reshape(shape)
    mine = [timeout for timeout in timeouts if columns.start <= timeout.column < columns.stop]
    if mine:
        values = predict_values(policy, stack_observations([timeout.observation for timeout in mine]))
        for timeout, value in zip(mine, values, strict=True):
            buffer.rewards[timeout.step, timeout.column] += buffer.gamma * value
    return predict_values(policy, select(last_observations, columns))


def stack_observations(observations: list[Any]) -> Any:
    """Single observations as a batch."""
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


def unflattened(buffer: RolloutBuffer) -> RolloutBuffer:
    """A filled rollout buffer as it was before somebody, such as a callback, has read it with ``get``, which flattens it."""
    if not buffer.generator_ready:
        return buffer

    def restored(flat: NDArray[Any]) -> NDArray[Any]:
        return flat.reshape(buffer.n_envs, buffer.buffer_size, *flat.shape[1:]).swapaxes(0, 1)

    whole: Any = copy.copy(buffer)
    whole.generator_ready = False
    observations: Any = buffer.observations
    is_dict = isinstance(observations, dict)
    whole.observations = {k: restored(v) for k, v in observations.items()} if is_dict else restored(observations)
    whole.actions = restored(buffer.actions)
    for name in ("values", "log_probs", "advantages", "returns"):
        setattr(whole, name, restored(getattr(buffer, name))[:, :, 0])
    filled: RolloutBuffer = whole
    return filled


def column_buffer(buffer: RolloutBuffer, columns: slice) -> RolloutBuffer:
    """Some environments' share of a filled rollout buffer; reading it leaves the whole as it is."""
    share = copy.copy(unflattened(buffer))
    share.n_envs = columns.stop - columns.start
    for name, value in vars(share).items():
        if isinstance(value, dict) and name == "observations":
            setattr(share, name, {key: part[:, columns] for key, part in value.items()})
        elif isinstance(value, np.ndarray) and value.shape[:2] == (buffer.buffer_size, buffer.n_envs):
            setattr(share, name, value[:, columns])
    return share
