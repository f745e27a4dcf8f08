"""One task, two environments: a Gymnasium environment, and a VecEnv that steps all of its columns as one array.

A :class:`BatchedTask` is a set of pure functions of columns of states. :class:`ScalarEnv` runs one column,
:class:`BatchedVecEnv` any number; with the same seeds and actions both give the same numbers, bit for bit.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

STARTS_PER_DRAW = 32  # a column draws its next start states this many at a time


class BatchedTask(Protocol):
    """A task's dynamics for n columns at once; a frozen dataclass of its options, without any other state.

    States are (n, k) arrays, and every function treats its rows alike and alone: the result for a row must not depend on
    n. No function changes its arguments.
    """

    @property
    def observation_space(self) -> spaces.Space: ...

    @property
    def action_space(self) -> spaces.Space: ...

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which an episode is truncated."""

    @property
    def render_fps(self) -> int: ...

    def reset(self, rng: np.random.Generator, n: int) -> NDArray[Any]:
        """n start states in the order of their draws: n at once and n one by one are the same states."""

    def step(self, states: NDArray[Any], actions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        """Next states in a new array, rewards (n,), and which episodes terminated (n,); actions as the space's, (n, ...)."""

    def observe(self, states: NDArray[Any]) -> NDArray[Any]:
        """Observations in a new array, (n, ...) as the observation space's."""

    def render(self, state: NDArray[Any]) -> NDArray[np.uint8]:
        """A picture of one state (k,), of shape (height, width, 3)."""


class BatchStep(NamedTuple):
    """What one step of n columns gives; columns whose episode ended have started the next one."""

    observations: NDArray[Any]  # (n, ...), of the new episode where one ended
    rewards: NDArray[np.float64]  # (n,)
    terminated: NDArray[np.bool_]  # (n,), ended by the task
    truncated: NDArray[np.bool_]  # (n,), ended by the time limit alone
    final_observations: NDArray[Any]  # (n, ...), before any restart; the same array as observations if no episode ended
    returns: NDArray[np.float64]  # (n,), sums of the episodes' rewards so far, this step's included
    lengths: NDArray[np.int64]  # (n,), of the episodes so far, this step included


class BatchedVecEnv(VecEnv):
    """A Stable-Baselines3 VecEnv whose columns are stepped by a few NumPy calls, without a loop over them.

    It behaves like a ``DummyVecEnv`` of :class:`ScalarEnv` under ``TimeLimit`` and ``Monitor`` with the same seeds: column
    i has its own generator, seeded with ``seed + i``, so what it sees does not depend on the number of columns. Ended
    episodes start again by themselves; their info has ``terminal_observation``, ``TimeLimit.truncated`` and ``episode``
    (Monitor's return ``r``, length ``l`` and time ``t``). Running episodes have an empty info.

    Code that does not need infos steps faster with :meth:`step_batch`.

    :param task: the dynamics that all columns share
    :param n_envs: number of columns
    :param seed: of the first column; ``None`` draws one
    :param render_mode: ``"rgb_array"`` or ``None``
    """

    def __init__(self, task: BatchedTask, n_envs: int, seed: int | None = None, render_mode: str | None = None):
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        self.task = task
        self.render_mode = _check_render_mode(render_mode)
        super().__init__(n_envs, task.observation_space, task.action_space)
        self.metadata = _metadata(task)
        self.seed(seed)
        self._generators: dict[int, np.random.Generator] = {}  # one per column, from the first reset on
        # Start states drawn but not used yet, and how many of them are used; a block is drawn when all are
        self._starts = np.stack([task.reset(np.random.default_rng(0), STARTS_PER_DRAW)] * n_envs)
        self._n_used = np.full(n_envs, STARTS_PER_DRAW)
        self._states = self._starts[:, 0]
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, np.int64)
        self._actions: NDArray[Any] | None = None
        self._start_time = time.time()

    def reset(self) -> NDArray[Any]:
        """Start a new episode in every column. Seeds and options given before are used once; options have no effect."""
        for column, seed in enumerate(self._seeds):
            if seed is not None:
                self._generators[column] = seeding.np_random(seed)[0]
                self._n_used[column] = STARTS_PER_DRAW
        self._reset_seeds()
        self._reset_options()
        self._states = self._next_starts(np.arange(self.num_envs))
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        return self.task.observe(self._states)

    def _next_starts(self, columns: NDArray[np.integer]) -> NDArray[Any]:
        for column in columns[self._n_used[columns] == STARTS_PER_DRAW]:
            self._starts[column] = self.task.reset(self._generators[column], STARTS_PER_DRAW)
            self._n_used[column] = 0
        starts = self._starts[columns, self._n_used[columns]]
        self._n_used[columns] += 1
        return np.asfortranarray(starts)

    def step_batch(self, actions: NDArray[Any]) -> BatchStep:
        """Step all columns; :meth:`reset` must have been called. Float64 rewards, no infos.

        :param actions: shape (n_envs, ...), as the action space's
        :raises ValueError: if their shape is another one
        """
        if actions.shape != (self.num_envs, *(self.action_space.shape or ())):
            raise ValueError(f"actions must be {(self.num_envs, *(self.action_space.shape or ()))}, got {actions.shape}")
        if not self._generators:
            raise RuntimeError("call reset() before the first step")
        states, rewards, terminated = self.task.step(self._states, actions)
        returns = self._returns + rewards
        lengths = self._lengths + 1
        observations = final_observations = self.task.observe(states)
        limit = self.task.max_episode_steps
        truncated = np.zeros_like(terminated) if limit is None else (lengths >= limit) & ~terminated
        ended = terminated | truncated
        self._states, self._returns, self._lengths = states, returns, lengths
        columns = np.flatnonzero(ended)
        if len(columns):
            starts = self._next_starts(columns)
            states[columns] = starts
            observations = final_observations.copy()
            observations[columns] = self.task.observe(starts)
            self._returns, self._lengths = returns.copy(), lengths.copy()
            self._returns[columns] = 0
            self._lengths[columns] = 0
        return BatchStep(observations, rewards, terminated, truncated, final_observations, returns, lengths)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        if self._actions is None:
            raise RuntimeError("call step_async(actions) before step_wait()")
        step, self._actions = self.step_batch(self._actions), None
        ended = step.terminated | step.truncated
        # One dictionary per column, as wrappers and callbacks may write into it
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for column in np.flatnonzero(ended):
            infos[column] = {
                "TimeLimit.truncated": bool(step.truncated[column]),
                "terminal_observation": step.final_observations[column],
                "episode": {
                    "r": round(float(step.returns[column]), 6),
                    "l": int(step.lengths[column]),
                    "t": round(time.time() - self._start_time, 6),
                },
            }
        return step.observations, step.rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """There is nothing to give back."""

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return [self.task.render(state) for state in self._states]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """``render_mode``, or an option or other attribute of the task, once per column."""
        value = self.render_mode if attr_name == "render_mode" else getattr(self.task, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Change an option of the task, for all columns at once, from the next step on.

        :raises ValueError: for some of the columns only, for what is no option, and for options that change a space
        """
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise ValueError("all columns share one task: set the attribute without indices")
        if attr_name not in {field.name for field in dataclasses.fields(self.task)}:  # type: ignore[arg-type]
            raise ValueError(f"{attr_name} is no option of {self.task}")
        task: BatchedTask = dataclasses.replace(self.task, **{attr_name: value})  # type: ignore[type-var]
        if (task.observation_space, task.action_space) != (self.observation_space, self.action_space):
            raise ValueError(f"{attr_name}={value} changes the spaces: make a new environment")
        self.task = task

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list:
        """A method of the task, once per column; ``render`` draws the column's state."""
        indices = self._get_indices(indices)
        if method_name == "render":
            return [self.task.render(self._states[column]) for column in indices]
        return [getattr(self.task, method_name)(*method_args, **method_kwargs) for _ in indices]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for ``Monitor``, whose ``info["episode"]`` is there, and for nothing else."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


class ScalarEnv(gym.Env):
    """A :class:`BatchedTask` as a Gymnasium environment. The time limit is left to ``gymnasium.make``.

    :param task: the dynamics
    :param render_mode: ``"rgb_array"`` or ``None``
    """

    def __init__(self, task: BatchedTask, render_mode: str | None = None):
        self.task = task
        self.render_mode = _check_render_mode(render_mode)
        self.metadata = _metadata(task)
        self.observation_space = task.observation_space
        self.action_space = task.action_space
        self._states = task.reset(np.random.default_rng(0), 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._states = self.task.reset(self.np_random, 1)
        return self.task.observe(self._states)[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action must have shape {self.action_space.shape}, got {action.shape}")
        self._states, rewards, terminated = self.task.step(self._states, action[None])
        return self.task.observe(self._states)[0], float(rewards[0]), bool(terminated[0]), False, {}

    def render(self) -> NDArray[np.uint8] | None:
        return None if self.render_mode is None else self.task.render(self._states[0])


# Environment id -> where its task is defined, and the time limit that Gymnasium keeps
TASKS: dict[str, tuple[str, int | None]] = {
    "RllabCartPole-v0": ("sb3_wng.envs.control:CartPole", 500),
    "RllabCartPoleSwingUp-v0": ("sb3_wng.envs.control:CartPoleSwingUp", 500),
    "RllabDoublePendulum-v0": ("sb3_wng.envs.control:DoublePendulum", 500),
    "RllabMountainCar-v0": ("sb3_wng.envs.control:MountainCar", 500),
    "HillGrid-v0": ("sb3_wng.envs.grid:HillGrid", None),
    "TwoGoals-v0": ("sb3_wng.envs.goals:TwoGoals", 20),
}


def make_task(env_id: str, **kwargs: Any) -> BatchedTask:
    """The task behind an environment id.

    :param env_id: one of :data:`TASKS`
    :param kwargs: the task's options
    :raises ValueError: for an id that has no batched task, and for options out of range
    """
    if env_id not in TASKS:
        raise ValueError(f"{env_id} has no batched form; these have: {', '.join(TASKS)}. Others need make_vec_env.")
    module, _, name = TASKS[env_id][0].partition(":")
    task: BatchedTask = getattr(importlib.import_module(module), name)(**kwargs)
    return task


def make_scalar(task_id: str, render_mode: str | None = None, **kwargs: Any) -> ScalarEnv:
    """The Gymnasium environment of a task: what ``gymnasium.make`` calls."""
    return ScalarEnv(make_task(task_id, **kwargs), render_mode)


# Where Gymnasium looks whether it can show a window itself (render_mode="human", which RL-Zoo's enjoy asks for)
make_scalar.metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[attr-defined]


def make_batched(
    env_id: str, n_envs: int, seed: int | None = None, render_mode: str | None = None, **kwargs: Any
) -> BatchedVecEnv:
    """A natively batched VecEnv of a task.

    :param env_id: one of :data:`TASKS`
    :param n_envs: number of columns; 100 to 3000 use a core best
    :param seed: column i starts from ``seed + i``
    :param render_mode: ``"rgb_array"`` or ``None``
    :param kwargs: the task's options, such as ``observation`` or ``max_episode_steps``
    """
    return BatchedVecEnv(make_task(env_id, **kwargs), n_envs, seed, render_mode)


def register_tasks() -> None:
    """Register every task with Gymnasium; their modules are only imported when an environment is made."""
    for env_id, (_, max_episode_steps) in TASKS.items():
        gym.register(
            env_id,
            entry_point="sb3_wng.envs.batched:make_scalar",
            max_episode_steps=max_episode_steps,
            kwargs={"task_id": env_id},
        )


def _metadata(task: BatchedTask) -> dict[str, Any]:
    return {"render_modes": ["rgb_array"], "render_fps": task.render_fps}


def _check_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f'render_mode must be "rgb_array" or None, got "{render_mode}"')
    return render_mode
