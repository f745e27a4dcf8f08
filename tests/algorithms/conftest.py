"""Every algorithm at a size that trains in a fraction of a second."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn.utils import parameters_to_vector

from sb3_wng import BGPG, BGWNPG, NPG, PG, WNPG

SMALL = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
VARIANTS = {
    "WNPG": (WNPG, {}),
    "WNPG-kernel": (WNPG, {"metric": "kernel", "n_basis": 10}),
    "NPG": (NPG, {}),
    "PG": (PG, {"n_policy_updates": 2, "policy_batch_size": 16}),
    "BGPG": (BGPG, {"n_policy_updates": 2, "policy_batch_size": 16, "learning_rate": 3e-3}),
    "BGPG-trajectories": (
        BGPG,
        {"distance": "dual", "embedding": "action_sequence", "embedding_horizon": 8, "policy_batch_size": 16},
    ),
    "BGWNPG": (BGWNPG, {"n_penalized_epochs": 2, "policy_batch_size": 16, "learning_rate": 3e-3}),
}


class Chase(gym.Env):
    """The reward is high where the first number of the action is near the first of the observation."""

    def __init__(self, action_space=None, observation_space=None, episode_length=20):
        self.action_space = action_space or spaces.Box(-2, 2, (2,))
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,))
        self.episode_length = episode_length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        self.observation = self.observation_space.sample()
        return self.observation, {}

    def step(self, action):
        reward = -float(abs(np.ravel(action)[0] - np.ravel(self.observation)[0]))
        self.steps += 1
        self.observation = self.observation_space.sample()
        return self.observation, reward, self.steps == self.episode_length, False, {}


@pytest.fixture
def chase():
    """The class of a small environment with any action and observation space."""
    return Chase


def build_small(cls, env="CartPole-v1", policy="MlpPolicy", policy_kwargs=None, **settings):
    policy_kwargs = {"net_arch": [8], **(policy_kwargs or {})}
    return cls(policy, env, policy_kwargs=policy_kwargs, **{**SMALL, **settings})


@pytest.fixture
def small():
    """``small(cls, env, policy, **settings)`` is a model that trains quickly."""
    return build_small


@pytest.fixture(params=VARIANTS)
def build(request):
    """``build(env, policy, **settings)`` is a small model, of each algorithm in turn."""
    cls, defaults = VARIANTS[request.param]
    return partial(build_small, cls, **defaults)


@pytest.fixture
def weights():
    """The parameters of a model's policy, as one vector."""
    return lambda model: parameters_to_vector(model.policy.parameters()).detach()


@pytest.fixture
def watch():
    """Record how far each update of a model moves its law of actions, measured from outside."""

    def wrap(model):
        records, train = [], model.train

        def watched():
            buffer = model.rollout_buffer
            observations = torch.as_tensor(buffer.swap_and_flatten(buffer.observations))
            old = model.action_law(observations).detach()
            train()
            new = model.action_law(observations).detach()
            distance = old.wasserstein_distance(new).mean().item()
            kl = old.kl_divergence(new).mean().item()
            relative = distance / old.spread().item()
            records.append({"distance": distance, "relative": relative, "kl": kl, **model.logger.name_to_value})

        model.train = watched
        return records

    return wrap
