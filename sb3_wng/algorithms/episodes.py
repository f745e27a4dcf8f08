"""One episode of one candidate, from its reset to its :class:`Outcome`; the same wherever it is run."""

from __future__ import annotations

import traceback
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose

from sb3_wng.algorithms.evaluation import Candidate, Generation, Outcome, candidate_parameters
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.behavior import BehaviorEmbedding, Trajectories, flat_actions, flat_observations
from sb3_wng.behavior.embeddings import ActionSequence, Checked, RewardToGo, StateSequence

Observation = Any  # one array, or a dict of them


def run_candidate(
    policy: EvolutionPolicy,
    env: gym.Env[Any, Any],
    generation: Generation,
    candidate: Candidate,
    embedding: BehaviorEmbedding | None = None,
    embedding_horizon: int | None = None,
) -> Outcome:
    """Run one candidate of a generation; ``policy`` takes its parameters and observation statistics.

    Arguments as of :func:`run_episode`.
    """
    policy.load_from_vector(candidate_parameters(generation, candidate))
    policy.normalizer.set_statistics(generation.observation_statistics)
    return run_episode(policy, env, candidate.seed, embedding, embedding_horizon)


def run_episode(
    policy: EvolutionPolicy,
    env: gym.Env[Any, Any],
    seed: int,
    embedding: BehaviorEmbedding | None = None,
    embedding_horizon: int | None = None,
) -> Outcome:
    """Run one episode in a plain environment; a function of its arguments alone if the environment is one of its seed.

    :param policy: acts with its current parameters, and with its own noise (seeded) where it has any
    :param env: with the policy's spaces (images may have channels last)
    :param seed: of the reset and of the policy's noise
    :param embedding: what to keep of the episode
    :param embedding_horizon: steps that the embedding gets, at most; shorter episodes are padded. ``None``: all
    :return: with ``error`` set where the environment raised or returned numbers that are not finite
    """
    episode = Episode(policy, embedding, embedding_horizon)
    act = policy.make_actor(policy.parameters_to_vector()[None])
    generators = [noise_generator(seed)]
    try:
        observation, _ = env.reset(seed=seed)
        is_over = False
        while not is_over:
            batch = as_batch(observation, policy.observation_space)
            try:
                action = act(batch, generators)[0]
            except Exception as error:
                is_fatal = _is_finite(row(batch, 0))  # else it is not the policy's fault
                return episode.failure(f"policy: {describe(error)}")._replace(is_fatal=is_fatal)
            observation, reward, terminated, truncated, info = env.step(action)
            episode.add(row(batch, 0), action, float(np.float32(reward)))  # float32 as VecEnvs have it
            is_over = bool(terminated or truncated)
    except Exception as error:  # whatever an environment raises; the strategy decides what it costs
        return episode.failure(describe(error))
    final_observation = row(as_batch(observation, policy.observation_space), 0)
    # without the time, which is another one every time
    monitored = {**info["episode"], "t": 0.0} if "episode" in info else None
    return episode.outcome(final_observation)._replace(is_success=info.get("is_success"), monitored=monitored)


def noise_generator(seed: int) -> np.random.Generator:
    """Of a policy's noise in the episode of a seed; not the environment's, which Gymnasium makes of the seed alone."""
    return np.random.default_rng((seed, 1))


def describe(error: Exception) -> str:
    """What an exception says and where it was raised, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def as_batch(observation: Observation, space: spaces.Space[Any]) -> Observation:
    """A copy of one observation as a batch of one in the space's type, as a VecEnv returns it; images with channels first."""
    if isinstance(space, spaces.Dict):
        return {key: as_batch(observation[key], subspace) for key, subspace in space.spaces.items()}
    array = np.array(observation, dtype=space.dtype)
    return (maybe_transpose(array, space) if is_image_space(space) else array)[None]


def row(observations: Observation, index: int) -> Observation:
    """One observation of a batch."""
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


