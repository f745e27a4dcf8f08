"""Small populations that train in a fraction of a second."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_wng import PG, SVPG

SMALL = {"n_particles": 3, "n_steps": 16, "seed": 0, "device": "cpu"}
KWARGS = {"batch_size": 16, "n_critic_updates": 2}


class Chase(gym.Env):
    """The reward is high where the first number of the action is near the first of the observation."""

    def __init__(self, action_space=None, observation_space=None, episode_length=10, is_truncated=True):
        self.action_space = action_space or spaces.Box(-2, 2, (2,))
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,))
        self.episode_length, self.is_truncated = episode_length, is_truncated

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        self.observation = self.observation_space.sample()
        return self.observation, {}

    def step(self, action):
        first = np.ravel(next(iter(self.observation.values())) if isinstance(self.observation, dict) else self.observation)[0]
        reward = -float(abs(np.ravel(action)[0] - first))
        self.steps += 1
        self.observation = self.observation_space.sample()
        is_over = self.steps == self.episode_length
        return self.observation, reward, is_over and not self.is_truncated, is_over and self.is_truncated, {}


@pytest.fixture
def chase():
    """``chase(action_space, observation_space, ...)``: a small environment."""
    return Chase


class Breaking(gym.Env):
    """One observation or reward is no number."""

    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))

    def __init__(self, broken, at):
        self.broken, self.at, self.steps = broken, at, 0

    def _observe(self):
        bad = self.broken == "observations" and self.steps == self.at
        return np.full(3, np.nan if bad else 0.5, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), np.nan if self.broken == "rewards" and self.steps == self.at else 1.0, False, False, {}


@pytest.fixture
def breaking():
    """``breaking("observations" or "rewards", step)``: an environment with a number that is none."""
    return Breaking


@pytest.fixture
def small():
    """``small(algorithm, env, policy, **settings)`` is a population that trains quickly."""

    def build(algorithm="wnpg", env=Chase, policy="MlpPolicy", policy_kwargs=None, algorithm_kwargs=None, **settings):
        settings = {**SMALL, **settings}
        if not isinstance(env, str) and callable(env):
            env = make_vec_env(env, n_envs=2 * settings["n_particles"], seed=0)
        given = {} if algorithm in ("pg", "pg_linear", PG) else KWARGS
        return SVPG(
            policy,
            env,
            algorithm,
            policy_kwargs={"net_arch": [8], **(policy_kwargs or {})},
            algorithm_kwargs={**given, **(algorithm_kwargs or {})},
            **settings,
        )

    return build


@pytest.fixture(params=["pg", "pg_linear", "a2c", "npg", "wnpg"])
def algorithm(request):
    """Each algorithm in turn."""
    return request.param


@pytest.fixture
def gradients():
    """Plain gradients of the return of all particles from the population's rollout, shape (n, p)."""

    def compute(model):
        for particle, share in zip(model.particles, model.shares(), strict=True):
            particle.begin(share, 1.0, in_order=True)
        return torch.stack([particle.gradient() for particle in model.particles])

    return compute
