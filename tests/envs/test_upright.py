import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sb3_wng  # noqa: F401 - registers the pendulum


def test_the_upright_pendulum_is_a_gymnasium_environment_of_200_steps():
    env = gym.make("UprightPendulum-v0")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[2:4] for _ in range(200)][-1] == (False, True)


@pytest.mark.parametrize("options", [None, {"x_init": 1.0, "y_init": 1.0}])
def test_an_upright_pendulum_that_is_left_alone_has_the_best_return(options):
    env = gym.make("UprightPendulum-v0")
    observation, _ = env.reset(seed=1, options=options)
    assert observation.tolist() == [1, 0, 0]
    rewards = [env.step(np.zeros(1, np.float32))[1] for _ in range(200)]
    assert rewards == [0] * 200


def test_exploration_makes_the_upright_pendulum_fall():
    env = gym.make("UprightPendulum-v0")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    steps = [env.step(rng.normal(size=1).astype(np.float32)) for _ in range(200)]
    assert min(observation[0] for observation, *_ in steps) < -0.9
    assert sum(step[1] for step in steps) < -500
