"""Candidates dealt over the columns of a VecEnv."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_wng.algorithms.episodes import Episode, describe, noise_generator, row
from sb3_wng.algorithms.evaluation import Candidate, Generation, Outcome, candidate_parameters
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.algorithms.step_counter import StepCounter
from sb3_wng.behavior import BehaviorEmbedding
from sb3_wng.behavior.references import keeps_normalized_parts

VERY_LONG = 50_000  # steps: no task that ends takes as many


class VecEnvEvaluator:
    """Runs candidates in waves of one per column; a column that is done idles, uncounted, until its wave is.

    Each column is reset with its episode's own seed, and each row of the actions depends on its own candidate only:
    outcomes do not depend on the number of columns.

    :param env: any VecEnv
    :param policy: whose parameters are perturbed
    :param embedding: what to keep of an episode
    :param embedding_horizon: steps that the embedding gets
    :param on_step: called after each step of the environments; ``False`` ends the evaluation
    """

    def __init__(
        self,
        env: VecEnv,
        policy: EvolutionPolicy,
        embedding: BehaviorEmbedding | None,
        embedding_horizon: int | None,
        on_step: StepCounter,
    ) -> None:
        self._env = env
        self._policy = policy
        self._embedding = embedding
        self._horizon = embedding_horizon
        self._on_step = on_step
        self._normalize = unwrap_vec_normalize(env)

    def __call__(self, generation: Generation) -> Iterator[tuple[int, Outcome]]:
        """Position and outcome of every candidate; ends early once ``on_step`` returns ``False``."""
        n = self._env.num_envs
        for start in range(0, len(generation.candidates), n):
            wave = generation.candidates[start : start + n]
            outcomes, goes_on = self._run_wave(generation, wave)
            yield from ((start + i, outcome) for i, outcome in enumerate(outcomes) if outcome is not None)
            if not goes_on:
                return

    def close(self) -> None:
        """The VecEnv is the algorithm's."""

    def _run_wave(self, generation: Generation, wave: Sequence[Candidate]) -> tuple[list[Outcome | None], bool]:
        """Outcomes, ``None`` where an episode was given up, and whether to go on."""
        env = self._env
        columns = [*wave, *[wave[-1]] * (env.num_envs - len(wave))]
        act = self._policy.make_actor(np.stack([candidate_parameters(generation, candidate) for candidate in columns]))
        generators = [noise_generator(candidate.seed) for candidate in columns]
        episodes = [Episode(self._policy, self._embedding, self._horizon) for _ in wave]
        outcomes: list[Outcome | None] = [None] * len(wave)
        is_active = np.arange(env.num_envs) < len(wave)
        # the public VecEnv.seed can only give columns consecutive seeds
        env.unwrapped._seeds = [candidate.seed for candidate in columns]
        try:
            observations = _guarded(env.reset)
            while is_active.any():
                seen = self._original(observations)
                actions = act(observations, generators)
                observations, rewards, dones, infos = _guarded(env.step, actions)
                scored = rewards if self._normalize is None else self._normalize.get_original_reward()
                counted = is_active.copy()
                for i in np.flatnonzero(counted).tolist():
                    outcomes[i] = self._advance(episodes[i], row(seen, i), actions[i], scored[i], dones[i], infos[i])
                    is_active[i] = outcomes[i] is None
                if not self._on_step(scored, dones, infos, counted):
                    return outcomes, False
        except _Raised as error:
            if env.num_envs > 1 or isinstance(env.unwrapped, SubprocVecEnv):  # unknown which column, or its process is gone
                seeds = [candidate.seed for candidate, known in zip(wave, outcomes, strict=True) if known is None]
                raise EnvironmentRaised(f"{error} (in one of the episodes with seeds {seeds})") from error.__cause__
            outcomes[0] = episodes[0].failure(str(error))
        return outcomes, True

    def _advance(
        self, episode: Episode, observation: Any, action: NDArray[Any], reward: float, done: bool, info: dict[str, Any]
    ) -> Outcome | None:
        """Take in a step; the outcome if it was the last."""
        if episode.length == VERY_LONG:
            warnings.warn(
                f"an episode has gone on for {VERY_LONG:,} steps, and strategies wait for its end: wrap the environment "
                "in gymnasium.wrappers.TimeLimit",
                stacklevel=2,
            )
        try:
            episode.add(observation, action, float(np.float32(reward)))  # SubprocVecEnv's are float64
        except ValueError as error:
            return episode.failure(f"{type(error).__name__}: {error}")
        if not done:
            return None
        # as Monitor writes it, for environments without one
        info.setdefault("episode", {"r": episode.total_reward, "l": episode.length, "t": 0.0})
        terminal = info["terminal_observation"]
        return episode.outcome(self._unnormalized(terminal))

    def _original(self, observations: Any) -> Any:
        """Unnormalised observations: behaviour must not move with VecNormalize's statistics."""
        return self._env.get_original_obs() if isinstance(self._env, VecNormalize) else self._unnormalized(observations)

    def _unnormalized(self, observations: Any) -> Any:
        """The same of any observations, unless a wrapper around VecNormalize has changed the shape of what it normalises."""
        if self._normalize is None or not keeps_normalized_parts(self._normalize, self._env):
            return observations
        return self._normalize.unnormalize_obs(observations)


class EnvironmentRaised(RuntimeError):
    """An environment raised while several were stepped together."""


class _Raised(Exception):
    """Tells what an environment raises from what callbacks raise."""


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # whatever an environment raises
        raise _Raised(describe(error)) from error