class Episode:
    """Keeps of a running episode what its outcome needs.

    :param policy: knows the spaces, and whether observations are normalised
    :param embedding: a function of the trajectory, or ``None``
    :param embedding_horizon: steps that the embedding gets
    """

    def __init__(self, policy: EvolutionPolicy, embedding: BehaviorEmbedding | None, embedding_horizon: int | None) -> None:
        self._policy = policy
        self._embedding = embedding
        self._horizon = embedding_horizon
        self.total_reward = 0.0
        self.length = 0
        self._observations: list[Observation] = []
        self._actions: list[NDArray[Any]] = []
        self._rewards: list[float] = []

    def add(self, observation: Observation, action: NDArray[Any], reward: float) -> None:
        """One step: the observation that was acted on, the action, and the unnormalised reward that came of it.

        :raises ValueError: for numbers that are not finite
        """
        self.length += 1
        self.total_reward += reward
        if not np.isfinite(reward):
            raise ValueError(f"reward {reward} at step {self.length} of the episode")
        if not _is_finite(observation):
            raise ValueError(f"observation that is not finite before step {self.length} of the episode")
        is_embedded = self._embedding is not None and (self._horizon is None or self.length <= self._horizon)
        # one observation beyond the horizon: the state that its last step leads to
        is_final = self._embedding is not None and self._horizon is not None and self.length == self._horizon + 1
        if self._policy.normalizer.keys or is_embedded or is_final:
            self._observations.append(observation)
        if is_embedded:
            self._actions.append(action)
            self._rewards.append(reward)

    def outcome(self, final_observation: Observation) -> Outcome:
        """What the episode came to, given the observation that its last step returned."""
        if not _is_finite(final_observation):
            return self.failure("ValueError: last observation of the episode is not finite")
        if not self._observations:
            return Outcome(self.total_reward, self.length, None, {})
        moments = self._policy.normalizer.moments(_stack(self._observations))
        if not all(np.isfinite(moment).all() for moment in moments.values()):
            return self.failure("ValueError: observations too large to be squared")
        embedding = None
        if self._embedding is not None:
            try:
                embedding = self._embed(self._embedding, final_observation)
            except Exception as error:  # whatever a user's function raises
                return self.failure(f"embedding: {describe(error)}")._replace(is_fatal=True)
            if not np.isfinite(embedding).all():
                return self.failure("embedding: it is not finite")._replace(is_fatal=True)
        return Outcome(self.total_reward, self.length, embedding, moments)

    def failure(self, error: str) -> Outcome:
        """The outcome of an episode that cannot be scored."""
        return Outcome(float("nan"), self.length, None, {}, error)

    def _embed(self, embedding: BehaviorEmbedding, final_observation: Observation) -> NDArray[np.float32]:
        n_steps = len(self._actions)
        kept = [*self._observations, final_observation][: n_steps + 1]
        observations = flat_observations(_stack(kept), self._policy.observation_space)
        actions = flat_actions(np.stack(self._actions), self._policy.action_space)
        rewards = th.tensor(self._rewards, dtype=th.float32)
        is_padded = isinstance(embedding, ActionSequence | RewardToGo | StateSequence | Checked)
        n_padded = self._horizon - n_steps if is_padded and self._horizon is not None else 0
        mask = th.arange(n_steps + n_padded) < n_steps
        trajectories = Trajectories(
            observations=_pad(observations[:-1], n_padded),
            actions=_pad(actions, n_padded),
            rewards=_pad(rewards, n_padded),
            mask=mask[None],
            final_observations=observations[-1:],
        )
        point: NDArray[np.float32] = embedding(trajectories)[0].detach().cpu().numpy().astype(np.float32)
        return point


def _is_finite(observation: Observation) -> bool:
    parts = map(np.asarray, observation.values() if isinstance(observation, dict) else [observation])
    return all(not np.issubdtype(part.dtype, np.floating) or bool(np.isfinite(part).all()) for part in parts)


def _stack(observations: list[Observation]) -> Observation:
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


def _pad(steps: th.Tensor, n_padded: int) -> th.Tensor:
    """Steps (t, ...) as one window (1, t + n_padded, ...)."""
    return th.cat([steps, steps.new_zeros(n_padded, *steps.shape[1:])])[None]
