"""Behaviour to be attracted to or repelled from: demonstrations, another agent, or points given as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_wng.behavior.embeddings import BehaviorEmbedding
from sb3_wng.behavior.spaces import environment_major, environment_major_observations, flat_actions, flat_observations
from sb3_wng.behavior.trajectories import Trajectories, Trajectory, cut_windows


def collect_trajectories(
    model: BaseAlgorithm,
    env: VecEnv | gym.Env[Any, Any] | str | None = None,
    n_steps: int = 2048,
    horizon: int = 32,
    deterministic: bool = False,
    seed: int | None = None,
) -> Trajectories:
    """Let a trained SB3 model of any class act, and cut what it does into windows.

    In the environment that the model trains in, only between rollouts: episodes are given up, training goes on from new ones.

    :param model: trained
    :param env: where it acts: the environment it was trained in, with its ``VecNormalize`` if it had one, whose statistics
        are left alone; ``None``: the model's own
    :param n_steps: over all environments, about
    :param horizon: steps of a window, at most; windows end with their episode
    :param deterministic: whether the model acts without exploration noise
    :param seed: of the environment's start states and of the actions' noise; ``None``: as chance has it. What the model draws
        afterwards is as if nothing had been drawn here; its environment goes on from a seed of its own, another one at every
        stage of training
    :return: windows with observations, actions and rewards as the environment gives and gets them, not normalised
    :raises ValueError: for a model without an environment, less than one step, or frames stacked after normalisation
    """
    if env is None:
        env = model.get_env()
    if env is None:
        raise ValueError("the model has no environment to act in: pass env=, or reference=(model, env)")
    if n_steps < 1:
        raise ValueError(f"n_steps must be >= 1, got {n_steps}")
    is_own = isinstance(env, str)
    env = BaseAlgorithm._wrap_env(gym.make(env) if isinstance(env, str) else env, verbose=0, monitor_wrapper=False)
    normalizer = unwrap_vec_normalize(env)
    check_unnormalizable(env, normalizer)
    was_training = normalizer is not None and normalizer.training
    if normalizer is not None:
        normalizer.training = False
    try:
        with _seeded(model, env, seed):
            steps = _act(model, env, normalizer, -(-n_steps // env.num_envs), horizon, deterministic)
    finally:
        if is_own:
            env.close()
        if normalizer is not None:
            normalizer.training = was_training
        own = model.get_env()
        if own is not None and model._last_obs is not None and _innermost(own) & _innermost(env):
            _start_anew(model, own)  # where further training stood is gone
    observations, actions, rewards, starts = zip(*steps, strict=True)
    return Trajectories.from_steps(
        cut_windows(np.stack(starts), horizon),
        flat_observations(environment_major_observations(observations), model.observation_space),
        flat_actions(environment_major(actions), model.action_space),
        torch.as_tensor(environment_major(rewards)).float(),
    )


@contextmanager
def _seeded(model: BaseAlgorithm, env: VecEnv, seed: int | None) -> Iterator[None]:
    """All random numbers that an environment and a model's actions draw, from a seed; the model's go on as they would have."""
    if seed is None:
        yield
        return
    numpy_state = np.random.get_state()  # noqa: NPY002  # DQN draws from it
    space_state = model.action_space.np_random.bit_generator.state  # so do SAC and TD3, before learning_starts
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        try:
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            model.action_space.seed(seed)
            env.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            model.action_space.np_random.bit_generator.state = space_state
            # an environment's own state is out of reach; training must not start from the same states after every call
            env.seed(int(np.random.SeedSequence([seed, model.num_timesteps]).generate_state(1)[0] >> 1))


def _innermost(env: VecEnv) -> set[int]:
    """Identities of the environments behind all wrappers, of the VecEnv itself where they are out of reach."""
    inner = env.unwrapped
    return {id(part.unwrapped) for part in inner.envs} if isinstance(inner, DummyVecEnv) else {id(inner)}


def _start_anew(model: BaseAlgorithm, env: VecEnv) -> None:
    """Reset a model's environment, without a trace in its normalisation; training goes on from there."""
    normalizer = unwrap_vec_normalize(env)
    was_training = normalizer is not None and normalizer.training
    if normalizer is not None:
        normalizer.training = False
    model._last_obs = env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    if normalizer is not None:
        model._last_original_obs = normalizer.get_original_obs()
        normalizer.training = was_training


def keeps_normalized_parts(normalizer: VecNormalize, env: VecEnv) -> bool:
    """Whether wrappers around a VecNormalize have left the shape of what it normalises."""
    inner, outer = normalizer.observation_space, env.observation_space
    if isinstance(inner, spaces.Dict) and isinstance(outer, spaces.Dict):
        return all(inner[key].shape == outer[key].shape for key in normalizer.norm_obs_keys or ())
    return inner.shape == outer.shape


def check_unnormalizable(env: VecEnv, normalizer: VecNormalize | None) -> None:
    """:raises ValueError: for observations whose normalisation cannot be undone"""
    if normalizer is not None and normalizer.norm_obs and not keeps_normalized_parts(normalizer, env):
        raise ValueError(
            "reference: behaviour is compared as the environment gives it, and a wrapper around VecNormalize (such as "
            "VecFrameStack) has changed the shape of the observations: wrap VecNormalize around it instead"
        )


def _act(
    model: BaseAlgorithm,
    env: VecEnv,
    normalizer: VecNormalize | None,
    n_steps: int,
    horizon: int,
    deterministic: bool,
) -> list[tuple[Any, NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
    """Observations, actions, rewards and episode starts, each of all environments, step by step."""
    steps = []
    observations: Any = env.reset()
    states: Any = None
    starts = np.ones(env.num_envs, dtype=bool)
    # As rollouts do; where a rollout has a single noise matrix, every window has its own: they are what is compared
    draws_noise = model.use_sde and not deterministic
    interval = model.sde_sample_freq if model.sde_sample_freq > 0 else horizon
    for step in range(n_steps):
        if draws_noise and step % interval == 0:
            model.policy.reset_noise(env.num_envs)  # type: ignore[operator]
        actions, states = model.predict(observations, state=states, episode_start=starts, deterministic=deterministic)
        seen = observations if normalizer is None else normalizer.unnormalize_obs(observations)
        observations, rewards, dones, _ = env.step(actions)
        raw = rewards if normalizer is None else normalizer.get_original_reward()
        steps.append((seen, actions, raw.copy(), starts))
        starts = np.array(dones, dtype=bool)
    return steps


def reference_points(
    reference: Any, embedding: BehaviorEmbedding | None, horizon: int, n_steps: int = 2048, seed: int | None = None
) -> NDArray[np.float32]:
    """A reference behaviour as points of the embedding's space, shape (m, d).

    :param reference: points (m, d) as array or tensor; :class:`Trajectories`, cut to ``horizon``; a sequence of
        :class:`Trajectory`, which are cut into windows; a trained SB3 model with an environment; or a pair (model, env)
    :param embedding: of trajectories; ``None``: single actions are the points
    :param horizon: steps of the windows that behaviour is cut into
    :param n_steps: that a model acts for
    :param seed: of its environment and its actions
    :raises ValueError: for what is none of these, empty, or not finite
    """
    if isinstance(reference, BaseAlgorithm):
        reference = collect_trajectories(reference, None, n_steps, horizon, seed=seed)
    elif isinstance(reference, tuple) and len(reference) == 2 and isinstance(reference[0], BaseAlgorithm):
        reference = collect_trajectories(*reference, n_steps, horizon, seed=seed)
    elif isinstance(reference, Sequence) and reference and all(isinstance(part, Trajectory) for part in reference):
        reference = _windows(reference, horizon)
    if isinstance(reference, Trajectories):
        if embedding is not None and reference.mask.shape[1] != horizon:
            raise ValueError(
                f"reference: its windows have {reference.mask.shape[1]} steps, those that they are compared with {horizon}: "
                "pass embedding_horizon and collect_trajectories' horizon alike"
            )
        # a rollout, which it is compared with, does not know where its windows lead
        reference = replace(reference, final_observations=None)
        reference = reference.actions[reference.mask] if embedding is None else embedding(reference)
    try:
        points = np.asarray(reference.detach().cpu() if isinstance(reference, torch.Tensor) else reference, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(
            "reference must be embeddings of shape (m, d), Trajectories, a list of Trajectory, a trained model with an "
            f"environment, or (model, env), got {type(reference).__name__}"
        ) from None
    if points.ndim != 2 or points.size == 0:
        raise ValueError(f"reference must hold m >= 1 points, of shape (m, d), got shape {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("reference must hold finite numbers only")
    return points


def _windows(trajectories: Sequence[Trajectory], horizon: int) -> Trajectories:
    """Trajectories of any length cut into windows."""
    windows = [part for trajectory in trajectories for part in _cut(trajectory, horizon)]
    observations, actions, rewards = (
        torch.stack([torch.nn.functional.pad(part, (0, 0) * (part.ndim - 1) + (0, horizon - len(part))) for part in column])
        for column in zip(*(window[:3] for window in windows), strict=True)
    )
    lengths = torch.tensor([len(window.rewards) for window in windows])
    return Trajectories(observations, actions, rewards, torch.arange(horizon) < lengths[:, None])


def _cut(trajectory: Trajectory, horizon: int) -> Iterator[Trajectory]:
    observations, actions, rewards = (torch.as_tensor(part, dtype=torch.float32).cpu() for part in trajectory[:3])
    n_steps = len(rewards)
    if n_steps == 0:
        raise ValueError("reference: every Trajectory needs at least one step")
    if len(observations) != n_steps or len(actions) != n_steps:
        raise ValueError(
            f"reference: a Trajectory has {len(observations)} observations, {len(actions)} actions and {n_steps} rewards: "
            "give one of each per step, without the observation after the last action"
        )
    for start in range(0, n_steps, horizon):
        end = min(start + horizon, n_steps)
        yield Trajectory(observations[start:end], actions[start:end], rewards[start:end])
